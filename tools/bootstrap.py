"""Make ``.venv`` from ``requirements.lock``: the first step of every ``make`` target. Standard library only.

The environment is stamped with a digest of everything it was made from, and the stamp is written last: an environment
without a matching stamp is brought up to date, one that was being filled when the power went is made again, and one
that is current costs a few milliseconds. Packages are checked against the hashes in the lock. ``pip`` fetches one
package, uv, which fetches the others (in seconds from a warm cache, where pip takes minutes).
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
OLDEST, NEWEST_TESTED = (3, 11), (3, 13)
STAMP, UNFINISHED = "wbcrepro-stamp", "wbcrepro-unfinished"
# Measured on Linux x86-64, where PyTorch brings its GPU libraries; elsewhere it brings none (an estimate).
SIZES = {"Linux": ("3.4 GB", "6.5 GB"), "other": ("0.7 GB", "2.5 GB")}


class BootstrapError(Exception):
    """A reason why the environment cannot be made, in one line that says what to do."""


def version_problem(version: tuple[int, ...]) -> str | None:
    """One line for a Python that is too old, ``None`` for one that will do."""
    if tuple(version[:2]) >= OLDEST:
        return None
    found, wanted = ".".join(map(str, version[:2])), ".".join(map(str, OLDEST))
    return (
        f"wbcrepro needs Python {wanted} or newer, this is {found}. Install one (Debian, Ubuntu: apt install python3 "
        "python3-venv; macOS: brew install python@3.13) or name one: make PYTHON=python3.13 ..."
    )


def venv_module_problem(modules: dict[str, bool], version: tuple[int, ...]) -> str | None:
    """One line when ``venv`` or ``ensurepip``, which some distributions split off the standard library, is missing."""
    missing = [name for name, there in modules.items() if not there]
    if not missing:
        return None
    package = f"python{version[0]}.{version[1]}-venv"
    return f"Python's module {' and '.join(missing)} is missing. Install it: apt install {package} (Debian, Ubuntu)"


def stamp(lock: bytes, project: bytes, python: str, root: str) -> str:
    """The digest of what an environment is made from: lock, pyproject.toml, Python, folder (scripts name it)."""
    digest = hashlib.sha256()
    for part in (lock, project, python.encode(), root.encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def locked_block(lock: str, name: str) -> str:
    """The lines of ``lock`` that pin one package with its hashes; `BootstrapError` when it is not in there."""
    found = re.search(rf"^{re.escape(name)}==[^\n]*\n(?:[ \t]+--hash=[^\n]*\n?)+", lock, re.MULTILINE)
    if not found:
        raise BootstrapError(f"{LOCK.name} does not pin {name} with a hash; make it again (its first lines say how)")
    return found.group().rstrip().rstrip("\\").rstrip() + "\n"


def locked_version(block: str) -> str:
    """The version in a block of `locked_block`: ``1.2`` of ``name==1.2 ; marker``."""
    return re.match(r"[^=]+==([^\s;\\]+)", block).group(1)


def venv_version(config: str) -> str | None:
    """The Python version in a ``pyvenv.cfg``, e.g. ``3.11.7`` (venv says ``version``, virtualenv ``version_info``)."""
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", config, re.MULTILINE)
    return found.group(1) if found else None


def announcement(packages: int, system: str) -> str:
    """What will be downloaded, said before anything is."""
    download, disk = SIZES.get(system, SIZES["other"])
    return (
        f"Making .venv from requirements.lock: up to {packages} packages, checked by their "
        f"hashes.\nAbout {download} to download (less what uv's cache has) and {disk} on disk, most of it PyTorch."
    )


def run(*command: object, env: dict[str, str] | None = None) -> None:
    """Run a command, its output in view."""
    subprocess.run([str(part) for part in command], check=True, env=env)


def current_stamp(venv: Path) -> str | None:
    """The stamp that ``venv`` should have, were it finished; ``None`` when it is no usable environment."""
    config = venv / "pyvenv.cfg"
    version = venv_version(config.read_text()) if config.is_file() else None
    if version is None or not (venv / "bin" / "python").exists():
        return None
    return stamp(LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), version, str(ROOT))


def is_current(venv: Path) -> bool:
    """Whether ``venv`` was finished from just this lock, by just this Python, in just this folder."""
    file = venv / STAMP
    return file.is_file() and file.read_text() == current_stamp(venv)


def reason_to_recreate(venv: Path) -> str | None:
    """Why ``venv`` cannot be brought up to date in place (``None``: it can). Leaves alone what is no environment."""
    if not venv.exists() or not any(venv.iterdir()):
        return "there is none"
    if not (venv / "pyvenv.cfg").is_file():
        raise BootstrapError(f"{venv.name}/ is there but is not a virtual environment; move it away and try again")
    if (venv / UNFINISHED).exists():
        return "the last attempt was interrupted"
    version = venv_version((venv / "pyvenv.cfg").read_text())
    if version is None or version_problem(tuple(map(int, version.split(".")))):
        return f"the one there is of Python {version}"
    try:
        subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "the Python or pip in the one there does not run"
    return None


def create(venv: Path, reason: str) -> None:
    """Make an empty environment with this Python, in place of what is there."""
    print(f"New .venv ({reason}), Python {platform.python_version()}.", flush=True)
    modules = {name: importable(name) for name in ("venv", "ensurepip")}
    if problem := venv_module_problem(modules, sys.version_info):
        raise BootstrapError(problem)
    run(sys.executable, "-m", "venv", "--clear", venv)


def importable(name: str) -> bool:
    """Whether a module of the standard library is there."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def install_uv(venv: Path) -> Path:
    """Install the locked uv into ``venv`` with pip, hash-checked, unless that version is there."""
    uv, block = venv / "bin" / "uv", locked_block(LOCK.read_text(), "uv")
    if uv.exists():
        said = subprocess.run([uv, "--version"], capture_output=True, text=True).stdout.split()
        if said[1:2] == [locked_version(block)]:
            return uv
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "uv.txt"
        requirements.write_text(block)
        pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        run(*pip, "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--require-hashes", "-r", requirements)
    return uv


def uv_environment(uv: Path, venv: Path) -> dict[str, str]:
    """The environment for uv: a cache that can be written, and links or copies as the file systems allow.

    Left alone, uv fails on a read-only cache and complains when cache and ``.venv`` lie on different file systems.
    """
    env = {**os.environ, "UV_NO_PROGRESS": os.environ.get("UV_NO_PROGRESS", "0" if sys.stderr.isatty() else "1")}
    env.setdefault("UV_HTTP_TIMEOUT", "300")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        env.pop(name, None)
    said = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, env=env)
    cache = Path(said.stdout.strip() or "/nonexistent")
    if not can_write(cache):
        cache = venv / "uv-cache"
        env["UV_CACHE_DIR"] = str(cache)
    if "UV_LINK_MODE" not in env and not can_link(cache, venv):
        env["UV_LINK_MODE"] = "copy"
    return env


def can_write(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which is made when missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def can_link(source: Path, target: Path) -> bool:
    """Whether a file in ``source`` can have a hard link in ``target``."""
    source.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=source) as file:
        link = target / Path(file.name).name
        try:
            os.link(file.name, link)
        except OSError:
            return False
        link.unlink()
        return True


def fill(venv: Path) -> None:
    """Bring ``venv`` to exactly the lock, add this package as editable, and write the stamp."""
    (venv / STAMP).unlink(missing_ok=True)
    # A process killed while it fills the environment can leave half a package that looks installed.
    (venv / UNFINISHED).touch()
    uv = install_uv(venv)
    env = uv_environment(uv, venv)
    python = venv / "bin" / "python"
    run(uv, "pip", "sync", "--python", python, "--compile-bytecode", "--require-hashes", LOCK, env=env)
    run(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "-e", ROOT, env=env)
    shutil.rmtree(venv / "uv-cache", ignore_errors=True)
    (venv / UNFINISHED).unlink()
    (venv / STAMP).write_text(current_stamp(venv))


def main() -> int:
    """Make or update ``.venv`` when it is missing or stale; 0 when it is there afterwards."""
    try:
        if problem := version_problem(sys.version_info):
            raise BootstrapError(problem)
        if is_current(VENV):
            return 0
        with LOCK.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two makes started together: the second waits and finds the work done
            if is_current(VENV):
                return 0
            packages = re.findall(r"^[A-Za-z0-9][^\s=]*==", LOCK.read_text(), re.MULTILINE)
            print(announcement(len(set(packages)), platform.system()), flush=True)
            if sys.version_info[:2] > NEWEST_TESTED:
                print(f"Note: Python {platform.python_version()} is newer than those this was tested with.", flush=True)
            if reason := reason_to_recreate(VENV):
                create(VENV, reason)
            fill(VENV)
        print(".venv is ready.", flush=True)
        return 0
    except BootstrapError as error:
        print(error, file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"Failed: {Path(error.cmd[0]).name} {error.cmd[1]} ... (its message is above).", file=sys.stderr)
        print("Run the same command again to go on: what was downloaded whole is kept.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
