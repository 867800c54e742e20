"""What windows read: the volumes of one scale, and the crops of a batch of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import Shape
from ..regions import View, read
from ..resampling import FloatArray
from ..views import crop
from .windows import Window

LARGEST_KEPT = 2**26  # bytes of a scale's volumes that are read once and kept


def cut(view: View, windows: Sequence[Window]) -> FloatArray:
    """Return the voxels of B windows (B, *sides), zero beyond the volume's end."""
    return np.stack([crop(view, window.start, window.sides) for window in windows])


def cut_all(views: Sequence[View], windows: Sequence[Window], axis: int = 0) -> FloatArray:
    """Return the voxels of B windows of several volumes, which are counted along `axis`."""
    return np.stack([cut(view, windows) for view in views], axis=axis)


def kept_bytes(count: int, shape: Shape) -> int:
    """Return the bytes of so many volumes where all fit in `LARGEST_KEPT`, else 0."""
    size = 4 * count * math.prod(shape)
    return size if size <= LARGEST_KEPT else 0


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

    def kept(self) -> ScaleVolumes:
        """Return the same volumes in memory where they all fit in `LARGEST_KEPT` bytes."""
        if not kept_bytes(self.count, self.shape):
            return self
        return ScaleVolumes(
            read(self.target),
            [read(view) for view in self.images],
            [[read(view) for view in views] for views in self.labels],
            self.feedback and (read(self.feedback[0]), [read(view) for view in self.feedback[1]]),
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
        return cls(
            cut(volumes.target, windows),
            cut_all(volumes.images, windows, axis=1),
            np.stack([cut_all(views, windows, axis=1) for views in volumes.labels]),
            fed and (cut(fed[0], windows), cut_all(fed[1], windows)),
        )
