"""Image tasks: what was done to an image, to be undone, and one contrast from another.

The `add_`, `cut_` and other verbs are pure, `(images (N, S, S, S) in [0, 1], generator) ->
images`; the tasks put the spoilt images in and ask for the clean ones.
Source: Neuroverse3D B.1, which leaves open what is said under each.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..errors import InputError
from .fields import coarsen, integer, legendre_field, perlin_field, uniform
from .volumes import Volumes

BIAS_DEGREE = 3


def add_bias_field(images: Tensor, generator: Generator) -> Tensor:
    """Multiply each volume by a smooth positive field of its own.

    The logarithm of the field is a sum of Legendre polynomials up to a total degree of 3;
    its coefficients are uniform in [-a, a], where the task draws one a from 0.1-0.4. Then
    each volume is scaled to the maximum it had: nothing is clipped, and no constant is left.
    """
    size = BIAS_DEGREE + 1
    order = torch.arange(size)
    degree = order.view(-1, 1, 1) + order.view(-1, 1) + order
    amplitude = uniform(generator, 0.1, 0.4)
    coefficients = 2 * torch.rand(len(images), size, size, size, generator=generator) - 1
    coefficients = amplitude * coefficients * (degree <= BIAS_DEGREE)
    biased = images * legendre_field(coefficients, images.shape[-1]).exp()
    peak = biased.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (biased * (images.amax((1, 2, 3), keepdim=True) / peak)).clamp(0, 1)


def add_gaussian_noise(images: Tensor, generator: Generator) -> Tensor:
    """Add normal noise of one deviation in 0.15-0.25, clipped to [0, 1]."""
    sigma = uniform(generator, 0.15, 0.25)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def add_salt_and_pepper(images: Tensor, generator: Generator) -> Tensor:
    """Set 4% of the voxels to 1 and 4% to 0."""
    dice = torch.rand(images.shape, generator=generator)
    return torch.where(dice < 0.04, 1.0, torch.where(dice >= 0.96, 0.0, images))


def cut_holes(images: Tensor, generator: Generator) -> Tensor:
    """Set regions of 3D Perlin noise, others in each volume, to zero.

    The task draws the share of holes from 10-30% of the voxels and the noise's cells from
    2-5 an edge; a second octave of half the amplitude roughens their border.
    """
    count, side = len(images), images.shape[-1]
    share, cells = uniform(generator, 0.1, 0.3), integer(generator, 2, 5)
    noise = perlin_field(generator, count, side, cells)
    noise = noise + 0.5 * perlin_field(generator, count, side, 2 * cells)
    kept = max(1, round((1 - share) * side**3))
    limits = noise.flatten(1).kthvalue(kept, dim=1).values.view(-1, 1, 1, 1)
    return torch.where(noise > limits, 0.0, images)


def halve_resolution(
    images: Tensor,
    generator: Generator,  # noqa: ARG001, every degradation has one signature
) -> Tensor:
    """Average blocks of two voxels an edge and interpolate back, linearly."""
    return coarsen(images)


def keep_central_slices(images: Tensor) -> Tensor:
    """Set all but the three central planes, voxel S // 2 of each axis, to zero."""
    middle = images.shape[-1] // 2
    kept = torch.zeros(images.shape[1:], dtype=torch.bool)
    kept[middle] = kept[:, middle] = kept[:, :, middle] = True
    return torch.where(kept, images, 0.0)


def bias_field(volumes: Volumes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Remove a bias field; see `add_bias_field`."""
    return add_bias_field(volumes.images, generator), volumes.images


def gaussian_noise(volumes: Volumes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Remove Gaussian noise; see `add_gaussian_noise`."""
    return add_gaussian_noise(volumes.images, generator), volumes.images


def salt_and_pepper(volumes: Volumes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Remove salt and pepper; see `add_salt_and_pepper`."""
    return add_salt_and_pepper(volumes.images, generator), volumes.images


def inpainting(volumes: Volumes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Fill holes; see `cut_holes`."""
    return cut_holes(volumes.images, generator), volumes.images


def super_resolution(volumes: Volumes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sharpen images of half the resolution; see `halve_resolution`."""
    return halve_resolution(volumes.images, generator), volumes.images


def slices_to_volume(
    volumes: Volumes,
    generator: Generator,  # noqa: ARG001, every task has one signature; this one draws nothing
) -> tuple[Tensor, Tensor]:
    """Complete volumes of which three central slices are left, one for each axis.

    Meant for volumes that share a space; in the paper that is MNI.

    Source: Neuroverse3D B.1 (2D to 3D).
    """
    return keep_central_slices(volumes.images), volumes.images


def modality_transform(
    volumes: Volumes,
    generator: Generator,  # noqa: ARG001, every task has one signature; this one draws nothing
) -> tuple[Tensor, Tensor]:
    """Turn one contrast into the other: `images` in, `second` out.

    Raises
    ------
    InputError : no second contrast.
    """
    if volumes.second is None:
        raise InputError(
            "modality transform needs a second contrast; pass Volumes(images, second=...)"
        )
    return volumes.images, volumes.second
