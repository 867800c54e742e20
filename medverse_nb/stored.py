"""Volumes that stay in their file: when they do, and how they are read and written in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import DAMAGE
from .errors import InputError, first_line
from .files import Stamp, check_unchanged
from .geometry import Shape
from .regions import Region, View, read

LARGEST_LOADED = 2**28  # bytes as float32; a larger volume stays in its file
LAZY_CHUNK = (128, 128, 128)
SLAB_BYTES = 2**28  # read or written at once


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether a volume of this shape stays in its file until its voxels are asked for."""
    return 4 * math.prod(shape) > LARGEST_LOADED


@dataclass(frozen=True)
class FileVoxels:
    """Uncompressed voxels in a file, as a view: only the path is kept, so it can be pickled.

    Whatever the file's byte order, what is read has the machine's.
    """

    path: str
    stamp: Stamp
    dtype: np.dtype[Any]
    shape: Shape
    offset: int
    fortran: bool  # voxels along x are neighbours, else those along z

    def __getitem__(self, region: Region) -> NDArray[Any]:
        order = -1 if self.fortran else 1
        try:
            check_unchanged(Path(self.path), self.stamp)
            box = self._read(self.shape[::order], region[::order])
            check_unchanged(Path(self.path), self.stamp)  # nor while it was read
        except InputError:
            raise
        except DAMAGE as error:
            name = Path(self.path).name
            raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error
        return box if order == 1 else box.transpose()

    def _read(self, shape: Sequence[int], region: Sequence[slice]) -> NDArray[Any]:
        """Read a box, the axes as they lie in the file: the last one's voxels are neighbours.

        No memory map: one over a file that is cut short meanwhile kills the process.
        """
        planes, rows, part = region
        _, height, width = shape
        box = np.empty([s.stop - s.start for s in region], self.dtype.newbyteorder("="))
        if not box.size:
            return box
        with open(self.path, "rb") as file:
            for number, plane in enumerate(range(planes.start, planes.stop)):
                first = (plane * height + rows.start) * width
                file.seek(self.offset + first * self.dtype.itemsize)
                content = file.read(box.shape[1] * width * self.dtype.itemsize)
                voxels = np.frombuffer(content, self.dtype)  # too few, if the file ends here
                box[number] = voxels.reshape(box.shape[1], width)[:, part]
        return box


def slab_depth(shape: tuple[int, ...], itemsize: int, axis: int = 2) -> int:
    """Return how many planes across an axis are taken at once: no more than a chunk is deep."""
    plane = itemsize * math.prod(shape) // shape[axis]
    return max(1, min(LAZY_CHUNK[axis], SLAB_BYTES // plane))


def slabs_along(view: View, axis: int, depth: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Go through a volume along an axis: the planes' numbers and their voxels.

    depth : planes at once, best `slab_depth`, so that no chunk is read again for each plane.
    """
    size = view.shape[axis]
    for start in range(0, size, depth):
        planes = slice(start, min(start + depth, size))
        region = [slice(0, side) for side in view.shape]
        region[axis] = planes
        yield planes, read(view, (region[0], region[1], region[2]))
