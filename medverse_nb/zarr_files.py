"""The only place that uses zarr: 2.18 and 3 alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import InputError, first_line
from .files import Stamp, check_unchanged, stamp_of
from .geometry import Shape
from .regions import Region

FORMAT = 3 if int(zarr.__version__.split(".")[0]) >= 3 else 2  # written; 3 reads 2 as well


@dataclass(frozen=True)
class ZarrVoxels:
    """Three axes of a stored array as a view: only the path is kept, so it can be pickled.

    Whatever the stored byte order, what is read has the machine's.

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
        index: list[Any] = [0] * self.ndim
        for axis, part in zip(self.axes, region, strict=True):
            index[axis] = part
        try:
            stored = np.asarray(open_array(Path(self.path))[tuple(index)])
        except Exception as error:  # every codec has errors of its own
            where = ", ".join(f"{part.start}:{part.stop}" for part in region)
            raise InputError(
                f"{self.path}: damaged, the voxels [{where}] cannot be decoded "
                f"({first_line(error)})"
            ) from error
        kept = sorted(self.axes)
        native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        return np.transpose(native, [kept.index(axis) for axis in self.axes])


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
