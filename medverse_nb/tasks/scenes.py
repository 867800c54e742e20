"""Where a task's volumes come from: one place in several subjects, painted when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from .contrast import render_images
from .fields import integer, uniform
from .labelmaps import HeadMap, draw_head_labels, draw_shape_labels
from .volumes import LabelDraw

FINEST_MM, WIDEST_MM = 0.85, 240.0  # a voxel of the finest crops, the whole of the widest
SMALL_CROPS = 1.7  # the exponent of the width's draw: more than half of the crops below 64 mm


@dataclass(frozen=True)
class Scene:
    """One place in N subjects: what is there, and how it looks.

    paint : draws the images (N, window, window, window) in [0, 1].
    any_contrast : each call of `paint` gives another contrast; else it is always the same.
    """

    labels: LabelDraw
    paint: Callable[[Generator], Tensor]
    any_contrast: bool = True


class Source(Protocol):
    """Draws scenes."""

    def draw(self, generator: Generator, count: int, window: int, *, finer: bool = True) -> Scene:
        """Draw one place in `count` subjects, images of side `window`.

        `finer` labels, twice the side, give partial volume, at a price.
        """


@dataclass(frozen=True)
class HeadSource:
    """Crops of heads at the same place of each, 0.85 mm a voxel to 240 mm wide, painted."""

    heads: Sequence[HeadMap] = field(repr=False)
    never: frozenset[int] = frozenset()

    def draw(self, generator: Generator, count: int, window: int, *, finer: bool = True) -> Scene:
        share = uniform(generator, 0, 1) ** SMALL_CROPS
        narrowest = FINEST_MM * window
        width_mm = narrowest * (WIDEST_MM / narrowest) ** share
        fine = 2 * window if finer and width_mm > 1.4 * window else window
        labels = draw_head_labels(self.heads, generator, count, fine, width_mm)
        return painted(replace(labels, never=self.never), window, width_mm / window)


@dataclass(frozen=True)
class ShapeSource:
    """Random smooth shapes, deformed from subject to subject, in synthetic contrast."""

    def draw(self, generator: Generator, count: int, window: int, *, finer: bool = True) -> Scene:
        fine = window * (integer(generator, 1, 2) if finer else 1)
        labels = draw_shape_labels(generator, count, fine)
        return painted(labels, window, uniform(generator, FINEST_MM, 4.0))


@dataclass(frozen=True)
class Mixture:
    """Several sources, each drawn from at its rate."""

    sources: Sequence[Source]
    rates: Sequence[float]

    def choose(self, generator: Generator) -> Source:
        """Choose a source; a scene without a foreground is then drawn again from the same."""
        weights = torch.tensor(self.rates, dtype=torch.float64)
        return self.sources[int(torch.multinomial(weights, 1, generator=generator))]


def painted(labels: LabelDraw, window: int, spacing_mm: float) -> Scene:
    """Give labels a synthetic contrast, sharp as a scan of this spacing."""
    return Scene(labels, lambda generator: render_images(labels, generator, window, spacing_mm))
