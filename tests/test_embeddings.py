"""Maps and probes of embeddings: what is in the features is found, what is not is not."""

import numpy as np
import pytest

from wbcrepro.metrics import wilson_interval
from wbcrepro.report.embeddings import Embedded, dealt_folds, guess, plane, probe, probe_frame, read_embedded

RNG = np.random.default_rng(0)
DOMAINS = np.repeat(["a", "b"], 60)
LABELS = np.tile(np.arange(3), 40)


def features(shift, *, seed=1):
    """A class direction for everyone, and one for the laboratory of length ``shift``."""
    z = np.random.default_rng(seed).normal(size=(120, 8)).astype(np.float32)
    z[:, :3] += 6 * np.eye(3, dtype=np.float32)[LABELS]
    z[:, 4] += shift * (DOMAINS == "b")
    return z


def test_every_pair_is_spread_over_the_folds():
    folds = dealt_folds(DOMAINS, LABELS)
    for d in ("a", "b"):
        for c in range(3):
            assert np.bincount(folds[(DOMAINS == d) & (LABELS == c)]).tolist() == [4] * 5


def test_probe_sees_a_shift_and_nothing_where_there_is_none():
    frame = probe_frame({"far": Embedded(features(9), DOMAINS, LABELS), "same": Embedded(features(0), DOMAINS, LABELS)})
    told = frame.set_index(["network", "told"])["percent right"]
    assert told["far", "laboratory"] > 97 and told["far", "class"] > 97 and told["same", "class"] > 97
    line = frame[(frame.network == "same") & (frame.told == "laboratory")].iloc[0]
    assert line.low < 50 < line.high and line["without features"] <= 50
    hits = round(line["percent right"] * 1.2)
    assert [line.low, line.high] == pytest.approx([100 * float(v) for v in wilson_interval(hits, 120)])


def test_a_laboratory_can_be_guessed_from_its_classes():
    labels = np.where(DOMAINS == "a", 0, 1)
    assert guess(labels, DOMAINS, dealt_folds(DOMAINS, labels)).all()


def test_what_the_other_folds_lack_is_wrong_and_no_error():
    targets = np.array(["a", "b"] * 10 + ["once"])
    right = probe(RNG.normal(size=(21, 4)), targets, np.arange(21) % 5)
    assert right.shape == (21,) and not right[20]
    assert not guess(np.arange(21), targets, np.arange(21) % 5)[20]


def test_map_is_the_same_twice_and_serves_few_images(tmp_path):
    z = features(3)[:9]
    np.savez(tmp_path / "embeddings.npz", features=z.astype(np.float16), domains=DOMAINS[:9], labels=LABELS[:9])
    read = read_embedded(tmp_path)
    assert np.array_equal(read.features, z.astype(np.float16).astype(np.float32)) and read.labels.dtype == np.int64
    assert plane(read.features).shape == (9, 2)
    assert np.array_equal(plane(read.features), plane(read.features))
