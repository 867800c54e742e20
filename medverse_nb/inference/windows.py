"""Where the sliding windows lie, and what of a volume lies in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..geometry import Shape
from ..regions import Region, View
from ..resampling import FloatArray
from ..views import crop


@dataclass(frozen=True)
class Window:
    """One window: its first voxel and its sides, inside the padded volume."""

    start: Shape
    sides: Shape

    @property
    def region(self) -> Region:
        """The window as slices."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.sides, strict=True))
        return x, y, z


def axis_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return the first voxels of windows along one axis of `size` >= `window` voxels.

    The stride is `int(window * (1 - overlap))`; the last window is shifted inward.
    """
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(size - window) // stride) + 1
    return [min(index * stride, size - window) for index in range(count)]


def plan_windows(shape: Shape, window: int, overlap: float) -> list[Window]:
    """Cover `shape` with windows; axes shorter than the window count as padded to it.

    Raises
    ------
    InputError : overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap must be in [0, 1), got {overlap}")
    starts = [axis_starts(max(side, window), window, overlap) for side in shape]
    sides = (window, window, window)
    return [Window((x, y, z), sides) for x, y, z in itertools.product(*starts)]


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
