"""The only place that uses zarr: 2.18 and 3 alike."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cachetools
import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import InputError, first_line
from .files import Stamp, check_unchanged, stamp_of
from .geometry import Shape
from .regions import Region, overlap

KEPT_BYTES = 2**28  # of chunks decoded lately, of all arrays together
MOST_KEPT = 27  # chunks; what a larger region reads is not kept
FORMAT = 3 if int(zarr.__version__.split(".")[0]) >= 3 else 2  # written; 3 reads 2 as well


@dataclass(frozen=True)
class ZarrVoxels:
    """Three axes of a stored array as a view: only the path is kept, so it can be pickled.

    Whatever the stored byte order, what is read has the machine's. Chunks that were decoded
    lately are kept, since neighbouring windows read the same ones.

    axes : the stored axes that are x, y and z; any other has size one.
    """

    path: str
    stamp: Stamp
    shape: Shape
    axes: tuple[int, int, int]
    ndim: int

    @classmethod
    def of(cls, path: Path, axes: tuple[int, int, int] = (0, 1, 2)) -> ZarrVoxels:
        """Return a view of an array; no voxel is read."""
        path = path.absolute()
        stored = open_array(path).shape
        shape = stored[axes[0]], stored[axes[1]], stored[axes[2]]
        return cls(str(path), stamp_of(_metadata(path)), shape, axes, len(stored))

    def __getitem__(self, region: Region) -> NDArray[Any]:
        check_unchanged(_metadata(Path(self.path)), self.stamp)
        index = [slice(0, 1)] * self.ndim
        for axis, part in zip(self.axes, region, strict=True):
            index[axis] = part
        try:
            stored = _read(self.path, self.stamp, tuple(index))
        except Exception as error:  # every codec has errors of its own
            where = ", ".join(f"{part.start}:{part.stop}" for part in region)
            raise InputError(
                f"{self.path}: damaged, the voxels [{where}] cannot be decoded "
                f"({first_line(error)})"
            ) from error
        others = [axis for axis in range(self.ndim) if axis not in self.axes]
        moved = np.transpose(stored, [*others, *self.axes])
        return moved.reshape(moved.shape[len(others) :])


def _read(path: str, stamp: Stamp, index: tuple[slice, ...]) -> NDArray[Any]:
    """Read a box, a small one by way of whole chunks."""
    array = _opened(path, stamp)
    spans = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(index, array.chunks, strict=True)
    ]
    numbers = list(itertools.product(*spans))
    if len(numbers) > MOST_KEPT:
        return _native(array[index])
    box = np.empty([part.stop - part.start for part in index], array.dtype.newbyteorder("="))
    for number in numbers:
        here, there = overlap(index, _chunk_region(array, number))
        box[here] = _chunk(path, stamp, number)[there]
    return box


def _chunk_region(array: Any, number: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(n * size, min((n + 1) * size, side))
        for n, size, side in zip(number, array.chunks, array.shape, strict=True)
    )


@cachetools.cached(cachetools.LRUCache(64), lock=threading.Lock())
def _opened(path: str, _stamp: Stamp) -> Any:
    """Open an array that is as it was at that stamp."""
    return open_array(Path(path))


@cachetools.cached(
    cachetools.LRUCache(KEPT_BYTES, getsizeof=lambda chunk: chunk.nbytes), lock=threading.Lock()
)
def _chunk(path: str, stamp: Stamp, number: tuple[int, ...]) -> NDArray[Any]:
    """Read one chunk."""
    array = _opened(path, stamp)
    return _native(array[_chunk_region(array, number)])


def _native(stored: Any) -> NDArray[Any]:
    """Return voxels in the machine's byte order."""
    voxels = np.asarray(stored)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def create_group(path: Path, attributes: dict[str, Any]) -> None:
    """Create a group with these attributes."""
    zarr.open_group(str(path), mode="w", **_format(FORMAT)).attrs.put(attributes)


def create_array(
    path: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: Any,
    axes: tuple[str, ...] | None = None,
) -> None:
    """Create an array of zeros; chunks are no larger than the array, axes may have names."""
    fitting = tuple(max(1, min(n, chunk)) for n, chunk in zip(shape, chunks, strict=True))
    layout: dict[str, Any] = (  # "a/b/c" for a chunk's file, as OME-Zarr asks
        {"dimension_separator": "/"} if FORMAT == 2 else {"dimension_names": axes}
    )
    zarr.open_array(
        str(path), mode="w", shape=shape, chunks=fitting, dtype=np.dtype(dtype), fill_value=0,
        **layout, **_format(FORMAT),
    )  # fmt: skip


def open_array(path: Path, *, writable: bool = False) -> Any:
    """Open an array for reading, or for writing too."""
    stored = 3 if _metadata(path).name == "zarr.json" else 2
    return zarr.open_array(str(path), mode="r+" if writable else "r", **_format(stored))


def _metadata(path: Path) -> Path:
    """Return the file that describes an array, in format 3 or 2."""
    newer = path / "zarr.json"
    return newer if newer.is_file() else path / ".zarray"


def _format(number: int) -> dict[str, Any]:
    """Return the option that names a format; 2.18 knows its own alone."""
    return {"zarr_format": number} if FORMAT == 3 else {}
