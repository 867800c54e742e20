"""Volumes that can be read by region: what a view is, and how to go through one in slabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Region = tuple[slice, slice, slice]
SLAB_VOXELS = 2**21  # read at once; four times as many made peaks grow with the volume


class View(Protocol):
    """A volume (X, Y, Z) that can be read by region; NumPy arrays are views."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Three sides in voxels."""

    def __getitem__(self, region: Region, /) -> Any:
        """Return the voxels of a region, each slice with a start and a stop inside."""


def bounds_of(shape: Sequence[int], region: Region | None) -> Region:
    """Return a region with every start and stop inside `shape`; None is all of it."""
    whole = region or (slice(None), slice(None), slice(None))
    x, y, z = (slice(*s.indices(n)[:2]) for s, n in zip(whole, shape, strict=True))
    return x, y, z


def touch(first: Sequence[slice], second: Sequence[slice]) -> bool:
    """Whether two regions have a voxel in common."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def overlap(
    first: Sequence[slice], second: Sequence[slice]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where two regions have voxels in common, counted from the start of each."""
    both = [
        (max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True)
    ]
    in_first, in_second = (
        tuple(
            slice(low - r.start, high - r.start)
            for (low, high), r in zip(both, region, strict=True)
        )
        for region in (first, second)
    )
    return in_first, in_second


def read(view: View, region: Region | None = None) -> NDArray[Any]:
    """Return the voxels of a region, or all of them, as a NumPy array."""
    return np.asarray(view[bounds_of(view.shape, region)])


def slabs(view: View, region: Region | None = None) -> Iterator[NDArray[Any]]:
    """Go through a volume, or a region of it, along its first axis, a part of it at a time."""
    x, y, z = bounds_of(view.shape, region)
    rows = max(1, SLAB_VOXELS // max(1, (y.stop - y.start) * (z.stop - z.start)))
    for start in range(x.start, x.stop, rows):
        yield np.asarray(view[slice(start, min(start + rows, x.stop)), y, z])
