"""The only place that uses zarr: 2.18 and 3 alike."""

from __future__ import annotations

import itertools
import math
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
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
AT_A_TIME = 4  # chunks encoded or decoded
LARGEST_BOX = 2**27  # bytes of chunks; those of a larger box are not kept
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
        return cls(str(path), stamp_of_array(path), shape, axes, len(stored))

    def __getitem__(self, region: Region) -> NDArray[Any]:
        index = [slice(0, 1)] * self.ndim
        for axis, part in zip(self.axes, region, strict=True):
            index[axis] = part
        try:
            check_array(Path(self.path), self.stamp)
            stored = _read(self.path, self.stamp, tuple(index))
        except InputError:
            raise
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
    """Read a box chunk by chunk: those of a small one are kept, others pass a few at a time.

    Left to itself, zarr 3 decodes the more at once, the more chunks a box touches.
    """
    array = _opened(path, stamp)
    numbers = _numbers(array, index)
    box = np.empty([part.stop - part.start for part in index], array.dtype.newbyteorder("="))

    def keep(number: tuple[int, ...]) -> None:
        here, there = overlap(index, _chunk_region(array, number))
        box[here] = _chunk(path, stamp, number)[there]

    def pass_by(number: tuple[int, ...]) -> None:
        here, _ = overlap(index, _chunk_region(array, number))
        box[here] = _decoded(path, stamp, _inside(index, here))

    if len(numbers) * math.prod(array.chunks) * array.dtype.itemsize <= LARGEST_BOX:
        for number in numbers:
            keep(number)
    else:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(pass_by, numbers))
    return box


def _inside(region: tuple[slice, ...], part: tuple[slice, ...]) -> tuple[slice, ...]:
    """Return a part that was counted from the start of a region as the region is counted."""
    both = zip(region, part, strict=True)
    return tuple(slice(r.start + p.start, r.start + p.stop) for r, p in both)


def _numbers(array: Any, index: tuple[slice, ...]) -> list[tuple[int, ...]]:
    """Return the numbers of the chunks that have voxels in a region."""
    spans = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(index, array.chunks, strict=True)
    ]
    return list(itertools.product(*spans))


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
    """Read one chunk, into memory of its own.

    Chunks come and go: what the allocator got back between longer-lived things, it would keep.
    """
    voxels = _decoded(path, stamp, _chunk_region(_opened(path, stamp), number))
    own = np.frombuffer(mmap.mmap(-1, max(1, voxels.nbytes)), voxels.dtype, voxels.size)
    own = own.reshape(voxels.shape)
    own[...] = voxels
    return own


def _decoded(path: str, stamp: Stamp, index: tuple[slice, ...]) -> NDArray[Any]:
    """Read a region of an array that is still there: else its chunks would pass for empty."""
    voxels = _native(_opened(path, stamp)[index])
    check_array(Path(path), stamp)
    return voxels


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


def write_region(array: Any, region: tuple[slice, ...], voxels: NDArray[Any]) -> None:
    """Write a region of an array, a few chunks at a time; whole chunks, if others write too.

    Once this ends, well or not, no chunk is still being written: left to itself, zarr 3 goes on
    with the others after one has failed, and they come up again in a folder that was removed.
    """
    index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(region, array.shape, strict=True))

    def write(number: tuple[int, ...]) -> None:
        chunk = _chunk_region(array, number)
        here, there = overlap(index, chunk)
        array[_inside(chunk, there)] = voxels[here]

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(write, _numbers(array, index)))


def stamp_of_array(path: Path) -> Stamp:
    """Return what changes when an array is written anew."""
    return stamp_of(_metadata(path))


def check_array(path: Path, stamp: Stamp) -> None:
    """Refuse an array that is no longer the one of which this was the stamp."""
    check_unchanged(_metadata(path), stamp, path)


def _metadata(path: Path) -> Path:
    """Return the file that describes an array, in format 3 or 2."""
    newer = path / "zarr.json"
    return newer if newer.is_file() else path / ".zarray"


def _format(number: int) -> dict[str, Any]:
    """Return the option that names a format; 2.18 knows its own alone."""
    return {"zarr_format": number} if FORMAT == 3 else {}
