"""The pure parts of tools/bootstrap.py, and what it does with environments that are broken, foreign or unfinished."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)

LOCK = """# made by uv
uvicorn==0.1 \\
    --hash=sha256:aaaa
    # via something
uv==0.5.1 ; python_version >= '3.11' \\
    --hash=sha256:bbbb \\
    --hash=sha256:cccc
    # via wbcrepro (pyproject.toml)
zipp==3.0 \\
    --hash=sha256:dddd
"""


def fake_venv(folder: Path, config: str) -> Path:
    """A folder that looks like an environment whose python is this one."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(config)
    return folder


def test_uv_block_is_the_pin_and_its_hashes_only():
    block = bootstrap.locked_block(LOCK, "uv")
    assert block == "uv==0.5.1 ; python_version >= '3.11' \\\n    --hash=sha256:bbbb \\\n    --hash=sha256:cccc\n"
    assert bootstrap.locked_version(block) == "0.5.1"
    assert bootstrap.locked_block(LOCK, "zipp") == "zipp==3.0 \\\n    --hash=sha256:dddd\n"


def test_a_package_without_a_hash_is_refused():
    with pytest.raises(bootstrap.BootstrapError, match="does not pin uv"):
        bootstrap.locked_block("uv==1.0\nother==2\n", "uv")


def test_the_real_lock_pins_uv_with_hashes():
    block = bootstrap.locked_block((ROOT / "requirements.lock").read_text(), "uv")
    assert block.count("--hash=sha256:") > 5 and not block.rstrip().endswith("\\")


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 2), (3, 10, 99)])
def test_old_python_is_named_in_one_line(version):
    problem = bootstrap.version_problem(version)
    assert "3.11 or newer" in problem and f"{version[0]}.{version[1]}" in problem and "\n" not in problem


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 1), (4, 0, 0)])
def test_new_enough_python_is_no_problem(version):
    assert bootstrap.version_problem(version) is None


def test_missing_ensurepip_names_the_package():
    problem = bootstrap.venv_module_problem({"venv": True, "ensurepip": False}, (3, 12))
    assert "ensurepip" in problem and "python3.12-venv" in problem and "\n" not in problem
    assert bootstrap.venv_module_problem({"venv": True, "ensurepip": True}, (3, 12)) is None


def test_stamp_depends_on_each_of_its_parts():
    parts = (b"lock", b"project", "3.11.7", "/a")
    others = (b"lock2", b"project2", "3.12.0", "/b")
    stamps = {bootstrap.stamp(*parts)}
    for i, other in enumerate(others):
        stamps.add(bootstrap.stamp(*(other if i == j else part for j, part in enumerate(parts))))
    assert len(stamps) == 5
    assert bootstrap.stamp(b"ab", b"c", "", "") != bootstrap.stamp(b"a", b"bc", "", "")


@pytest.mark.parametrize(
    "config, version",
    [("home = /x\nversion = 3.11.7\n", "3.11.7"), ("version_info = 3.9.2.final.0\n", "3.9.2"), ("home = /x\n", None)],
)
def test_version_of_an_environment(config, version):
    assert bootstrap.venv_version(config) == version


def test_reasons_to_recreate(tmp_path):
    assert bootstrap.reason_to_recreate(tmp_path / "absent") == "there is none"
    assert "Python 3.9.2" in bootstrap.reason_to_recreate(fake_venv(tmp_path / "old", "version = 3.9.2\n"))
    interrupted = fake_venv(tmp_path / "interrupted", "version = 3.11.7\n")
    assert bootstrap.reason_to_recreate(interrupted) is None
    (interrupted / bootstrap.UNFINISHED).touch()
    assert "interrupted" in bootstrap.reason_to_recreate(interrupted)
    gone = fake_venv(tmp_path / "gone", "version = 3.11.7\n")
    (gone / "bin" / "python").unlink()
    (gone / "bin" / "python").symlink_to(tmp_path / "uninstalled")
    assert "does not run" in bootstrap.reason_to_recreate(gone)


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(bootstrap.BootstrapError, match="not a virtual environment"):
        bootstrap.reason_to_recreate(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_current_only_with_the_right_stamp(tmp_path):
    venv = fake_venv(tmp_path / "venv", "version = 3.11.7\n")
    assert not bootstrap.is_current(venv)
    (venv / bootstrap.STAMP).write_text(bootstrap.current_stamp(venv))
    assert bootstrap.is_current(venv)
    (venv / "pyvenv.cfg").write_text("version = 3.12.1\n")
    assert not bootstrap.is_current(venv)


def test_sync_that_fails_leaves_no_stamp_and_a_mark(tmp_path, monkeypatch):
    venv = fake_venv(tmp_path / "venv", "version = 3.11.7\n")
    (venv / bootstrap.STAMP).write_text("from another lock")

    def fail(*command, env=None):
        assert (venv / bootstrap.UNFINISHED).exists(), "the mark comes before the first change"
        raise subprocess.CalledProcessError(1, [str(part) for part in command])

    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "run", fail)
    monkeypatch.setattr(bootstrap, "install_uv", lambda venv: venv / "bin" / "uv")
    monkeypatch.setattr(bootstrap, "uv_environment", lambda uv, venv: {})
    assert bootstrap.main() == 2
    assert not (venv / bootstrap.STAMP).exists() and (venv / bootstrap.UNFINISHED).exists()
    assert not bootstrap.is_current(venv)


def test_unwritable_cache_moves_and_links_are_probed(tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    venv.mkdir()
    file = tmp_path / "file"  # a folder cannot be made below a file, whoever asks (root ignores permission bits)
    file.touch()
    monkeypatch.delenv("UV_LINK_MODE", raising=False)
    fake_uv = tmp_path / "uv"
    fake_uv.write_text(f"#!/bin/sh\necho {file}/cache\n")
    fake_uv.chmod(0o755)
    env = bootstrap.uv_environment(fake_uv, venv)
    assert env["UV_CACHE_DIR"] == str(venv / "uv-cache") and "UV_LINK_MODE" not in env

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert bootstrap.uv_environment(fake_uv, venv)["UV_LINK_MODE"] == "copy"


def make(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run make in the repository with an environment of its own."""
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})


def test_make_names_what_to_install_when_python_is_old_or_missing(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (old, tmp_path / "nowhere"):
        result = make("env", f"PYTHON={python}")
        assert result.returncode != 0 and "Python 3.11 or newer" in result.stderr and "apt install" in result.stderr
        assert len([line for line in result.stderr.splitlines() if not line.startswith("make")]) == 1


def test_make_passes_every_variable_to_each_step():
    asked = {"PAPER": "decoupled", "PROFILE": "tiny", "DATA": "d", "DATASET": "s", "WEIGHTS": "hub", "ACCUMULATE": "4"}
    steps = make("-n", "reproduce", *(f"{name}={value}" for name, value in asked.items())).stdout.replace("\\\n", "")
    for step in ("reproduce", "report", "book"):
        line = next(line for line in steps.splitlines() if line.startswith(f".venv/bin/wbcrepro {step} "))
        assert all(f'--{name.lower()} "{value}"' in line for name, value in asked.items()), line


def test_make_help_has_one_line_for_each_target():
    lines = make("help").stdout.splitlines()
    for target in "reproduce test env data book lab bench lint clean help".split():
        assert len([line for line in lines if line.startswith(f"make {target} ")]) == 1, target
