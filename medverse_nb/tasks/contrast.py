"""From label maps to images: synthetic contrasts, the same draw for all pairs of a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .fields import blur, chance, integer, reduce_to, rescale_quantiles, smooth_field, uniform
from .labelmaps import BETWEEN, CSF, GREY, WHITE
from .volumes import LabelDraw

POINT_SPREAD_MM = (0.3, 1.2)  # deviation: scans of 1 mm, sharpened to smoothed
LARGEST_VARIATION, SLOW_FIELDS = 0.08, 2  # of a tissue within itself; fields that drive it


def draw_class_means(draw: LabelDraw, generator: Generator) -> Tensor:
    """Draw one mean intensity in [0, 1] for each class of a task.

    Half of the brains get tissue contrast: grey, white and fluid share a mean each, up to
    small differences, and the order of T1, T2 or neither; so a structure has to be found
    by its place, as in real MRI, and not by a grey value of its own.
    """
    means = torch.rand(len(draw.values), generator=generator)
    if draw.is_brain and chance(generator, 0.6):
        grey, white, fluid = _draw_tissue_means(generator)
        for index, value in enumerate(draw.values):
            small = 0.03 * float(torch.randn((), generator=generator))
            if value in GREY:
                means[index] = grey + small
            elif value in WHITE:
                means[index] = white + small
            elif value in CSF:
                means[index] = fluid + small
            elif value in BETWEEN:
                share = uniform(generator, 0.2, 0.9)
                means[index] = share * white + (1 - share) * grey + small
    if chance(generator, 0.5):
        means[0] = 0.0
    return means


def _draw_tissue_means(generator: Generator) -> tuple[float, float, float]:
    if chance(generator, 0.6):  # T1: fluid darkest, white brightest
        fluid = uniform(generator, 0.0, 0.25)
        grey = uniform(generator, fluid + 0.15, 0.65)
        return grey, uniform(generator, grey + 0.12, 1.0), fluid
    if chance(generator, 0.6):  # T2: the other way round
        white = uniform(generator, 0.05, 0.35)
        grey = uniform(generator, white + 0.1, 0.65)
        return grey, white, uniform(generator, grey + 0.15, 1.0)
    return uniform(generator, 0, 1), uniform(generator, 0, 1), uniform(generator, 0, 1)


def render_images(
    draw: LabelDraw, generator: Generator, side: int, spacing_mm: float = 1.0
) -> Tensor:
    """Paint the maps of one task: (N, side, side, side) in [0, 1], `spacing_mm` a voxel.

    Maps finer than `side` are averaged down, which gives partial volume. Edges are as soft as
    the scanner's point spread makes them, thick slices softer along one axis; tissues vary
    slowly within themselves. The pairs of a task share class means, spreads, sharpness and
    noise level, with a small variation each.
    """
    look = _draw_look(draw, generator, side, spacing_mm)
    return torch.stack([_paint(classes, look, generator, side) for classes in draw.classes])


@dataclass(frozen=True)
class _Look:
    """What the images of one task share; lengths in voxels of the image."""

    means: Tensor  # (classes,) as `spreads` and `variation`
    spreads: Tensor  # deviation of the grain within a class
    variation: Tensor  # how strongly a class takes part in each slow field, (classes, fields)
    patches: int  # control points of the slow fields
    coarse_grain: bool
    softness: tuple[float, float, float]  # deviation of the point spread along each axis
    bias: float
    noise: float
    soft_noise: float  # deviation by which noise is smoothed, 0 for none
    inverted: bool


def _draw_look(draw: LabelDraw, generator: Generator, side: int, spacing_mm: float) -> _Look:
    means = draw_class_means(draw, generator)
    spreads = uniform(generator, 0.005, 0.07) * torch.rand(len(means), generator=generator).mul(1.5)
    amount = uniform(generator, 0, LARGEST_VARIATION)
    softness = [uniform(generator, *POINT_SPREAD_MM) / spacing_mm] * 3
    if chance(generator, 0.2):
        softness[integer(generator, 0, 2)] += uniform(generator, 0.5, 1.5)
    return _Look(
        means,
        spreads,
        amount * torch.randn(len(means), SLOW_FIELDS, generator=generator),
        patches=min(10, max(3, round(side * spacing_mm / uniform(generator, 8, 30)))),
        coarse_grain=chance(generator, 0.5),
        softness=(softness[0], softness[1], softness[2]),
        bias=uniform(generator, 0.1, 0.35) if chance(generator, 0.5) else 0.0,
        noise=uniform(generator, 0.005, 0.07) if chance(generator, 0.7) else 0.0,
        soft_noise=uniform(generator, 0.3, 0.7) if chance(generator, 0.4) else 0.0,
        inverted=chance(generator, 0.05),
    )


def _paint(classes: Tensor, look: _Look, generator: Generator, side: int) -> Tensor:
    """Paint one map, (S, S, S) to (side, side, side)."""
    index = classes.long()
    own = look.means + 0.04 * torch.randn(len(look.means), generator=generator)
    own[0] = look.means[0]
    grain = torch.randn(index.shape, generator=generator)
    if look.coarse_grain:
        grain = 2.0 * blur(grain[None], 0.8)[0]
    image = own[index] + look.spreads[index] * grain
    slow = smooth_field(generator, classes.shape[-1], look.patches, SLOW_FIELDS)
    for amounts, values in zip(look.variation.T, slow, strict=True):
        image = image + amounts[index] * values
    image = blur(reduce_to(image, side), look.softness)
    if look.bias:
        image = image * torch.exp(look.bias * smooth_field(generator, side, 3)[0])
    if look.noise:
        noise = torch.randn(image.shape, generator=generator)
        if look.soft_noise:
            noise = blur(noise, look.soft_noise)
            noise = noise / noise.std()
        image = image + look.noise * noise
    image = rescale_quantiles(image)
    return 1 - image if look.inverted else image
