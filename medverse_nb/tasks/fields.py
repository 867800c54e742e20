"""Random smooth fields and grids: what every synthetic task is drawn from.

All randomness comes from the `torch.Generator` that is passed in; all functions are pure.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
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
    points = torch.randn(channels, control, control, control, generator=generator)
    weights = _linear_weights(side, control)
    return torch.einsum("nijk,xi,yj,zk->nxyz", points, weights, weights, weights)


@cache
def _linear_weights(side: int, control: int) -> Tensor:
    """Return the share of each of `control` points in `side` places, ends on ends."""
    points = torch.eye(control)[None]
    return F.interpolate(points, size=side, mode="linear", align_corners=True)[0].T.contiguous()


def legendre_field(coefficients: Tensor, side: int) -> Tensor:
    """Sum products of Legendre polynomials over a cube spanning [-1, 1].

    Parameters
    ----------
    coefficients : (N, D, D, D); [n, i, j, k] weighs P_i(x) P_j(y) P_k(z) in field n.

    Returns
    -------
    (N, side, side, side) float32, values at voxel centres.
    """
    axis = unit_grid(side)[0, :, 0, 0].numpy()
    basis = np.polynomial.legendre.legvander(axis, coefficients.shape[-1] - 1)
    p = torch.from_numpy(basis).float()
    return torch.einsum("nijk,xi,yj,zk->nxyz", coefficients, p, p, p)


def perlin_field(generator: Generator, count: int, side: int, cells: int) -> Tensor:
    """Draw gradient noise of `cells` cells an edge: (count, side, side, side), zero mean.

    Random unit gradients on the cells' corners, each a linear ramp through zero at its
    corner, are blended by the quintic fade 6 t^5 - 15 t^4 + 10 t^3.
    """
    gradients = torch.randn(count, 3, *[cells + 1] * 3, generator=generator)
    gx, gy, gz = F.normalize(gradients, dim=1).unbind(1)
    places = (torch.arange(side) + 0.5) * (cells / side)
    offsets = places[:, None] - torch.arange(cells + 1)  # (side, corners), in cells
    t = (1 - offsets.abs()).clamp_min(0)
    fade = t**3 * (t * (6 * t - 15) + 10)  # 1 at the corner, 0 one cell away
    ramp = fade * offsets
    blend = "nijk,xi,yj,zk->nxyz"
    return (
        torch.einsum(blend, gx, ramp, fade, fade)
        + torch.einsum(blend, gy, fade, ramp, fade)
        + torch.einsum(blend, gz, fade, fade, ramp)
    )


def random_affine(generator: Generator, amount: float) -> Tensor:
    """Draw a (3, 3) matrix: identity plus normal noise of deviation `amount`."""
    return torch.eye(3) + amount * torch.randn(3, 3, generator=generator)


def unit_grid(side: int) -> Tensor:
    """Return voxel centres of a cube spanning [-1, 1]: (3, side, side, side)."""
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) * (2 / side) - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))


def random_rotation(generator: Generator, deviation: float) -> Tensor:
    """Draw a (3, 3) rotation: about each axis a normal angle of this deviation, in radians."""
    x, y, z = (deviation * torch.randn(3, generator=generator)).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def deformed_grid(
    generator: Generator, side: int, affine: float, elastic: float, turn: float = 0.0
) -> Tensor:
    """Draw a deformed `unit_grid`: pose, affine noise, then elastic displacement.

    affine, elastic : deviations, in half widths. turn : deviation of the angles, in radians.
    """
    matrix = random_affine(generator, affine)
    if turn:
        matrix = matrix @ random_rotation(generator, turn)
    grid = torch.einsum("ij,jxyz->ixyz", matrix, unit_grid(side))
    grid += elastic * smooth_field(generator, side, 4, 3)
    return grid + 0.5 * elastic * smooth_field(generator, side, 8, 3)


SHARP = 0.25  # voxels; a narrower Gaussian has its neighbours below 0.04%


def blur(x: Tensor, sigma: float | tuple[float, float, float]) -> Tensor:
    """Gaussian blur of (..., X, Y, Z), deviation in voxels, also one an axis; edges repeat."""
    y = x.reshape(-1, 1, *x.shape[-3:])
    for axis, deviation in enumerate(sigma if isinstance(sigma, tuple) else (sigma,) * 3):
        if deviation < SHARP:
            continue
        radius = max(1, math.ceil(2.5 * deviation))
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, -1, 1, 1)
        y = y.movedim(2 + axis, 2)
        y = F.conv3d(F.pad(y, (0, 0, 0, 0, radius, radius), mode="replicate"), kernel)
        y = y.movedim(2, 2 + axis)
    return y.reshape(x.shape)


def rescale_quantiles(x: Tensor, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Map these quantiles of one volume to 0 and 1, and clip."""
    flat = x.flatten()
    a, b = torch.quantile(flat[:: max(1, flat.numel() // 8000)], torch.tensor([low, high]))
    return ((x - a) / (b - a).clamp_min(1e-6)).clamp(0, 1)


def reduce_to(x: Tensor, side: int) -> Tensor:
    """Average (S, S, S) down to (side, side, side); S is a multiple of `side`."""
    factor = x.shape[-1] // side
    return x if factor == 1 else F.avg_pool3d(x[None], factor)[0]


def double(x: Tensor) -> Tensor:
    """Double the resolution of (..., X, Y, Z), linearly."""
    flat = x.reshape(-1, 1, *x.shape[-3:])
    large = F.interpolate(flat, scale_factor=2, mode="trilinear", align_corners=False)
    return large.reshape(*x.shape[:-3], *large.shape[-3:])


def coarsen(x: Tensor) -> Tensor:
    """Halve the resolution of (..., X, Y, Z) by averaging and interpolate back, linearly.

    Where a side is odd, the last block is one voxel thick.
    """
    flat = x.reshape(-1, 1, *x.shape[-3:])
    half = F.avg_pool3d(flat, 2, ceil_mode=True)
    back = double(half)
    across, down, deep = x.shape[-3:]
    return back[..., :across, :down, :deep].reshape(x.shape)
