"""Mahalanobis distance to the cells of a class, with a covariance that survives few samples (phase 3 of `rescue`).

    D_M(v) = sqrt( (v - mu)^T Sigma^-1 (v - mu) )

With n samples of F features the sample covariance has rank <= n - 1: singular below F + 1 samples, and badly
conditioned for long after. So it is shrunk (Ledoit & Wolf 2004): Sigma = (1 - d) S + d m I, m = trace(S) / F, d
estimated from the samples. The features have units (pixels, grey levels, ratios), a ball does not: S is taken of
standardised features.

Differs from the released code in: that reads means, inverse covariances and thresholds from a file that is not
published; these are fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

FLOOR = 1e-3
"""Least shrinkage of a covariance that is singular (a constant or doubled feature)."""


@dataclass(frozen=True)
class Gaussian:
    """``columns`` (F,), ``mean`` (F,), ``precision`` (F, F) in the features' units; float64.

    ``shrinkage`` 0 = sample covariance, 1 = a ball; ``n`` cells behind it; ``note`` says what was not as it should be.
    """

    columns: tuple[str, ...]
    mean: np.ndarray
    precision: np.ndarray
    shrinkage: float
    n: int
    note: str = ""

    def to_json(self) -> dict:
        """Plain numbers and text."""
        return {"columns": list(self.columns), "mean": self.mean.tolist(), "precision": self.precision.tolist(),
                "shrinkage": self.shrinkage, "n": self.n, "note": self.note}

    @classmethod
    def from_json(cls, value: dict) -> "Gaussian":
        """The inverse of `to_json`."""
        return cls(tuple(value["columns"]), np.array(value["mean"], float), np.array(value["precision"], float),
                   float(value["shrinkage"]), int(value["n"]), value["note"])


def fit_gaussian(features: np.ndarray, columns: Sequence[str], *, shrink: bool = True) -> Gaussian:
    """The Gaussian of ``features`` (n, F); rows with a NaN are left out and counted in the note.

    ``shrink=False`` takes the sample covariance as it is, unless that is singular. Raises ValueError with fewer than
    two complete rows, which have no spread.
    """
    given = np.asarray(features, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(columns):
        raise ValueError(f"expected features (n, {len(columns)}), got {given.shape}")
    x = given[np.isfinite(given).all(1)]
    n, f = x.shape
    if n < 2:
        raise ValueError(f"{n} measured cell(s) of {len(given)}; a covariance needs at least two")
    notes = [f"{len(given) - n} cells could not be measured"] if n < len(given) else []
    mean, spread = x.mean(0), x.std(0, ddof=1)
    flat = spread <= 1e-9 * np.maximum(np.abs(mean), 1)
    if flat.any():
        notes.append("no spread in " + ", ".join(np.array(columns)[flat]))
    scale = np.where(flat, np.maximum(np.abs(mean), 1), spread)
    z = np.where(flat, 0, (x - mean) / scale)
    sample = z.T @ z / (n - 1)
    singular = np.linalg.matrix_rank(sample, tol=1e-8 * f, hermitian=True) < f
    if n < f + 1:
        notes.append(f"{n} cells for {f} features: the covariance is mostly shrinkage")
    elif singular:
        notes.append("the sample covariance is singular")
    shrinkage = float(ledoit_wolf_shrinkage(z, assume_centered=True)) if shrink or singular else 0.0
    shrinkage = max(shrinkage, FLOOR) if singular else shrinkage
    ball = np.trace(sample) / f
    if ball == 0:
        notes.append("all cells are equal: distances are in units of the mean")
        ball = 1.0
    covariance = (1 - shrinkage) * sample + shrinkage * ball * np.eye(f)
    precision = np.linalg.inv(covariance) / np.outer(scale, scale)
    return Gaussian(tuple(columns), mean, (precision + precision.T) / 2, shrinkage, n, "; ".join(notes))


def distance(gaussian: Gaussian, features: np.ndarray) -> np.ndarray:
    """D_M float64 (N,) of ``features`` (N, F) in the order of ``gaussian.columns``; NaN where a feature is."""
    away = np.asarray(features, dtype=np.float64) - gaussian.mean
    return np.sqrt(np.maximum(((away @ gaussian.precision) * away).sum(1), 0))
