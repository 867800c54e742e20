"""`.npy` files in and out, with the affine in `NAME.affine.npy` beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .checks import FOURTH_DROPPED, affine_or_default, check_numbers, checked, checked_shape
from .errors import InputError, first_line
from .files import stamp_of, write_atomically
from .regions import View
from .stored import LAZY_CHUNK, FileVoxels, is_large, slab_depth, slabs_along
from .views import as_dask
from .volume import affine_of, view_of


def read_npy(path: Path, affine: Any, name: str) -> xr.DataArray:
    """Read a `.npy` as `io.read_volume` does; a large one stays in its file."""
    mapped = _mapped(path)
    if mapped is None or not is_large(mapped.shape):
        return checked(_load(path, name), _affine_for(path, affine, name), name)
    x, y, z = checked_shape(mapped.shape, name)
    check_numbers(mapped.dtype, name)
    stored = np.dtype(np.uint8) if mapped.dtype.kind == "b" else mapped.dtype
    fortran = not mapped.flags.c_contiguous
    view = FileVoxels(
        str(path.absolute()), stamp_of(path), stored, (x, y, z), mapped.offset, fortran
    )
    attrs = {"changes": [FOURTH_DROPPED] if mapped.ndim == 4 else []}
    return checked(as_dask(view, LAZY_CHUNK), _affine_for(path, affine, name), name, attrs)


def _mapped(path: Path) -> np.memmap[Any, Any] | None:
    """Return the file's array without reading it, or None where that cannot be had."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None  # reading it tells what is wrong
    return mapped if isinstance(mapped, np.memmap) else None


def _load(path: Path, name: str) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(
                f"{name}: refused, the .npy holds pickled objects, not numbers"
            ) from error
        raise InputError(f"{name}: damaged or not a .npy file ({first_line(error)})") from error
    except (EOFError, OSError, MemoryError) as error:
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error
    if not isinstance(loaded, np.ndarray):
        raise InputError(f"{name}: an archive of arrays, not one array")
    return loaded


def _affine_for(path: Path, affine: Any, name: str) -> Any:
    """Return the affine given, else the one beside the file, else the default with a warning."""
    sidecar = _sidecar(path)
    if affine is None and sidecar.is_file():
        return _load(sidecar, sidecar.name)
    return affine_or_default(affine, name)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name[: -len(".npy")] + ".affine.npy")


def write_npy(volume: xr.DataArray, path: Path, dtype: np.dtype[Any]) -> Path:
    """Write a volume and its affine; a lazy volume slab by slab."""
    view, affine = view_of(volume), affine_of(volume)
    depth = slab_depth(volume.shape, max(dtype.itemsize, volume.dtype.itemsize), 0)

    def write(partial: Path) -> None:
        if isinstance(view, np.ndarray):
            _save(partial, np.asarray(view, dtype))
        else:
            _save_slabs(partial, view, dtype, depth)
        write_atomically(_sidecar(path), lambda beside: _save(beside, affine))

    return write_atomically(path, write)


def _save(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:  # given a name, NumPy adds a suffix of its own to "A.NPY"
        np.save(file, array)


def _save_slabs(path: Path, view: View, dtype: np.dtype[Any], depth: int) -> None:
    """Write a volume from start to end; into a memory map, a full disk would kill the process."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(view.shape),
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        slabs = slabs_along(view, 0, depth)
        file.writelines(np.asarray(voxels, dtype).tobytes() for _, voxels in slabs)
