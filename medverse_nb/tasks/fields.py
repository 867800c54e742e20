"""Random smooth fields and grids: what every synthetic task is drawn from.

All randomness comes from the `torch.Generator` that is passed in; all functions are pure.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def integer(generator: Generator, low: int, high: int) -> int:
    """Draw one integer from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def chance(generator: Generator, probability: float) -> bool:
    """Return True with this probability."""
    return float(torch.rand((), generator=generator)) < probability


def smooth_field(generator: Generator, side: int, control: int, channels: int = 1) -> Tensor:
    """Draw normal values on `control`**3 points, linear between: (channels, side, side, side)."""
    points = torch.randn(1, channels, control, control, control, generator=generator)
    return F.interpolate(points, size=(side,) * 3, mode="trilinear", align_corners=True)[0]


def random_affine(generator: Generator, amount: float) -> Tensor:
    """Draw a (3, 3) matrix: identity plus normal noise of deviation `amount`."""
    return torch.eye(3) + amount * torch.randn(3, 3, generator=generator)


def unit_grid(side: int) -> Tensor:
    """Return voxel centres of a cube spanning [-1, 1]: (3, side, side, side)."""
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) * (2 / side) - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))


def deformed_grid(generator: Generator, side: int, affine: float, elastic: float) -> Tensor:
    """Draw a deformed `unit_grid`: affine noise, then elastic displacement, in half widths."""
    grid = torch.einsum("ij,jxyz->ixyz", random_affine(generator, affine), unit_grid(side))
    grid += elastic * smooth_field(generator, side, 4, 3)
    return grid + 0.5 * elastic * smooth_field(generator, side, 8, 3)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (..., X, Y, Z) with deviation `sigma` in voxels; edges repeat."""
    radius = max(1, math.ceil(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1, 1)
    y = x.reshape(-1, 1, *x.shape[-3:])
    for axis in range(3):
        y = y.movedim(2 + axis, 2)
        y = F.conv3d(F.pad(y, (0, 0, 0, 0, radius, radius), mode="replicate"), kernel)
        y = y.movedim(2, 2 + axis)
    return y.reshape(x.shape)


def rescale_quantiles(x: Tensor, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Map these quantiles of one volume to 0 and 1, and clip."""
    flat = x.flatten()
    a, b = torch.quantile(flat[:: max(1, flat.numel() // 20000)], torch.tensor([low, high]))
    return ((x - a) / (b - a).clamp_min(1e-6)).clamp(0, 1)
