"""What a run reads: target, images and labels at any scale, by region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..geometry import Align, Grid, Shape
from ..pair import ContextPair
from ..regions import View
from ..views import Padded, Part, resized
from .recipe import Recipe

Values = tuple[int, ...] | None  # label values of a class; None for an image task


class Inputs(Protocol):
    """L pairs and K questions (classes, or one image task) for one target."""

    @property
    def shape(self) -> Shape:
        """The target's shape at full resolution."""

    def target(self, shape: Shape) -> View:
        """Return the target resized to `shape`, in [0, 1]."""

    def images(self, shape: Shape) -> list[View]:
        """Return the L images on the target's grid resized to `shape`."""

    def labels(self, shape: Shape) -> list[list[View]]:
        """Return K lists of L labels on the same grid."""


@dataclass(frozen=True)
class ArrayInputs:
    """Arrays that share the target's grid: (X, Y, Z), (L, X, Y, Z) and (L, X, Y, Z)."""

    array: Any
    context_image: Any
    context_label: Any
    recipe: Recipe

    @property
    def shape(self) -> Shape:
        return self.recipe.shape

    def target(self, shape: Shape) -> View:
        return self._at(self.array, shape)

    def images(self, shape: Shape) -> list[View]:
        return [self._at(Part(self.context_image, i), shape) for i in range(self._pairs)]

    def labels(self, shape: Shape) -> list[list[View]]:
        return [[self._at(Part(self.context_label, i), shape) for i in range(self._pairs)]]

    @property
    def _pairs(self) -> int:
        return len(self.context_image)

    def _at(self, view: View, shape: Shape) -> View:
        padded = view if tuple(view.shape) == self.shape else Padded(view, self.shape)
        return self.recipe.resize(padded, shape)


@dataclass(frozen=True)
class PairInputs:
    """Context pairs placed on a target's canonical grid, each from its own voxels.

    scan : the target in canonical order, scaled to [0, 1].
    wanted : label values of each class, or `[None]` for an image task.
    """

    scan: View
    grid: Grid
    pairs: Sequence[ContextPair]
    align: Align
    wanted: Sequence[Values]

    @property
    def shape(self) -> Shape:
        return self.grid.shape

    def target(self, shape: Shape) -> View:
        return resized(self.scan, shape)

    def images(self, shape: Shape) -> list[View]:
        level = self.grid.resized(shape)
        return [pair.image_on(level, self.align) for pair in self.pairs]

    def labels(self, shape: Shape) -> list[list[View]]:
        level = self.grid.resized(shape)
        return [
            [pair.label_on(level, self.align, values) for pair in self.pairs]
            for values in self.wanted
        ]
