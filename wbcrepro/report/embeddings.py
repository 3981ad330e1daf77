"""What features still know: a map of them in two dimensions, and linear probes for laboratory and class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wbcrepro.metrics import wilson_interval

COMPONENTS = 50


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE (N, 2) of features (N, D), from their first 50 principal components; the perplexity is at most N / 4."""
    z = np.asarray(features, np.float64)
    z = PCA(min(COMPONENTS, *z.shape), random_state=seed).fit_transform(z)
    perplexity = max(2.0, min(30.0, len(z) / 4))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z)


def probe(
    features: np.ndarray, targets: np.ndarray, folds: int = 5, seed: int = 0, *, groups: np.ndarray | None = None
) -> np.ndarray:
    """Which of N images a linear probe gets right, bool (N,), each predicted by a probe that did not see it.

    Logistic regression on standardised features (N, D), cross-validated by image, or by ``groups`` (N,) text: images of
    one slide, patient or filmed cell are then all seen or all unseen (an empty name is a group of its own), so a slide
    known by heart earns nothing. ``targets`` (N,) of any type. ValueError where all images share one group.
    """
    z, y = np.asarray(features, np.float64), np.asarray(targets)
    right = np.zeros(len(y), bool)
    splits = KFold(min(folds, len(y)), shuffle=True, random_state=seed).split(z)
    if groups is not None and (np.asarray(groups, str) != "").any():
        names = np.asarray(groups, str)
        units = np.unique(np.where(names == "", np.char.add("\0", np.arange(len(y)).astype(str)), names),
                          return_inverse=True)[1]  # fmt: skip
        splits = GroupKFold(min(folds, units.max() + 1)).split(z, groups=units)
    for train, test in splits:
        if len(np.unique(y[train])) == 1:
            right[test] = y[test] == y[train][0]
            continue
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(z[train], y[train])
        right[test] = fitted.predict(z[test]) == y[test]
    return right


def probe_frame(embeddings: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """How well laboratory and class can be told from features, percent with 95 % Wilson intervals; a row each.

    ``embeddings``: ``{name: arrays features (N, D), domains (N,), labels (N,)}``, and ``groups`` (N,) where they are
    known, which keep images of one slide on one side of each split (see `probe`). "laboratory from the class" is what
    a probe knows of the laboratory that sees nothing but the true class: class frequencies differ between laboratories,
    so features may know as much without holding anything but the class.
    """
    lines = []
    for name, arrays in embeddings.items():
        domains, labels = np.asarray(arrays["domains"]), np.asarray(arrays["labels"])
        line: dict[str, object] = {"features": name, "images": len(labels)}
        groups = arrays["groups"] if "groups" in arrays else None
        known = np.eye(int(labels.max()) + 1)[labels]
        for words, right in (
            ("laboratory", probe(arrays["features"], domains, groups=groups)),
            ("class", probe(arrays["features"], labels, groups=groups)),
            ("laboratory from the class", probe(known, domains, groups=groups)),
        ):
            low, high = (100 * float(v) for v in wilson_interval(right.sum(), len(right)))
            line |= {words: 100 * float(right.mean()), f"{words}, low": low, f"{words}, high": high}
        line["largest laboratory"] = 100 * float(np.unique(domains, return_counts=True)[1].max() / len(domains))
        lines.append(line)
    return pd.DataFrame(lines)
