"""What a task is made from: images of one place in several subjects and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .fields import reduce_to

FIRST_LABEL_OUTSIDE_BRAIN = 500
FLUID_AROUND_BRAIN = 24


def inside_brain(value: int) -> bool:
    """Tell whether a FreeSurfer label lies inside the brain; the fluid around it does not."""
    return 0 < value < FIRST_LABEL_OUTSIDE_BRAIN and value != FLUID_AROUND_BRAIN


@dataclass(frozen=True)
class LabelDraw:
    """Label maps of one task: (N, S, S, S) uint8 indices into `values`.

    `values` are FreeSurfer labels where `is_brain`, of no meaning elsewhere; index 0 is
    background. `never` are values that no task may ask for.

    Raises
    ------
    InputError : another shape or type, or an index without a value.
    """

    classes: Tensor
    values: tuple[int, ...]
    is_brain: bool
    never: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        _require_cubes("label maps", self.classes)
        if self.classes.dtype != torch.uint8:
            raise InputError(f"label maps must be uint8 indices, not {self.classes.dtype}")
        highest = int(self.classes.max())
        if highest >= len(self.values):
            raise InputError(
                f"label maps index values 0..{highest}, but only {len(self.values)} values are given"
            )

    def masks(self, indices: Sequence[int], side: int) -> Tensor:
        """Return soft masks of the chosen classes: (N, side, side, side) in [0, 1].

        Raises
        ------
        InputError : the maps' side is no multiple of `side`.
        """
        fine = self.classes.shape[-1]
        if fine % side:
            raise InputError(f"label maps of side {fine} cannot be averaged down to side {side}")
        member = torch.zeros(len(self.values))
        member[list(indices)] = 1
        return torch.stack([reduce_to(member[classes.long()], side) for classes in self.classes])

    def brain_mask(self, side: int) -> Tensor:
        """Return soft masks of the brain, fluid around it left out; zero where no head is."""
        inside = [i for i, value in enumerate(self.values) if self.is_brain and inside_brain(value)]
        return self.masks(inside, side)


@dataclass(frozen=True)
class Volumes:
    """N volumes of one place, to make a task of.

    Parameters
    ----------
    images : (N, S, S, S) float32 in [0, 1].
    labels : what the images show; the maps' side may be a multiple of S.
    second : (N, S, S, S) float32 in [0, 1], the same subjects in another contrast.

    Raises
    ------
    InputError : another shape, type or range.
    """

    images: Tensor
    labels: LabelDraw | None = None
    second: Tensor | None = None

    def __post_init__(self) -> None:
        _require_images("images", self.images)
        if self.second is not None:
            _require_images("second", self.second)
            if self.second.shape != self.images.shape:
                raise InputError(
                    f"second has shape {tuple(self.second.shape)}, images "
                    f"{tuple(self.images.shape)}; they must agree"
                )
        if self.labels is not None:
            count, side = self.images.shape[0], self.side
            maps = self.labels.classes
            if maps.shape[0] != count or maps.shape[-1] % side:
                raise InputError(
                    f"labels have shape {tuple(maps.shape)}; {count} images of side {side} need "
                    f"{count} maps whose side is a multiple of {side}"
                )

    @property
    def side(self) -> int:
        """Voxels along each edge of an image."""
        return self.images.shape[-1]


def _require_cubes(name: str, x: Tensor) -> None:
    if x.ndim != 4 or not x.numel() or len(set(x.shape[1:])) != 1:
        raise InputError(f"{name} must be cubes (N, S, S, S), not {tuple(x.shape)}")


def _require_images(name: str, x: Tensor) -> None:
    _require_cubes(name, x)
    if x.dtype != torch.float32:
        raise InputError(f"{name} must be float32, not {x.dtype}")
    low, high = (float(value) for value in x.aminmax())
    if not 0 <= low <= high <= 1:
        raise InputError(f"{name} must lie in [0, 1], not [{low:g}, {high:g}]; scale them first")
