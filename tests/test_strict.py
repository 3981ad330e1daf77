"""``WBCREPRO_STRICT=1``: whatever is skipped fails instead, also a module that skips itself while it is collected."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MODULES = {
    "inside a test": "import pytest\n\ndef test_a():\n    pytest.skip('no reason')\n",
    "at the top of a module": "import pytest\npytest.importorskip('no_such_module')\n\ndef test_a():\n    pass\n",
}


@pytest.mark.parametrize("where", MODULES)
def test_a_skip_fails_in_strict_mode_only(tmp_path, where):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(MODULES[where], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    told = {}
    for strict in ("", "1"):
        environment = os.environ | {"WBCREPRO_STRICT": strict, "PYTEST_ADDOPTS": ""}
        told[strict] = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "1 skipped" in told[""].stdout and told[""].returncode in (0, 5), told[""].stdout
    assert "STRICT: skipped instead of run" in told["1"].stdout and told["1"].returncode in (1, 2), told["1"].stdout


def test_a_machine_without_a_gpu_can_run_everything_strictly():
    """Tests of a GPU are defined where there is one; a skip would fail each strict run on all other machines."""
    skipping = re.compile(r"skipif\(\s*not torch\.cuda|pytest\.skip\([^)]*(?:CUDA|GPU)")
    assert not [path.name for path in HERE.glob("test_*.py") if skipping.search(path.read_text(encoding="utf-8"))]
