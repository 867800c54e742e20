"""The place that reads and writes image files, DICOM in `dicom` included.

Whatever comes in leaves as a `DataArray` of `volume`; whatever goes out is written to a
temporary name beside its place and renamed, so that no half-written file is ever left.
"""

from __future__ import annotations

import math
import os
import warnings
import zlib
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import xarray as xr
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .dicom import read_dicom
from .errors import (
    GeometryError,
    InputError,
    MedverseError,
    NotBuiltYet,
    OutputError,
    first_line,
)
from .files import check_writable, write_atomically
from .volume import affine_of, make_volume, values_of

NIFTI_SUFFIXES = (".nii", ".nii.gz")
READABLE = (
    "a NIfTI file (.nii, .nii.gz), .npy, a DICOM folder, a nibabel image, a DataArray or a NumPy "
    "array"
)
ZARR_MARKS = (".zarray", ".zgroup", "zarr.json")
GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
DAMAGE = (EOFError, zlib.error, OSError, ValueError, OverflowError, MemoryError)
GZIP_LARGEST_RATIO = 1032  # of any deflate stream
Source = str | os.PathLike[str] | nib.spatialimages.SpatialImage | xr.DataArray | NDArray[Any]


class VolumeWarning(UserWarning):
    """Something about a volume was changed or assumed; the message says what."""


def read_volume(source: Source, affine: Any = None, *, name: str | None = None) -> xr.DataArray:
    """Read one 3D volume with its geometry.

    Parameters
    ----------
    source : path to NIfTI or `.npy`, folder with one DICOM series (`dicom.read_dicom`),
        nibabel image, `DataArray` of this package, or array (X, Y, Z).
    affine : (4, 4) voxel-to-RAS mm, only for `.npy` and arrays; a `.npy` may have a
        sidecar `NAME.affine.npy`. Without one: unit spacing and a warning.
    name : shown in messages; defaults to the file's name.

    Returns
    -------
    DataArray (x, y, z) in the file's axis order; stored scaling applied; integers stay
    integers. `attrs["changes"]` lists what was changed (non-finite voxels replaced by the
    minimum, an axis of size one dropped); `attrs["non_finite"]` counts the voxels replaced.

    Raises
    ------
    InputError : missing, damaged, not 3D, empty, or without a finite voxel.
    GeometryError : a singular or non-finite affine.
    """
    if isinstance(source, xr.DataArray):
        affine_of(source)
        return _finite_volume(source, name or str(source.name or "volume"))
    if isinstance(source, nib.spatialimages.SpatialImage):
        _refuse_affine(affine, "a nibabel image")
        return _from_nibabel(source, name or _file_name(source) or "image")
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source), affine, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, affine, name or "array")
    raise InputError(f"cannot read a {type(source).__name__}; give {READABLE}")


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return a file's name without `.nii.gz`, `.nii`, `.npy` or `.dcm`, or a folder's name."""
    name = _last_name(Path(path))
    for suffix in (".nii.gz", ".nii", ".npy", ".dcm"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def name_of(source: Source) -> str:
    """Return a short name for a source: its file's without extension, its folder's, or "volume"."""
    if isinstance(source, (str, os.PathLike)):
        return stem_of(source) or "volume"
    if isinstance(source, xr.DataArray):
        return stem_of(str(source.name or "volume"))
    if isinstance(source, nib.spatialimages.SpatialImage):
        return stem_of(_file_name(source) or "volume")
    return "volume"


def _read_path(path: Path, affine: Any, name: str | None) -> xr.DataArray:
    name = name or _last_name(path) or "volume"
    if path.is_dir():
        return _read_folder(path, affine, name)
    if not path.exists():
        raise InputError(f"{name}: no such file: {path}")
    if path.name.lower().endswith(".npy"):
        return _from_array(_load_npy(path, name), _sidecar_affine(path, affine), name)
    if path.name.lower().endswith(".dcm"):
        raise InputError(f"{name}: one DICOM file; give the folder that holds its series")
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise InputError(f"{name}: unknown kind of file; give {READABLE}")
    _refuse_affine(affine, "a NIfTI file")
    try:
        image = cast("nib.spatialimages.SpatialImage", nib.load(path))
        _check_length(image, path, name)
        return _from_nibabel(image, name)
    except MedverseError:
        raise
    except (ImageFileError, HeaderDataError) as error:
        raise InputError(f"{name}: not a NIfTI image ({first_line(error)})") from error
    except DAMAGE as error:
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error


def _last_name(path: Path) -> str:
    """Return the last part of a path, also of "." and "..", which stand for a folder."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _read_folder(path: Path, affine: Any, name: str) -> xr.DataArray:
    if path.name.lower().endswith(".zarr") or any((path / mark).exists() for mark in ZARR_MARKS):
        raise NotBuiltYet(f"{path} is a zarr folder: zarr comes with the engine issue")
    _refuse_affine(affine, "a DICOM folder")
    return _finite_volume(read_dicom(path, name), name)


def _check_length(image: nib.spatialimages.SpatialImage, path: Path, name: str) -> None:
    """Refuse a header that promises more than the file can hold, before memory is taken for it."""
    promised = math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    zipped = path.name.lower().endswith(".gz")
    if promised > path.stat().st_size * (GZIP_LARGEST_RATIO if zipped else 1):
        raise InputError(
            f"{name}: damaged or cut short (the header promises {promised} bytes of voxels for "
            f"shape {image.shape}, the file has {path.stat().st_size})"
        )


def _file_name(image: nib.spatialimages.SpatialImage) -> str | None:
    filename = image.get_filename()
    return Path(filename).name if filename else None


def _refuse_affine(affine: Any, what: str) -> None:
    if affine is not None:
        raise InputError(f"{what} brings its own affine; affine= is for arrays and .npy files")


def _load_npy(path: Path, name: str) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(
                f"{name}: refused, the .npy holds pickled objects, not numbers"
            ) from error
        raise InputError(f"{name}: damaged or not a .npy file ({first_line(error)})") from error
    except (EOFError, OSError) as error:
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error
    if not isinstance(loaded, np.ndarray):
        raise InputError(f"{name}: an archive of arrays, not one array")
    return loaded


def _sidecar_affine(path: Path, affine: Any) -> Any:
    sidecar = path.with_name(stem_of(path) + ".affine.npy")
    if affine is None and sidecar.is_file():
        return _load_npy(sidecar, sidecar.name)
    return affine


def _from_array(array: NDArray[Any], affine: Any, name: str) -> xr.DataArray:
    if affine is None:
        warnings.warn(
            f"{name}: no affine given; taking 1 mm voxels in RAS order", VolumeWarning, stacklevel=4
        )
        affine = np.eye(4)
    return _checked(array, affine, name, {})


def _from_nibabel(image: nib.spatialimages.SpatialImage, name: str) -> xr.DataArray:
    if image.affine is None:
        raise GeometryError(f"{name}: has no affine")
    shape = tuple(int(n) for n in image.shape)
    _check_shape(shape, name)  # before any voxel is read
    try:
        data = np.asanyarray(image.dataobj)
    except DAMAGE as error:  # nibabel reads late
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error
    header = image.header
    attrs: dict[str, Any] = {}
    if isinstance(header, nib.Nifti1Header):
        attrs["nifti_grid"] = {field: np.array(header[field]).tolist() for field in GRID_FIELDS}
        attrs["nifti_pixdim"] = np.array(header["pixdim"]).tolist()
    return _checked(data, image.affine, name, attrs)


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) == 4:
        raise InputError(f"{name}: holds {shape[3]} volumes (shape {shape}); give one 3D volume")
    if len(shape) != 3:
        raise InputError(f"{name}: is {len(shape)}D (shape {shape}); a 3D volume is needed")
    if 0 in shape:
        raise InputError(f"{name}: is empty (shape {shape})")


def _checked(data: NDArray[Any], affine: Any, name: str, attrs: dict[str, Any]) -> xr.DataArray:
    _check_shape(data.shape, name)
    changes: list[str] = []
    if data.ndim == 4:
        data = data[..., 0]
        changes.append("dropped the fourth axis, of size 1")
    if data.dtype.kind not in "biuf":
        raise InputError(f"{name}: voxels of type {data.dtype} are not numbers")
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    try:
        volume = make_volume(data, affine, name=name, attrs={**attrs, "changes": changes})
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from error
    return _finite_volume(volume, name)


def _finite_volume(volume: xr.DataArray, name: str) -> xr.DataArray:
    """Return the volume itself, or a copy without its non-finite voxels."""
    if volume.dtype.kind != "f":
        return volume
    data, replaced = _finite(values_of(volume), name)
    if not replaced:
        return volume
    change = f"replaced {replaced} non-finite voxels by the minimum"
    warnings.warn(f"{name}: {change}", VolumeWarning, stacklevel=5)
    changes = [*volume.attrs.get("changes", ()), change]
    return volume.copy(data=data).assign_attrs(changes=changes, non_finite=replaced)


def _finite(data: NDArray[Any], name: str) -> tuple[NDArray[Any], int]:
    finite = np.isfinite(data)
    bad = int(data.size - np.count_nonzero(finite))
    if bad == data.size:
        raise InputError(f"{name}: has no finite voxel")
    if bad:
        data = np.where(finite, data, data[finite].min())
    return data, bad


def write_volume(volume: xr.DataArray, path: str | os.PathLike[str], *, dtype: Any = None) -> Path:
    """Write a volume to `.nii`, `.nii.gz` or `.npy` (with `NAME.affine.npy` beside it).

    Where the volume still lies on the grid it was read from, the file's sform, qform,
    their codes and the units are kept. The file appears whole or not at all.

    Parameters
    ----------
    dtype : of the file; the array's own by default (bool as uint8, float64 as float32).

    Raises
    ------
    OutputError : the place cannot be written.
    """
    path = check_output(path)
    array = values_of(volume)
    if array.ndim != 3:
        raise InputError(f"write_volume writes one 3D volume, this one is {volume.dims}; pick one")
    if dtype is None:
        dtype = {"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype)
    array = np.asarray(array, dtype)
    affine = affine_of(volume)
    if path.name.lower().endswith(".npy"):
        write_atomically(
            path.with_name(stem_of(path) + ".affine.npy"),
            lambda partial: _save_npy(partial, affine),
        )
        return write_atomically(path, lambda partial: _save_npy(partial, array))
    try:
        image = _to_nifti(array, affine, volume.attrs)
    except HeaderDataError as error:
        raise InputError(f"{path}: NIfTI cannot hold {array.dtype} ({error})") from error
    return write_atomically(path, lambda partial: nib.save(image, partial))


def _save_npy(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:  # given a name, NumPy adds a suffix of its own to "A.NPY"
        np.save(file, array)


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a volume could be written there, else raise `OutputError`."""
    path = Path(path)
    if not path.name.lower().endswith((*NIFTI_SUFFIXES, ".npy")):
        raise OutputError(
            f"{path}: results are written as .nii, .nii.gz or .npy, masks of DICOM series also as .dcm"
        )
    return check_writable(path)


def _to_nifti(
    array: NDArray[Any], affine: NDArray[np.float64], attrs: dict[str, Any]
) -> nib.Nifti1Image:
    if array.dtype in (np.int64, np.uint64):  # outside what most readers take
        if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
            raise InputError(
                f"values from {array.min()} to {array.max()} do not fit 32-bit integers; "
                "pass dtype=np.float32 or smaller values"
            )
        array = array.astype(np.int32)
    image = nib.Nifti1Image(array, affine)
    grid = attrs.get("nifti_grid")
    if grid is None:
        image.header.set_xyzt_units("mm")
        return image
    kept = image.header.copy()
    for field, value in grid.items():
        kept[field] = value
    # Signs of pixdim[0] and sizes belong to the qform's quaternion.
    kept["pixdim"][:4] = attrs["nifti_pixdim"][:4]
    if np.allclose(kept.get_best_affine(), affine, atol=1e-4):
        image = nib.Nifti1Image(array, None, kept)
    return image
