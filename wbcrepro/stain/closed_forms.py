"""Small linear algebra in closed form, batched: no iteration, no library call that waits for the host, no NaN."""

import math

import torch


def symmetric_eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (N,3), descending, and eigenvectors (N,3,3), in columns, of symmetric (N,3,3) matrices.

    LAPACK on a CPU; elsewhere the closed form, because ``torch.linalg.eigh`` waits for the host on CUDA.
    """
    if matrix.device.type != "cpu":
        return closed_form_eigenvectors(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(1), vectors.flip(2)


def closed_form_eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the cosine of a third of an angle (Smith, CACM 1961) and cross products.

    Zero vectors, never NaN, where no direction is distinguished.
    """
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    tiny = torch.finfo(matrix.dtype).tiny
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)
    shifted = matrix - mean[:, None, None] * eye
    spread = (shifted.square().sum((1, 2)) / 6).sqrt()
    scaled = shifted / spread.clamp_min(tiny)[:, None, None]
    r0, r1, r2 = scaled.unbind(1)
    determinant = (r0 * torch.linalg.cross(r1, r2)).sum(1)
    angle = (determinant / 2).clamp(-1, 1).acos() / 3
    turns = torch.stack([angle, angle - 2 * math.pi / 3, angle + 2 * math.pi / 3], 1)
    values = mean[:, None] + 2 * spread[:, None] * turns.cos()

    def null_vector(value):  # the rows of (A - value I) span the plane that the eigenvector is normal to
        rows = matrix - value[:, None, None] * eye
        normals = torch.linalg.cross(rows, rows.roll(1, 1), dim=2)
        best = normals.square().sum(2).argmax(1)
        return _unit(normals.gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0])

    smallest = null_vector(values[:, 2])
    largest = null_vector(values[:, 0])
    largest = _unit(largest - (largest * smallest).sum(1, keepdim=True) * smallest)
    return values, torch.stack([largest, torch.linalg.cross(smallest, largest), smallest], 2)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    largest = vectors.abs().amax(1, keepdim=True)  # scale first: squares of small entries would underflow
    vectors = vectors / torch.where(largest > 0, largest, 1)
    norm = vectors.square().sum(1, keepdim=True).sqrt()
    return vectors / torch.where(norm > 0, norm, 1)


def least_squares_inverse(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,2,3) matrices that give the least-squares densities for (N,3,2) stain matrices, and the determinants (N,).

    ``(W'W)^-1 W'`` with the 2x2 inverse written out. The determinant of ``W'W`` is the squared sine between two unit
    stains; where it is not positive the inverse is meaningless (but finite).
    """
    first, second = matrix[:, :, 0], matrix[:, :, 1]
    a, b, c = (first * first).sum(1), (first * second).sum(1), (second * second).sum(1)
    determinant = a * c - b * b
    safe = torch.where(determinant > 0, determinant, 1)[:, None]
    rows = (c[:, None] * first - b[:, None] * second, a[:, None] * second - b[:, None] * first)
    return torch.stack(rows, 1) / safe[:, None], determinant
