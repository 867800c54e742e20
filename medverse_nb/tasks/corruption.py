"""Enhancement tasks: what was done to an image, to be undone.

Each function is pure: `(images (N, S, S, S) in [0, 1], generator) -> images`.
Source: Neuroverse3D B.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .fields import integer, smooth_field, uniform


def add_gaussian_noise(images: Tensor, generator: Generator) -> Tensor:
    """Add normal noise of one deviation in 0.15-0.25."""
    sigma = uniform(generator, 0.15, 0.25)
    return images + sigma * torch.randn(images.shape, generator=generator)


def add_salt_and_pepper(images: Tensor, generator: Generator) -> Tensor:
    """Set 4% of the voxels to 1 and 4% to 0."""
    dice = torch.rand(images.shape, generator=generator)
    return torch.where(dice < 0.04, 1.0, torch.where(dice > 0.96, 0.0, images))


def add_bias_field(images: Tensor, generator: Generator) -> Tensor:
    """Multiply each volume by a smooth positive field of its own."""
    side = images.shape[-1]
    fields = torch.cat([smooth_field(generator, side, 3) for _ in images])
    return (images * torch.exp(0.35 * fields)).clamp(0, 1)


def cut_holes(images: Tensor, generator: Generator) -> Tensor:
    """Set random smooth regions, 10 to 30% of each volume, to zero."""
    side, share = images.shape[-1], uniform(generator, 0.1, 0.3)
    control = integer(generator, 4, 8)
    fields = torch.cat([smooth_field(generator, side, control) for _ in images])
    limits = fields.flatten(1).quantile(1 - share, dim=1).view(-1, 1, 1, 1)
    return torch.where(fields > limits, 0.0, images)


CORRUPTIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "gaussian_noise": add_gaussian_noise,
    "salt_and_pepper": add_salt_and_pepper,
    "bias_field": add_bias_field,
    "inpainting": cut_holes,
}
