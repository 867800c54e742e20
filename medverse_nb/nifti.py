"""NIfTI files in and out, by nibabel; large ones in parts."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import xarray as xr
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from .checks import (
    DAMAGE,
    FOURTH_DROPPED,
    check_numbers,
    checked,
    checked_affine,
    checked_shape,
)
from .errors import GeometryError, InputError, MedverseError, first_line
from .files import stamp_of, write_atomically
from .geometry import Affine, Shape
from .regions import View
from .scratch import unpack
from .stored import LAZY_CHUNK, FileVoxels, is_large, slab_depth, slabs_along
from .views import as_dask, mapped
from .volume import affine_of, view_of

NIFTI_SUFFIXES = (".nii", ".nii.gz")
GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
GZIP_LARGEST_RATIO = 1032  # of any deflate stream


def read_nifti(path: Path, name: str) -> xr.DataArray:
    """Read a NIfTI file as `io.read_volume` does.

    A large one stays in its file until its voxels are asked for; a large `.nii.gz`, in which
    no place can be looked up, is unpacked into scratch space first.
    """
    try:
        image = cast("nib.spatialimages.SpatialImage", nib.load(path))
        _check_length(image, path, name)
        if isinstance(image, nib.Nifti1Image) and is_large(image.shape):
            return _read_lazily(image, path, name)
        return from_nibabel(image, name)
    except MedverseError:
        raise
    except (ImageFileError, HeaderDataError) as error:
        raise InputError(f"{name}: not a NIfTI image ({first_line(error)})") from error
    except DAMAGE as error:
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error


def _check_length(image: nib.spatialimages.SpatialImage, path: Path, name: str) -> None:
    """Refuse a header that promises more than the file can hold, before memory is taken for it."""
    promised = math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    if promised > path.stat().st_size * (GZIP_LARGEST_RATIO if _is_zipped(path) else 1):
        raise InputError(
            f"{name}: damaged or cut short (the header promises {promised} bytes of voxels for "
            f"shape {image.shape}, the file has {path.stat().st_size})"
        )


def _is_zipped(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def from_nibabel(image: nib.spatialimages.SpatialImage, name: str) -> xr.DataArray:
    """Read a nibabel image as `io.read_volume` does."""
    if image.affine is None:
        raise GeometryError(f"{name}: has no affine")
    checked_shape(tuple(int(n) for n in image.shape), name)  # before any voxel is read
    try:
        data = np.asanyarray(image.dataobj)
        if isinstance(data, np.memmap):  # it would change with the file
            data = np.array(data)
    except DAMAGE as error:  # nibabel reads late
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error
    return checked(data, image.affine, name, grid_attrs(image.header))


def grid_attrs(header: Any) -> dict[str, Any]:
    """Return what of a header says where the grid lies, so that it can be written again."""
    if not isinstance(header, nib.Nifti1Header):
        return {}
    return {
        "nifti_grid": {field: np.array(header[field]).tolist() for field in GRID_FIELDS},
        "nifti_pixdim": np.array(header["pixdim"]).tolist(),
    }


def _read_lazily(image: nib.Nifti1Image, path: Path, name: str) -> xr.DataArray:
    stored = cast("ArrayProxy", image.dataobj)
    shape = checked_shape(stored.shape, name)
    check_numbers(stored.dtype, name)
    affine = checked_affine(image.affine, name)
    view: View
    if _is_zipped(path):
        native = np.dtype(f"{stored.dtype.kind}{min(8, stored.dtype.itemsize)}")
        view = unpack(_unzipped(path, stored, shape, name), shape, native, name)
    else:
        view = FileVoxels(
            str(path.absolute()), stamp_of(path), stored.dtype, shape, stored.offset, fortran=True
        )
    if (stored.slope, stored.inter) != (1, 0):
        view = mapped(view, partial(apply_read_scaling, slope=stored.slope, inter=stored.inter))
    attrs = grid_attrs(image.header)
    if len(stored.shape) == 4:
        attrs["changes"] = [FOURTH_DROPPED]
    return checked(as_dask(view, LAZY_CHUNK), affine, name, attrs)


def _unzipped(path: Path, stored: ArrayProxy, shape: Shape, name: str) -> Iterator[NDArray[Any]]:
    """Yield slabs of planes (X, Y, planes), unscaled, in the order of the file."""
    x, y, z = shape
    depth = slab_depth(shape, stored.dtype.itemsize)
    try:
        with gzip.open(path) as stream:
            stream.seek(stored.offset)
            for start in range(0, z, depth):
                planes = min(depth, z - start)
                content = stream.read(x * y * planes * stored.dtype.itemsize)
                voxels = np.frombuffer(content, stored.dtype)  # too few, if the file ends here
                yield voxels.reshape((x, y, planes), order="F")
            while stream.read(2**20):
                pass  # to the end, where the checksum is
    except DAMAGE as error:
        raise InputError(f"{name}: damaged or cut short ({first_line(error)})") from error


def write_nifti(volume: xr.DataArray, path: Path, dtype: np.dtype[Any]) -> Path:
    """Write a volume as `io.write_volume` does; a lazy one slab by slab along z."""
    view, affine = view_of(volume), affine_of(volume)
    depth = slab_depth(volume.shape, max(dtype.itemsize, volume.dtype.itemsize))
    if dtype in (np.int64, np.uint64):  # outside what most readers take
        _check_32_bits(view, dtype, depth)
        dtype = np.dtype(np.int32)
    try:
        if isinstance(view, np.ndarray):
            image = _to_nifti(np.asarray(view, dtype), affine, volume.attrs)
            return write_atomically(path, lambda part: nib.save(image, part))
        return write_atomically(path, lambda part: _save_parts(part, nifti_parts(volume, dtype)))
    except HeaderDataError as error:
        raise InputError(f"{path}: NIfTI cannot hold {dtype} ({error})") from error


def _check_32_bits(view: View, dtype: np.dtype[Any], depth: int) -> None:
    slabs = (np.asarray(voxels, dtype) for _, voxels in slabs_along(view, 2, depth))
    extremes = [(int(slab.min()), int(slab.max())) for slab in slabs]
    least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
    if not -(2**31) <= least <= most < 2**31:
        raise InputError(
            f"values from {least} to {most} do not fit 32-bit integers; "
            "pass dtype=np.float32 or smaller values"
        )


def _to_nifti(array: NDArray[Any], affine: Affine, attrs: dict[Any, Any]) -> nib.Nifti1Image:
    """Return an image with the header that was read, if the grid is still the same."""
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


def nifti_parts(volume: xr.DataArray, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield a `.nii` file from start to end, byte for byte what `nib.save` writes.

    Voxels are read slab by slab along z.
    """
    blank = np.broadcast_to(np.zeros((), np.uint8), volume.shape)
    header = _to_nifti(blank, affine_of(volume), volume.attrs).header
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    start = io.BytesIO()
    header.write_to(start)
    yield start.getvalue().ljust(header.get_data_offset(), b"\0")
    depth = slab_depth(volume.shape, max(dtype.itemsize, volume.dtype.itemsize))
    for _, voxels in slabs_along(view_of(volume), 2, depth):
        yield np.asarray(voxels, dtype).tobytes(order="F")


def _save_parts(path: Path, parts: Iterator[bytes]) -> None:
    with ImageOpener(str(path), mode="wb") as file:
        for part in parts:
            file.write(part)
