"""benchmarks/run.py collects rows and turns a failing benchmark into a row."""

import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "run.py"
spec = importlib.util.spec_from_file_location("benchmarks_run", FILE)
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)

GOOD = """
def run(repeats=3):
    row = {"name": "sum", "value": 1.5, "unit": "s", "peer": "numpy 3 s", "repeats": repeats, "machine": "m"}
    return [row]
"""


def test_a_failing_benchmark_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "bench_a.py").write_text("import a_peer_that_is_not_installed\n")
    (tmp_path / "bench_b.py").write_text(GOOD)
    (tmp_path / "bench_c.py").write_text("def run(repeats):\n    raise RuntimeError('no memory')\n")
    rows = runner.collect(tmp_path, repeats=2)
    assert [row["name"] for row in rows] == ["bench_a", "sum", "bench_c"]
    assert "a_peer_that_is_not_installed" in rows[0]["message"] and rows[2]["message"] == "RuntimeError: no memory"
    assert rows[1] == {"name": "sum", "value": 1.5, "unit": "s", "peer": "numpy 3 s", "repeats": 2, "machine": "m"}
    assert all(set(runner.KEYS) <= set(row) for row in rows)
    text = runner.table(rows)
    assert "no memory" in text and "1.5" in text

    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    for only, code in (("bench_b", 0), ("bench_c", 1), ("nothing", 1)):
        output = tmp_path / "out.json"
        monkeypatch.setattr("sys.argv", ["run.py", "--only", only, "-o", str(output)])
        assert runner.main() == code
    assert json.loads(output.read_text()) == []


def test_every_benchmark_of_the_repository_has_run():
    files = sorted(FILE.parent.glob("bench_*.py"))
    assert files and all("\ndef run(repeats: int" in file.read_text() for file in files)
