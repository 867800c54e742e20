"""Volumes that are computed where they are read.

A view has a shape and gives any region of itself as a NumPy array, reading only what is
behind that region. Views stand on arrays (NumPy, memory-mapped, zarr, dask) or on other
views, hold no voxels of their own and can be pickled as far as their sources can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from .geometry import Affine, Reorientation, Shape
from .regions import Region, View, bounds_of, read
from .resampling import FloatArray, resample_affine, resize

_known: WeakValueDictionary[str, Any] = WeakValueDictionary()


def as_dask(view: View, chunks: Sequence[int]) -> da.Array:
    """Return a dask array (X, Y, Z) of a view; `Lazy` of it reads the view itself."""
    array = da.from_array(_Typed(view), chunks=tuple(chunks), asarray=True)
    _known[array.name] = view
    return array


@dataclass(frozen=True)
class _Typed:
    """A view that says what numbers it holds, as dask asks."""

    source: View
    ndim = 3

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        x, y, z = (slice(0, min(1, side)) for side in self.shape)
        return read(self.source, (x, y, z)).dtype

    def __getitem__(self, region: Region) -> NDArray[Any]:
        return read(self.source, region)


@dataclass(frozen=True)
class Lazy:
    """A dask array, read by region in the calling thread."""

    array: da.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, region: Region) -> NDArray[Any]:
        view = _known.get(self.array.name)  # spares a graph a region
        if view is not None:
            return read(view, region)
        return np.asarray(self.array[region].compute(scheduler="synchronous"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the view that `as_dask` was given, which another process would not know."""
        view = _known.get(self.array.name)
        return (Lazy, (self.array,)) if view is None else (_same, (view,))


def _same(view: View) -> View:
    return view


@dataclass(frozen=True)
class Turned:
    """A volume with its axes permuted and flipped."""

    source: View
    turn: Reorientation

    @property
    def shape(self) -> Shape:
        x, y, z = (self.source.shape[axis] for axis in self.turn.source_axes)
        return x, y, z

    def __getitem__(self, region: Region) -> NDArray[Any]:
        behind = [slice(None)] * 3
        for axis, flipped, here in zip(
            self.turn.source_axes, self.turn.flipped, bounds_of(self.shape, region), strict=True
        ):
            size = self.source.shape[axis]
            behind[axis] = slice(size - here.stop, size - here.start) if flipped else here
        return self.turn.apply(read(self.source, (behind[0], behind[1], behind[2])))


@dataclass(frozen=True)
class Mapped:
    """A volume with a function of single voxels applied."""

    source: View
    function: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def __getitem__(self, region: Region) -> NDArray[Any]:
        return self.function(read(self.source, region))


def members(view: View, values: Sequence[int]) -> View:
    """Return the mask of some label values."""
    return Mapped(view, partial(_is_member, values=tuple(values)))


def clipped(view: View) -> View:
    """Return the volume with its values kept in [0, 1]."""
    return Mapped(view, _clip)


def _is_member(labels: NDArray[Any], values: tuple[int, ...]) -> FloatArray:
    found = labels == values[0] if len(values) == 1 else np.isin(labels, values)
    return found.astype(np.float32)


def _clip(volume: NDArray[Any]) -> FloatArray:
    return np.clip(volume, 0, 1).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Resized:
    """A volume resized to `shape`; conventions as in `resampling.resize`."""

    source: View
    shape: Shape
    align_corners: bool = False
    antialias: bool = True

    def __getitem__(self, region: Region) -> FloatArray:
        return resize(
            self.source,
            self.shape,
            align_corners=self.align_corners,
            antialias=self.antialias,
            region=region,
        )


@dataclass(frozen=True)
class Placed:
    """A volume sampled where `matrix` maps the voxels of a grid of `shape` to its own."""

    source: View
    matrix: Affine
    shape: Shape
    edge: bool

    def __getitem__(self, region: Region) -> FloatArray:
        return resample_affine(self.source, self.matrix, self.shape, edge=self.edge, region=region)


@dataclass(frozen=True)
class Padded:
    """A volume with zeros beyond its end, up to `shape`."""

    source: View
    shape: Shape

    def __getitem__(self, region: Region) -> FloatArray:
        result = np.zeros([b.stop - b.start for b in bounds_of(self.shape, region)], np.float32)
        inside = bounds_of(self.source.shape, region)
        x, y, z = (slice(0, s.stop - s.start) for s in inside)
        result[x, y, z] = read(self.source, inside)
        return result


@dataclass(frozen=True)
class Difference:
    """One volume less another of its shape, float32."""

    first: View
    second: View

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.first.shape)

    def __getitem__(self, region: Region) -> FloatArray:
        less: FloatArray = np.subtract(self.first[region], self.second[region], dtype=np.float32)
        return less


@dataclass(frozen=True)
class Part:
    """One volume of an array (K, X, Y, Z)."""

    source: Any
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[1:])

    def __getitem__(self, region: Region) -> NDArray[Any]:
        return np.asarray(self.source[(self.index, *region)])


def mapped(view: View, function: Callable[[NDArray[Any]], NDArray[Any]]) -> View:
    """Apply a function of single voxels: at once in memory, else where the volume is read."""
    return function(view) if isinstance(view, np.ndarray) else Mapped(view, function)


def turned(view: View, turn: Reorientation) -> View:
    """Permute and flip the axes: at once in memory, else where the volume is read."""
    return turn.apply(view) if isinstance(view, np.ndarray) else Turned(view, turn)


def resized(
    view: View, shape: Shape, *, align_corners: bool = False, antialias: bool = True
) -> View:
    """Return the view resized, or itself where it has that shape."""
    return view if tuple(view.shape) == shape else Resized(view, shape, align_corners, antialias)


def crop(view: View, start: Sequence[int], sides: Sequence[int]) -> FloatArray:
    """Return a box of these sides, zero where it lies beyond the end."""
    x, y, z = (slice(a, a + n) for a, n in zip(start, sides, strict=True))
    shape = [max(n, s.stop) for n, s in zip(view.shape, (x, y, z), strict=True)]
    return Padded(view, (shape[0], shape[1], shape[2]))[x, y, z]
