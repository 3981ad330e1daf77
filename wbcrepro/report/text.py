"""A table for the terminal."""

from __future__ import annotations

from wbcrepro.report.page import ours_text
from wbcrepro.report.tables import Table


def table_text(table: Table) -> str:
    """Paper and ours per metric (``*`` best, ``_`` second), then the holes with the commands that fill them."""
    ranks = table.ranks()
    mark = {"best": "*", "second": "_", None: " "}
    width = max(len(row.label) for row in table.rows)
    lines = [
        table.caption(),
        "",
        " " * width + "".join(f"  {m + ' paper':>13}  {m + ' ours':>24} " for m in table.metrics),
    ]
    for row in table.rows:
        line = f"{row.label:{width}}"
        for metric, entry in row.entries.items():
            paper = "–" if entry.paper is None else f"{entry.paper[0]:.1f} ± {entry.paper[1]:.1f}"
            ours = ours_text(entry, table.folds)
            line += f"  {paper:>13}  {ours:>24}{mark[ranks.get((row.label, metric))]}"
        lines.append(line)
    lines.append("ours: * best, _ second; intervals, verdicts and the code's log are in --csv and --json")
    if table.predictions.synthetic:
        lines.append("SYNTHETIC IMAGES: these numbers show a mechanism and are no evidence about blood.")
    return "\n".join(lines + [": ".join(filter(None, pair)) for pair in table.holes()])
