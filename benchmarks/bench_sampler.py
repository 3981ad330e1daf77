"""Drawing 10 million class-balanced samples: two exact steps against torch's weighted draw."""

import platform
import time

import numpy as np
import torch

from wbcrepro.longtail.samplers import ClassSampler, sample_weights

N = 10_000_000
COUNTS = np.array([17354, 10801, 3661, 2683, 1148, 588, 554, 522, 488, 480, 152, 90, 14])  # WBCBench, head to tail


def _seconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def run(repeats: int = 3) -> list[dict]:
    """Rows for bench.json. ``ratio`` rows are torch's time over ours, in one process."""
    labels = np.random.default_rng(0).choice(len(COUNTS), N, p=COUNTS / COUNTS.sum()).astype(np.int8)

    def ours() -> np.ndarray:
        return ClassSampler(labels, "class_balanced").draw(N, np.random.default_rng(1))

    def theirs() -> torch.Tensor:  # what WeightedRandomSampler calls
        return torch.multinomial(torch.from_numpy(sample_weights(labels, "class_balanced")), N, replacement=True)

    try:
        torch.multinomial(torch.ones(2**24 + 1), 1, replacement=True)
        limit = "works above 2^24 images"
    except RuntimeError:
        limit = "raises above 2^24 images"
    own, peer = _seconds(ours, repeats), _seconds(theirs, repeats)
    name = "sampler: 10 million class-balanced draws"
    common = {"repeats": repeats, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    peer_name = f"torch.multinomial (WeightedRandomSampler), which {limit}"
    return [
        {"name": name, "value": round(own, 2), "unit": "s", "peer": None, **common},
        {"name": f"{name}, torch", "value": round(peer, 2), "unit": "s", "peer": None, **common},
        {"name": f"{name}, speed-up", "value": round(peer / own, 1), "unit": "x", "peer": peer_name, **common},
    ]


if __name__ == "__main__":
    for row in run():
        print(row)
