"""pyproject.toml, environment.yml and requirements.lock say the same dependencies."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKED_EXTRAS = ("book", "dev", "fast", "weights")
NAMED_EXTRAS = ("cluster", "semantic", "cells", "bench")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def requirements(*extras: str) -> dict[str, Requirement]:
    """Core requirements and those of the named extras, by canonical name."""
    texts = [*PROJECT["dependencies"], *(t for extra in extras for t in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


def pins() -> dict[str, list[Version]]:
    """Versions in the lock, by canonical name (a name may have several, for different Pythons)."""
    found: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


def conda() -> tuple[list[str], list[str]]:
    """The conda part and the pip part of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return [e for e in entries if isinstance(e, str)], next(e["pip"] for e in entries if isinstance(e, dict))


def test_extras_are_the_agreed_ones():
    assert set(PROJECT["optional-dependencies"]) == {*LOCKED_EXTRAS, *NAMED_EXTRAS}


def test_lock_satisfies_pyproject():
    locked = pins()
    for name, requirement in requirements(*LOCKED_EXTRAS).items():
        assert name in locked, f"{name} is in pyproject.toml but not in requirements.lock; make the lock again"
        assert all(v in requirement.specifier for v in locked[name]), f"the lock has {locked[name]}, not {requirement}"


def test_what_is_only_named_is_not_in_the_lock():
    for extra in NAMED_EXTRAS:
        for text in PROJECT["optional-dependencies"][extra]:
            assert canonicalize_name(Requirement(text).name) not in pins(), f"{text} of extra {extra} is in the lock"


def test_every_pin_has_a_hash_and_no_address_is_named():
    blocks = re.split(r"^(?=[A-Za-z0-9][\w.-]*==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    for word in ("://", "--index-url", "--extra-index-url", "--find-links", "--trusted-host", " @ "):
        assert word not in LOCK, f"requirements.lock names an address: {word}"


def test_environment_yml_says_the_same():
    base, pip = conda()
    assert "-e ." in pip, "the package itself"
    said = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, (t for t in pip if t != "-e ."))}
    meant = {name: str(r.specifier) for name, r in requirements(*LOCKED_EXTRAS).items()}
    assert said == meant
    assert "pip" in base and f"python{PROJECT['requires-python']}" in base


@pytest.mark.parametrize("name, requirement", sorted({**requirements(*LOCKED_EXTRAS)}.items()))
def test_every_requirement_has_a_lower_bound(name, requirement):
    assert any(s.operator == ">=" for s in requirement.specifier), f"{requirement}: the oldest version that works?"


def test_lock_was_made_for_the_oldest_python_that_we_support():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    header = LOCK.split("\n\n")[0][:600]
    assert f"--python-version {oldest}" in header and "--universal" in header and "--generate-hashes" in header
    assert all(f"--extra {extra}" in header for extra in LOCKED_EXTRAS)
