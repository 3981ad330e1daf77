"""Fixtures shared by all tests: golden files, real images, and the strict mode that turns skips into failures."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same examples on every machine: a found failure is pinned with @example, and a run says the same twice.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def _golden_folders() -> list[Path]:
    named = os.environ.get("WBCREPRO_GOLDEN")
    return [Path(named)] if named else [ROOT / "tests" / "golden", SHARED / "golden"]


@pytest.fixture(scope="session")
def golden():
    """``golden(name)`` opens ``name.npz``; the test skips, naming the file, where it is absent."""

    def open_file(name: str):
        for folder in _golden_folders():
            if (folder / f"{name}.npz").is_file():
                return np.load(folder / f"{name}.npz", allow_pickle=False)
        pytest.skip(f"golden file {name}.npz is in none of: {', '.join(map(str, _golden_folders()))}")

    return open_file


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The root of the real images (``WBCREPRO_DATA``, or the folder that comes beside a developer's checkout)."""
    root = Path(os.environ.get("WBCREPRO_DATA", SHARED / "data"))
    if not root.is_dir():
        pytest.skip(f"no real images at {root.name}/; set WBCREPRO_DATA to a folder with the published layouts")
    return root


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    _forbid_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """A module that skips itself (``importorskip`` at its top) has no test to report on, only its collection."""
    outcome = yield
    _forbid_skip(outcome.get_result())


def _forbid_skip(report) -> None:
    if os.environ.get("WBCREPRO_STRICT") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"STRICT: skipped instead of run: {report.longrepr}"
