"""Run the benchmarks (`benchmarks/bench_*.py`), print a table, write bench.json.

Each file has ``run(repeats)``, which returns rows ``{name, value, unit, peer, repeats, machine}``. A benchmark that
cannot run (a peer that is not installed, too little memory) becomes a row with ``value`` null and the reason in
``message``; the others go on.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
KEYS = ("name", "value", "unit", "peer", "repeats", "machine")


def collect(folder: Path, repeats: int, only: str = "") -> list[dict]:
    """The rows of every benchmark in ``folder`` whose file name contains ``only``."""
    rows = []
    for path in sorted(folder.glob("bench_*.py")):
        if only not in path.stem:
            continue
        start = time.perf_counter()
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        try:
            rows += [{key: row.get(key) for key in KEYS} | row for row in load(path).run(repeats=repeats)]
        except Exception as error:  # whatever goes wrong in one benchmark, the others are still worth having
            rows.append(failure(path.stem, repeats, error))
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def load(path: Path):
    """The module in a file, found by nothing but its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def failure(name: str, repeats: int, error: Exception) -> dict:
    """The row of a benchmark that could not run."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    row = {"name": name, "value": None, "unit": None, "peer": None, "repeats": repeats, "machine": machine}
    return row | {"message": f"{type(error).__name__}: {error}"}


def table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    cells = [("benchmark", "value", "unit", "peer")]
    for row in rows:
        value = row.get("message") if row["value"] is None else f"{row['value']:,.4g}"
        cells.append((row["name"], value or "", row["unit"] or "", str(row["peer"] or "")))
    widths = [max(len(line[i]) for line in cells if i != 1 or len(line[i]) < 20) for i in range(3)]
    return "\n".join(f"{n:{widths[0]}}  {v:>{widths[1]}} {u:{widths[2]}}  {p}".rstrip() for n, v, u, p in cells)


def main() -> int:
    """1 when nothing was selected or every benchmark failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only files whose name contains WORD")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement (default: 3)")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench.json"), help="default: bench.json")
    arguments = parser.parse_args()
    rows = collect(FOLDER, arguments.repeats, arguments.only)
    print(table(rows))
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if any(row["value"] is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
