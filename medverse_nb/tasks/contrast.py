"""From label maps to images: synthetic contrasts, the same draw for all pairs of a task."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .fields import blur, chance, reduce_to, rescale_quantiles, smooth_field, uniform
from .labelmaps import BETWEEN, CSF, GREY, WHITE
from .volumes import LabelDraw


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


def render_images(draw: LabelDraw, generator: Generator, side: int) -> Tensor:
    """Paint the maps of one task: (N, side, side, side) in [0, 1].

    Maps finer than `side` are averaged down, which gives partial volume. The pairs of a
    task share class means, spreads, blur and noise level, with a small variation each.
    """
    means = draw_class_means(draw, generator)
    spreads = uniform(generator, 0.005, 0.07) * torch.rand(len(means), generator=generator).mul(1.5)
    texture = uniform(generator, 0.0, 1.0)
    blurred = uniform(generator, 0.4, 0.9) if chance(generator, 0.5) else 0.0
    biased = uniform(generator, 0.1, 0.35) if chance(generator, 0.5) else 0.0
    noise = uniform(generator, 0.005, 0.05) if chance(generator, 0.5) else 0.0
    inverted = chance(generator, 0.05)
    images = []
    for classes in draw.classes:
        index = classes.long()
        own = means + 0.04 * torch.randn(len(means), generator=generator)
        own[0] = means[0]
        grain = torch.randn(index.shape, generator=generator)
        if texture > 0.5:
            grain = 2.0 * blur(grain[None], 0.8)[0]
        image = reduce_to(own[index] + spreads[index] * grain, side)
        if blurred:
            image = blur(image[None], blurred)[0]
        if biased:
            image = image * torch.exp(biased * smooth_field(generator, side, 3)[0])
        if noise:
            image = image + noise * torch.randn(image.shape, generator=generator)
        image = rescale_quantiles(image)
        images.append(1 - image if inverted else image)
    return torch.stack(images)
