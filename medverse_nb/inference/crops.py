"""What windows read: the volumes of one scale, and the crops of a batch of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ..geometry import Shape
from ..model.memory import release_memory
from ..regions import View, read
from ..resampling import FloatArray
from ..scratch import set_aside
from ..views import crop
from .windows import Window

LARGEST_KEPT = 2**28  # bytes of a scale's volumes that are read once and kept in memory
LARGEST_COARSE = 2**25  # of a coarser scale's; more is read once into scratch files


def cut(view: View, windows: Sequence[Window]) -> FloatArray:
    """Return the voxels of B windows (B, *sides), zero beyond the volume's end."""
    return np.stack([crop(view, window.start, window.sides) for window in windows])


def cut_all(views: Sequence[View], windows: Sequence[Window], axis: int = 0) -> FloatArray:
    """Return the voxels of B windows of several volumes, which are counted along `axis`."""
    shape = [len(windows), *windows[0].sides]
    shape.insert(axis, len(views))
    crops = np.empty(shape, np.float32)  # not a list to stack: many pairs would be held twice
    for crop_of_view, view in zip(np.moveaxis(crops, axis, 0), views, strict=True):
        crop_of_view[...] = cut(view, windows)
    return crops


class Place(StrEnum):
    """Where the volumes of a scale lie while its windows run."""

    MEMORY = "read once, kept in memory"
    SCRATCH = "read once, kept in scratch files"
    SOURCE = "read window by window"


def place_of(count: int, shape: Shape, *, coarse: bool) -> tuple[Place, int]:
    """Return where so many volumes are read from, and the bytes that takes there.

    Windows of a coarser scale see so much of the volumes at once that reading them window by
    window would read the full resolution several times over.
    """
    size = volume_bytes(count, shape)
    if size <= (LARGEST_COARSE if coarse else LARGEST_KEPT):
        return Place.MEMORY, size
    return (Place.SCRATCH, size) if coarse else (Place.SOURCE, 0)


def volume_bytes(count: int, shape: Shape) -> int:
    """Return the bytes of so many volumes in float32."""
    return 4 * count * math.prod(shape)


@dataclass(frozen=True)
class ScaleVolumes:
    """What the windows of one scale read, all of one shape.

    images : L; labels : K lists of L; feedback : the coarser image and its K predictions.
    """

    target: View
    images: Sequence[View]
    labels: Sequence[Sequence[View]]
    feedback: tuple[View, Sequence[View]] | None = None

    @property
    def shape(self) -> Shape:
        """The shape the windows run on."""
        x, y, z = self.target.shape
        return x, y, z

    @property
    def count(self) -> int:
        """How many volumes these are."""
        fed = 1 + len(self.feedback[1]) if self.feedback else 0
        return 1 + len(self.images) + sum(map(len, self.labels)) + fed

    def kept(self, *, coarse: bool) -> ScaleVolumes:
        """Return the same volumes where `place_of` says they are best read from.

        Raises
        ------
        OutputError : no space for scratch files.
        """
        place, _ = place_of(self.count, self.shape, coarse=coarse)
        if place is Place.SOURCE:
            return self

        def keep(view: View) -> View:
            kept: View = read(view) if place is Place.MEMORY else set_aside(view)
            release_memory()  # of the full resolution that went by
            return kept

        return ScaleVolumes(
            keep(self.target),
            [keep(view) for view in self.images],
            [[keep(view) for view in views] for views in self.labels],
            self.feedback and (keep(self.feedback[0]), [keep(view) for view in self.feedback[1]]),
        )


@dataclass(frozen=True)
class Crops:
    """The crops of a batch of B windows: target (B, X, Y, Z), images (B, L, X, Y, Z), labels
    (K, B, L, X, Y, Z) and, fed back, an image (B, X, Y, Z) and predictions (K, B, X, Y, Z)."""

    target: FloatArray
    images: FloatArray
    labels: FloatArray
    feedback: tuple[FloatArray, FloatArray] | None

    @classmethod
    def read(cls, volumes: ScaleVolumes, windows: Sequence[Window]) -> Crops:
        """Read a batch of windows; what lies beyond a volume's end is zero."""
        fed = volumes.feedback
        every_label = [view for views in volumes.labels for view in views]
        labels = cut_all(every_label, windows, axis=1)
        questions = (len(windows), len(volumes.labels), len(volumes.images))
        return cls(
            cut(volumes.target, windows),
            cut_all(volumes.images, windows, axis=1),
            np.moveaxis(labels.reshape(*questions, *windows[0].sides), 1, 0),
            fed and (cut(fed[0], windows), cut_all(fed[1], windows)),
        )
