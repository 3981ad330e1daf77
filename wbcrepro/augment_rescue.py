"""The training augmentation of the paper `rescue`, in batches on the images' device, reproducible by hash.

Horizontal and vertical flips (each with probability 0.5), a rotation by a uniform angle in [-90, 90] degrees (0.5), and
brightness and contrast changed by up to 20 % together (0.2): section 3.1 names flips, rotations up to 90 degrees and
colour jittering; the probabilities, and brightness and contrast alone as the jitter, are those of the released code.

Differs from the released code in: corners that a rotation uncovers are white, as the background of an isolated cell is
(it mirrors the image there); contrast pulls towards the image's own mean grey.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLIP, ROTATE, JITTER = 0.5, 0.5, 0.2
ANGLE, STRENGTH = 90.0, 0.2
UNIFORMS = 7
GREY = (0.299, 0.587, 0.114)


def flips_rotation_jitter(images: Tensor, uniform: np.ndarray) -> Tensor:
    """Augmented copies of images uint8 (N,3,S,S), uint8; ``uniform`` (7,N) in [0, 1) decides what happens to each."""
    device = images.device
    u = torch.from_numpy(uniform).to(device, torch.float32)
    flip_x, flip_y = (1 - 2 * (u[i] < FLIP).float() for i in (0, 1))
    angle = torch.deg2rad((2 * u[3] - 1) * ANGLE) * (u[2] < ROTATE)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # where each output pixel comes from: rotated, then mirrored
    matrix = torch.stack([torch.stack([flip_x * cos, -flip_x * sin, zero], -1),
                          torch.stack([flip_y * sin, flip_y * cos, zero], -1)], 1)  # fmt: skip
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    ink = 255 - images.float()  # zero padding is white
    moved = 255 - F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    jittered = (u[4] < JITTER)[:, None, None, None]
    contrast, brightness = (1 + (2 * u[i] - 1) * STRENGTH for i in (5, 6))
    grey = (moved * torch.tensor(GREY, device=device)[:, None, None]).sum(1).mean((1, 2))[:, None, None, None]
    changed = grey + (moved - grey) * contrast[:, None, None, None]
    changed = changed + 255 * (brightness - 1)[:, None, None, None]
    return torch.where(jittered, changed, moved).round().clamp(0, 255).to(torch.uint8)
