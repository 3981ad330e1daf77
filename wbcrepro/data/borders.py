"""What the common scale does to a benchmark's images: how wide they are in cells, and how many must be padded."""

import pandas as pd

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.data.scale import domain_diameter, field_sides


def border_table(benchmark: Benchmark) -> pd.DataFrame:
    """One line a laboratory (variants included, in the order of `field_sides`), sizes in pixels.

    Columns: ``laboratory``; ``images``; ``cell``, the diameter that stands for all its cells; ``field``, the side of
    the common field; ``side`` and ``smallest``, the median and the smallest of the images' shorter sides; ``repeated``,
    the number of images that are smaller than the field, whose border `field_crop` repeats.

    :raises DataMissing: as `wbcrepro.data.scale.field_sides`
    """
    shorter = benchmark.source.manifest.frame[["width", "height"]].min(axis=1).to_numpy()
    lines = []
    for name, field in field_sides(benchmark).items():
        sides = shorter[benchmark.table.loc[benchmark.table["domain"] == name, "row"]]
        lines.append({"laboratory": name, "images": len(sides), "cell": domain_diameter(benchmark, name),
                      "field": field, "side": float(pd.Series(sides).median()), "smallest": int(sides.min()),
                      "repeated": int((sides < field).sum())})  # fmt: skip
    return pd.DataFrame(lines)
