"""Synthetic smears drawn per second and core, over all classes and laboratories."""

import platform
import time

from wbcrepro.data.smears import SmearSource, SmearSpec


def _rate(source: SmearSource) -> float:
    start = time.process_time()
    for row in range(len(source)):
        source.read(row)
    return len(source) / (time.process_time() - start)


def run(repeats: int = 3) -> list[dict]:
    """Rows for bench.json: images for one second of processor time (one process, so one core)."""
    rows = []
    for size in (64, 128):
        source = SmearSource(SmearSpec.balanced(8, size=size, confined={}))
        source.read(0)
        for row in range(0, len(source), 2):  # the textures of all grain sizes are made once
            source.read(row)
        rates = sorted(_rate(source) for _ in range(repeats))
        rows.append(
            {
                "name": f"smears: {size} px, 13 classes, 4 laboratories",
                "value": round(rates[len(rates) // 2], 1),
                "unit": "images/s per core",
                "peer": "",
                "repeats": repeats,
                "machine": platform.processor() or platform.machine(),
            }
        )
    return rows
