"""What a loss that compares images with each other needs to know of the other processes of a run.

Convention: every process calls backward on its loss, and parameter gradients are *averaged* over processes, as
``DistributedDataParallel`` does. A loss over all images, computed from ``gather_rows`` by every process, then has the
gradients that one process with all images has.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


def processes() -> int:
    """The number of processes of the default group; 1 where none was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks: (N_r, ...) on rank r to (N_0 + N_1 + ..., ...).

    Differentiable: the gradient of a row returns to the process that owns it, summed over those that used it. Batches
    may differ in length (they are padded on the way). Without a process group the input itself comes back.
    """
    if processes() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather  # absent where torch was built without distributed

    sizes = [int(n) for n in all_gather(torch.tensor(len(rows), device=rows.device))]
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(sizes) - len(rows)))
    return torch.cat([part[:n] for part, n in zip(all_gather(padded.contiguous()), sizes, strict=True)])
