"""Versions of the algorithms that decide results, and the digests that remind us to raise them.

Raise the integer of an algorithm in ``ALGORITHMS`` when a change can alter its results; every cell that uses it then
gets a new identity. ``tests/algorithm_digests.json`` holds the digest of each module's syntax tree without docstrings;
the test that compares them fails on any change of code, and asks for one of two answers: raise the version, or accept
the new digest because results are the same
(``python -m wbcrepro.experiments.versions > tests/algorithm_digests.json``).

Version 0 is that of an algorithm which was first watched after cells had been made with it: it enters no identity, so
those cells keep theirs. Raised to 1 and more it does, as any other. ``smears`` is in the list of no kind of cell: its
version is ``DRAWING``, which enters the digest of every synthetic image, through it the digest of the data, and
through that the identity of the pixels.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from wbcrepro.data.smears.spec import DRAWING

PACKAGE = Path(__file__).resolve().parents[1]

ALGORITHMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "pixels": (1, ("data/pixels.py", "data/decode.py", "data/degrade.py")),
    "macenko": (
        2,  # 2: another order of float operations; 0.15 % of pixel values moved by 1 to 3 grey levels
        (
            "stain/optical_density.py",
            "stain/closed_forms.py",
            "stain/percentiles.py",
            "stain/macenko.py",
            "stain/reference.json",
        ),
    ),
    "romanowsky": (1, ("stain/romanowsky.py",)),
    "smears": (DRAWING, ("data/smears",)),
    "backbones": (1, ("backbones.py", "backbone_stages.py")),
    "augment": (1, ("augment.py", "augment_rescue.py")),
    "training": (1, ("training.py",)),
    "checkpoints": (0, ("checkpoints.py",)),
    "metrics": (0, ("metrics.py",)),  # early stopping, and the choice of epochs and of tau
    "samplers": (1, ("longtail/samplers.py",)),
    "losses": (1, ("longtail/losses",)),
    "heads": (1, ("longtail/heads",)),
    "tta": (1, ("inference/tta.py",)),
    "scale": (1, ("data/scale.py", "data/scale.yml")),
    # 2: what an algorithm adds to the network (discriminator, projector) starts from the seed of its cell
    "domain_loop": (2, ("domain_training.py", "augment_domains.py", "domains/algorithm.py", "domains/swad.py")),
    "erm": (1, ("domains/erm.py",)),
    "dann": (1, ("domains/dann.py",)),
    "coral": (1, ("domains/coral.py",)),
    "mixup": (1, ("domains/mixup.py",)),
    "selfreg": (1, ("domains/selfreg.py",)),
    "boda": (1, ("domains/boda.py", "domains/coral.py")),
    "mixstyle": (1, ("domains/mixstyle.py",)),
    "sada": (
        1,
        (
            "domains/sada.py",
            "domains/contrastive.py",
            "domains/local_alignment.py",
            "domains/distributed.py",
            "stain/snmf.py",
            "stain/clusters.py",
            "stain/augmentation.py",
            "stain/colour_jitter.py",
        ),
    ),
    "cells": (
        1,
        ("rescue/cells.py", "rescue/nucleus.py", "rescue/outline.py", "rescue/red_cells.py", "rescue/isolate.py"),
    ),
    "cellpose": (1, ("rescue/cells_cellpose.py",)),
    "noise": (1, ("rescue/noise.py",)),
    "pix2pix": (1, ("rescue/pix2pix.py", "restoration_training.py")),
    "restoration_baselines": (1, ("rescue/restoration_baselines.py",)),
    "embedders": (1, ("embedders.py",)),
    "semantic": (
        1,
        ("rescue/contrastive_head.py", "semantic_training.py", "domains/contrastive.py", "domains/distributed.py"),
    ),
    "morphology": (1, ("rescue/morphology.py", "rescue/spikiness.py")),
    "rescue": (
        1,
        (
            "rescue/suppress_rescue.py",
            "rescue/suppress_rescue_code.py",
            "rescue/phases.py",
            "rescue/rules.py",
            "rescue/trace.py",
            "rescue/thresholds.py",
            "rescue/cue_fitting.py",
            "rescue/mahalanobis.py",
        ),
    ),
}
"""Name: (version, files or folders of the package that implement it)."""

USED_BY = {
    "pixels": ("pixels", "macenko", "romanowsky"),
    "train": ("backbones", "augment", "training", "checkpoints", "metrics", "samplers", "losses"),
    "features": ("backbones", "augment", "training", "checkpoints", "tta"),
    "head": ("heads", "losses", "samplers", "metrics"),
    "scaled_pixels": ("pixels", "scale"),
    "domain_train": ("backbones", "domain_loop"),  # and the algorithm itself
    "domain_head": ("backbones", "augment", "heads", "losses", "samplers"),
    "domain_embeddings": ("backbones",),
    "domain_gradcam": ("backbones",),
    "cells": ("cells",),  # and Cellpose where the profile asks for it
    "restorer": ("noise", "pix2pix"),
    "restored": ("noise", "cells", "restoration_baselines"),
    "tta": ("backbones", "tta"),
    "rescored": ("backbones",),
    "embeddings": ("backbones", "embedders"),
    "semantic": ("semantic", "losses", "checkpoints"),
    "morphology": ("morphology",),
    "released_morphology": ("morphology", "cells"),
    "rescue": ("rescue",),
    "online_head": ("backbones", "augment", "training", "checkpoints", "metrics", "samplers", "losses", "tta"),
}
"""Which algorithms the result of each kind of cell depends on (its parents bring their own)."""


def versions_of(kind: str, *further: str) -> dict[str, int]:
    """The versions that enter the identity of a cell of this kind (and of ``further`` algorithms that it uses)."""
    return {name: ALGORITHMS[name][0] for name in (*USED_BY[kind], *further) if ALGORITHMS[name][0] > 0}


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return tree


def digest_of(files: tuple[str, ...]) -> str:
    """sha256 over the syntax trees (no docstrings, comments or layout) of Python files and the bytes of data files."""
    digest = hashlib.sha256()
    for name in files:
        root = PACKAGE / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.suffix == ".py":
                digest.update(ast.dump(_without_docstrings(ast.parse(path.read_text(encoding="utf-8")))).encode())
            elif path.suffix in {".yml", ".json"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def digests() -> dict[str, dict]:
    """``{algorithm: {version, digest}}`` of the code as it is now."""
    return {name: {"version": v, "digest": digest_of(files)} for name, (v, files) in ALGORITHMS.items()}


if __name__ == "__main__":
    print(json.dumps(digests(), indent=1))
