"""What every volume that is read must be: three axes, numbers, finite; and what is told if not."""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import GeometryError, InputError
from .geometry import Affine, Shape, check_affine
from .regions import Region, read
from .views import as_dask, mapped
from .volume import make_volume, values_of, view_of

DAMAGE = (EOFError, zlib.error, OSError, ValueError, OverflowError, MemoryError)
FOURTH_DROPPED = "dropped the fourth axis, of size 1"


class VolumeWarning(UserWarning):
    """Something about a volume was changed or assumed; the message says what."""


def tell(message: str) -> None:
    """Give a `VolumeWarning`, as from the line outside this package that led here."""
    package = __name__.partition(".")[0]
    frame, level = inspect.currentframe(), 0
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, VolumeWarning, stacklevel=level + 1)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect our warnings, to show them beside an answer, and still give them."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VolumeWarning)
        yield messages
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if issubclass(warning.category, VolumeWarning):
            messages.append(str(warning.message))


def refuse_affine(affine: Any, what: str) -> None:
    """Refuse an affine for a source that has one."""
    if affine is not None:
        raise InputError(f"{what} brings its own affine; affine= is for arrays and .npy files")


def affine_or_default(affine: Any, name: str) -> Any:
    """Return the affine, or with a warning that of 1 mm voxels in RAS order."""
    if affine is None:
        tell(f"{name}: no affine given; taking 1 mm voxels in RAS order")
        return np.eye(4)
    return affine


def checked_affine(affine: Any, name: str) -> Affine:
    """Return a source's affine as (4, 4) float64; a `GeometryError` names the source."""
    if affine is None:
        raise GeometryError(f"{name}: has no affine")
    try:
        return check_affine(affine)
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from error


def checked_shape(shape: tuple[int, ...], name: str) -> Shape:
    """Return the three sides of a volume; a fourth axis of size one is left out."""
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) == 4:
        raise InputError(f"{name}: holds {shape[3]} volumes (shape {shape}); give one 3D volume")
    if len(shape) != 3:
        raise InputError(f"{name}: is {len(shape)}D (shape {shape}); a 3D volume is needed")
    if 0 in shape:
        raise InputError(f"{name}: is empty (shape {shape})")
    return shape[0], shape[1], shape[2]


def check_numbers(dtype: np.dtype[Any], name: str) -> None:
    """Refuse voxels that are not real numbers."""
    if dtype.kind not in "biuf":
        raise InputError(f"{name}: voxels of type {dtype} are not numbers")


def checked(
    data: NDArray[Any] | da.Array, affine: Any, name: str, attrs: dict[str, Any] | None = None
) -> xr.DataArray:
    """Return the volume of an array that has been read, or of a dask array that will be.

    attrs : kept; what is changed is added to its list `changes`.
    """
    checked_shape(data.shape, name)
    attrs = attrs or {}
    changes = list(attrs.get("changes", ()))
    if data.ndim == 4:
        data = data[..., 0]
        changes.append(FOURTH_DROPPED)
    check_numbers(data.dtype, name)
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    attrs = {**attrs, "changes": changes}
    volume = make_volume(data, checked_affine(affine, name), name=name, attrs=attrs)
    return finite_volume(volume, name)


def finite_volume(volume: xr.DataArray, name: str) -> xr.DataArray:
    """Return the volume itself, or a copy without its non-finite voxels.

    A lazy volume is gone through chunk by chunk, and its voxels are replaced where they are
    read.
    """
    if volume.dtype.kind != "f":
        return volume
    if volume.ndim == 3 and not isinstance(volume.data, np.ndarray):
        return _finite_lazily(volume, name)
    data, replaced = _finite(values_of(volume), name)
    return _replaced(volume, data, replaced, name) if replaced else volume


def _replaced(volume: xr.DataArray, data: Any, count: int, name: str) -> xr.DataArray:
    """Return a copy with other voxels, and tell how many were replaced."""
    change = f"replaced {count} non-finite voxels by the minimum"
    tell(f"{name}: {change}")
    changes = [*volume.attrs.get("changes", ()), change]
    return volume.copy(data=data).assign_attrs(changes=changes, non_finite=count)


def _finite(data: NDArray[Any], name: str) -> tuple[NDArray[Any], int]:
    finite = np.isfinite(data)
    bad = int(data.size - np.count_nonzero(finite))
    if bad == data.size:
        raise InputError(f"{name}: has no finite voxel")
    if bad:
        data = _filled(data, data[finite].min())
    return data, bad


def _finite_lazily(volume: xr.DataArray, name: str) -> xr.DataArray:
    view, bad, least = view_of(volume), 0, None
    for region in chunks_of(volume.data):
        voxels = read(view, region)
        finite = np.isfinite(voxels)
        count = voxels.size - int(np.count_nonzero(finite))
        bad += count
        if count < voxels.size:
            lowest = (voxels[finite] if count else voxels).min()
            least = lowest if least is None else min(least, lowest)
    if least is None:
        raise InputError(f"{name}: has no finite voxel")
    if not bad:
        return volume
    filled = mapped(view, partial(_filled, value=least))
    return _replaced(volume, as_dask(filled, volume.data.chunksize), bad, name)


def _filled(data: NDArray[Any], value: Any) -> NDArray[Any]:
    return np.where(np.isfinite(data), data, value)


def chunks_of(array: da.Array) -> Iterator[Region]:
    """Yield the regions of a dask array's chunks; along z last, as NIfTI lies in its file."""
    sides = [np.cumsum((0, *sizes)).tolist() for sizes in array.chunks]
    spans = [[slice(start, stop) for start, stop in pairwise(edges)] for edges in sides]
    for z, y, x in product(*reversed(spans)):
        yield x, y, z
