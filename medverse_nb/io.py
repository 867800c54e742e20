"""The place that reads and writes image files: by its kind, each goes to a module of its own.

Whatever comes in leaves as a `DataArray` of `volume`; whatever goes out is written to a
temporary name beside its place and renamed, so that no half-written file is ever left. A
volume larger than `stored.LARGEST_LOADED` stays in its file: its `DataArray` holds a dask
array, whose voxels are read where they are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .checks import VolumeWarning, affine_or_default, checked, finite_volume, refuse_affine
from .dicom import holds_dicom, read_dicom
from .errors import InputError, OutputError
from .files import check_writable
from .nifti import GRID_FIELDS, NIFTI_SUFFIXES, from_nibabel, read_nifti, write_nifti
from .npy import read_npy, write_npy
from .volume import affine_of
from .zarr_volumes import check_store, is_plain_array, is_zarr, read_zarr, write_zarr

__all__ = [
    "GRID_FIELDS",
    "NIFTI_SUFFIXES",
    "Source",
    "VolumeWarning",
    "check_output",
    "name_of",
    "read_volume",
    "source_of",
    "stem_of",
    "write_volume",
]

READABLE = (
    "a NIfTI file (.nii, .nii.gz), .npy, a zarr or DICOM folder, a nibabel image, a DataArray or "
    "a NumPy array"
)
SUFFIXES = (".nii.gz", ".nii", ".npy", ".dcm", ".ome.zarr", ".zarr")
Source = str | os.PathLike[str] | nib.spatialimages.SpatialImage | xr.DataArray | NDArray[Any]


def read_volume(source: Source, affine: Any = None, *, name: str | None = None) -> xr.DataArray:
    """Read one 3D volume with its geometry.

    Parameters
    ----------
    source : path to NIfTI or `.npy`, folder of a zarr array, of an OME-Zarr image
        (`zarr_volumes.read_zarr`) or of one DICOM series (`dicom.read_dicom`), nibabel
        image, `DataArray` of this package, or array (X, Y, Z).
    affine : (4, 4) voxel-to-RAS mm, only for `.npy`, plain zarr arrays and arrays; a `.npy`
        may have a sidecar `NAME.affine.npy`. Without one: unit spacing and a warning.
    name : shown in messages; defaults to the file's name.

    Returns
    -------
    DataArray (x, y, z) in the file's axis order, of OME-Zarr in the order of its axes'
    names; stored scaling applied; integers stay integers. `attrs["changes"]` lists what was
    changed (non-finite voxels replaced by the minimum, an axis of size one dropped);
    `attrs["non_finite"]` counts the voxels replaced; `attrs["source"]` is the path of a file or
    zarr folder. Lazy where a file or zarr folder holds more than `stored.LARGEST_LOADED` bytes
    as float32; a `.nii.gz` of that size is unpacked into scratch space (`scratch`) with a
    warning.

    Raises
    ------
    InputError : missing, damaged, not 3D, empty, or without a finite voxel.
    GeometryError : a singular or non-finite affine.
    OutputError : no scratch space for a large `.nii.gz`.
    """
    if isinstance(source, xr.DataArray):
        affine_of(source)
        return finite_volume(source, name or str(source.name or "volume"))
    if isinstance(source, nib.spatialimages.SpatialImage):
        refuse_affine(affine, "a nibabel image")
        return from_nibabel(source, name or _file_name(source) or "image")
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source), affine, name)
    if isinstance(source, np.ndarray):
        name = name or "array"
        return checked(source, affine_or_default(affine, name), name)
    raise InputError(f"cannot read a {type(source).__name__}; give {READABLE}")


def takes_affine(source: Source) -> bool:
    """Whether `read_volume` takes an affine with a source: one that has none of its own."""
    if isinstance(source, np.ndarray):
        return True
    if not isinstance(source, (str, os.PathLike)):
        return False
    path = Path(source)
    return path.name.lower().endswith(".npy") or is_plain_array(path)


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return a file's name without `.nii.gz`, `.nii`, `.npy`, `.dcm` or `.zarr`, or a folder's."""
    name = _last_name(Path(path))
    for suffix in SUFFIXES:
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


def source_of(source: Source) -> str:
    """Return the path that a source was read from, or "array" where none is known."""
    if isinstance(source, (str, os.PathLike)):
        return str(Path(source).absolute())
    if isinstance(source, xr.DataArray):
        return str(source.attrs.get("source") or source.attrs.get("dicom_folder") or "array")
    filename = None if isinstance(source, np.ndarray) else source.get_filename()
    return str(Path(filename).absolute()) if filename else "array"


def _read_path(path: Path, affine: Any, name: str | None) -> xr.DataArray:
    name = name or _last_name(path) or "volume"
    if path.is_dir() and not (is_zarr(path) or path.name.lower().endswith(".zarr")):
        _refuse_nifti_folder(path)
        refuse_affine(affine, "a DICOM folder")
        return finite_volume(read_dicom(path, name), name)
    volume = _read_voxels(path, affine, name)
    return volume.assign_attrs(source=str(path.absolute()))


def _read_voxels(path: Path, affine: Any, name: str) -> xr.DataArray:
    """Read a zarr folder or a file."""
    kind = path.name.lower()
    if path.is_dir():
        return read_zarr(path, affine, name)
    if not path.exists():
        raise InputError(f"{name}: no such file: {path}")
    if kind.endswith(".npy"):
        return read_npy(path, affine, name)
    if kind.endswith(".dcm"):
        raise InputError(f"{name}: one DICOM file; give the folder that holds its series")
    if not kind.endswith(NIFTI_SUFFIXES):
        raise InputError(f"{name}: unknown kind of file; give {READABLE}")
    refuse_affine(affine, "a NIfTI file")
    return read_nifti(path, name)


def nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted; hidden files are passed over."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")
    ]


def _refuse_nifti_folder(path: Path) -> None:
    """Say what a folder holds instead, before a library for DICOM is asked for."""
    files = nifti_files(path)
    if files and not holds_dicom(path):
        raise InputError(
            f"{path}: a folder with {len(files)} NIfTI files, where one scan is wanted: name one. "
            "predict_many takes a folder of scans, add_context_folder folders of pairs"
        )


def _last_name(path: Path) -> str:
    """Return the last part of a path, also of "." and "..", which stand for a folder."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _file_name(image: nib.spatialimages.SpatialImage) -> str | None:
    filename = image.get_filename()
    return Path(filename).name if filename else None


def write_volume(volume: xr.DataArray, path: str | os.PathLike[str], *, dtype: Any = None) -> Path:
    """Write a volume to `.nii`, `.nii.gz`, `.npy` (with `NAME.affine.npy` beside it) or `.zarr`.

    Where the volume still lies on the grid it was read from, a NIfTI's sform, qform, their
    codes and the units are kept. `.zarr` is an OME-Zarr image; it may replace another zarr
    store, never any other folder. Lazy volumes are written part by part. What is written
    appears whole or not at all.

    Parameters
    ----------
    dtype : of the file; the array's own by default (bool as uint8, float64 as float32).

    Raises
    ------
    OutputError : the place cannot be written.
    """
    path = check_output(path)
    if volume.ndim != 3:
        raise InputError(f"write_volume writes one 3D volume, this one is {volume.dims}; pick one")
    if dtype is None:
        dtype = {"b": np.uint8, "f": np.float32}.get(volume.dtype.kind, volume.dtype)
    kind = path.name.lower()
    if kind.endswith(".zarr"):
        return write_zarr(volume, path, np.dtype(dtype))
    if kind.endswith(".npy"):
        return write_npy(volume, path, np.dtype(dtype))
    return write_nifti(volume, path, np.dtype(dtype))


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a volume could be written there, else raise `OutputError`."""
    path = Path(path)
    kind = path.name.lower()
    if kind.endswith(".zarr"):
        return check_store(path)
    if not kind.endswith((*NIFTI_SUFFIXES, ".npy")):
        raise OutputError(
            f"{path}: results are written as .nii, .nii.gz, .npy or .zarr, masks of DICOM series "
            "also as .dcm"
        )
    return check_writable(path)
