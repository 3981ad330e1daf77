"""k-means, batched over restarts, as SADA's released code runs it, with a bound on everything it repeats.

Lloyd's algorithm on squared Euclidean distance from k different points drawn at random, until no centroid changes or
100 rounds are over. A restart in which a cluster runs empty does not count; of five that count the first with the least
summed squared distance wins.

Differs from the released code in: where restarts keep failing (k larger than the number of different points) it gives
up after ten batches of five and takes the best there is, an empty cluster keeping its centroid; there it never ends.
"""

from dataclasses import dataclass

import torch

ROUNDS, RESTARTS, BATCHES = 100, 5, 10


@dataclass(frozen=True)
class Clusters:
    """Of R restarts on N points of D numbers: labels int64 (R,N), centroids (R,k,D), inertia (R,), valid bool (R,).

    Label i belongs to the i-th starting point. ``valid``: no cluster was empty in any round.
    """

    labels: torch.Tensor
    centroids: torch.Tensor
    inertia: torch.Tensor
    valid: torch.Tensor


def lloyd(points: torch.Tensor, starts: torch.Tensor, rounds: int = ROUNDS) -> Clusters:
    """k-means on points (N,D) from the rows named in ``starts`` int64 (R,k), all restarts at once."""
    centroids = points[starts]
    k = starts.shape[1]
    valid = torch.ones(len(starts), dtype=torch.bool, device=points.device)
    for _ in range(rounds):
        labels = _distances(points, centroids).argmin(2)
        member = torch.nn.functional.one_hot(labels, k).to(points.dtype)
        count = member.sum(1)[:, :, None]
        valid &= (count > 0).flatten(1).all(1)
        moved = torch.where(count > 0, member.mT @ points / count.clamp_min(1), centroids)
        done = torch.equal(moved, centroids)
        centroids = moved
        if done:
            break
    nearest = _distances(points, centroids).min(2)
    return Clusters(nearest.indices, centroids, nearest.values.sum(1), valid)


def _distances(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (points[None, :, None] - centroids[:, None]).square().sum(3)


def random_starts(n: int, k: int, restarts: int, generator: torch.Generator) -> torch.Tensor:
    """int64 (restarts, k): k different rows of n for each restart."""
    return torch.stack([torch.randperm(n, generator=generator, device=generator.device)[:k] for _ in range(restarts)])


def kmeans_labels(
    points: torch.Tensor, k: int, *, generator: torch.Generator, restarts: int = RESTARTS
) -> torch.Tensor:
    """Cluster of each of points (N,D), int64 (N,); k is lowered to N; on points of fewer kinds some are empty."""
    k = min(k, len(points))
    if k < 2:
        return torch.zeros(len(points), dtype=torch.int64, device=points.device)
    tried: list[Clusters] = []
    for _ in range(BATCHES):
        tried.append(lloyd(points, random_starts(len(points), k, restarts, generator).to(points.device)))
        if sum(int(found.valid.sum()) for found in tried) >= restarts:
            break
    labels, inertia, valid = (torch.cat([getattr(t, name) for t in tried]) for name in ("labels", "inertia", "valid"))
    if valid.any():
        labels, inertia = labels[valid][:restarts], inertia[valid][:restarts]
    return labels[inertia.argmin()]
