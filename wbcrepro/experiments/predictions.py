"""Writing ``predictions.npz``: what every table, figure and interval is computed from afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wbcrepro.experiments.run import Context


def save_predictions(
    context: Context,
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    views: tuple[str, ...],
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Store ``{set: (rows of the benchmark's table (N,), probabilities (N, V, C))}`` as float16, by rename.

    ``extra``: further columns of the table by name, written as ``<set>_<name>``. Raises ``ArithmeticError``, and
    stores nothing, where a probability is not finite.
    """
    table = context.benchmark.table
    columns = {"ids": table["id"].to_numpy(str), "labels": table["label"].to_numpy(np.int16), **(extra or {})}
    arrays: dict[str, np.ndarray] = {"classes": np.array(context.benchmark.classes), "views": np.array(views)}
    for name, (rows, probabilities) in found.items():
        if not np.isfinite(probabilities).all():
            raise ArithmeticError(
                f"{context.cell.id}: {name} has probabilities that are not finite; nothing was stored"
            )
        arrays |= {f"{name}_{column}": values[rows] for column, values in columns.items()}
        arrays[f"{name}_probabilities"] = probabilities.astype(np.float16)
    temporary = context.folder / ".predictions.npz"
    np.savez_compressed(temporary, **arrays)
    temporary.replace(context.folder / "predictions.npz")
