"""The xarray contract: a volume is a `DataArray` whose affine survives every operation.

Dims are the array axes `x, y, z`, in the file's order. Each has a coordinate in
millimetres along that axis, and the scalar coordinate `geometry` (JSON, since xarray takes
no matrix there) turns those millimetres into RAS. Slicing, flipping, striding, transposing
and arithmetic keep all of them, so `affine_of` is right after any of these.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import GeometryError
from .geometry import Affine, Grid, check_affine, spacing_of
from .regions import View
from .views import Lazy

DIMS = ("x", "y", "z")


def make_volume(
    data: Any,
    affine: Any,
    *,
    leading: dict[str, list[Any]] | None = None,
    name: str | None = None,
    attrs: dict[str, Any] | None = None,
) -> xr.DataArray:
    """Wrap an array and its affine.

    Parameters
    ----------
    data : NumPy or dask array (X, Y, Z), or with leading dims named in `leading`.
    affine : (4, 4), voxel to RAS mm.
    leading : coordinates of the leading dims, such as `{"class": ["hippocampus"]}`.

    Raises
    ------
    GeometryError : a singular or non-finite affine.
    """
    matrix = check_affine(affine)
    spacing = np.array(spacing_of(matrix))
    axes = matrix.copy()
    axes[:3, :3] /= spacing
    lead = leading or {}
    coords: dict[str, Any] = dict(lead)
    for dim, size, step in zip(DIMS, data.shape[-3:], spacing, strict=True):
        coords[dim] = (dim, np.arange(size) * step, {"units": "mm"})
    coords["geometry"] = json.dumps({"axes_to_ras": axes.tolist(), "spacing_mm": spacing.tolist()})
    return xr.DataArray(data, coords=coords, dims=(*lead, *DIMS), name=name, attrs=attrs or {})


def with_data(
    volume: xr.DataArray, data: Any, name: str, leading: dict[str, list[Any]] | None = None
) -> xr.DataArray:
    """Wrap other voxels on a volume's grid; leading dims as in `make_volume`."""
    lead = leading or {}
    coords: dict[Any, Any] = {**volume.coords, **lead}
    attrs = {key: value for key, value in volume.attrs.items() if key.startswith("nifti")}
    return xr.DataArray(data, coords=coords, dims=(*lead, *volume.dims), name=name, attrs=attrs)


def affine_of(volume: xr.DataArray) -> Affine:
    """Return the voxel-to-RAS affine of a volume in its present state.

    Axes follow the order of the volume's dims.

    Raises
    ------
    GeometryError : no geometry, or an axis that is no longer evenly spaced.
    """
    if "geometry" not in volume.coords:
        raise GeometryError(
            "this DataArray has no coordinate `geometry`: it was not made by mv.read_volume, or "
            "volumes of different grids were combined; give a NumPy array with affine="
        )
    geometry = json.loads(str(volume.coords["geometry"].values))
    axes, stored = np.array(geometry["axes_to_ras"]), geometry["spacing_mm"]
    affine = np.eye(4)
    origin = axes[:3, 3].copy()
    spatial = [dim for dim in volume.dims if dim in DIMS]
    if len(spatial) != 3:
        raise GeometryError(f"a volume needs the dims {DIMS}, this one has {volume.dims}")
    for column, dim in enumerate(spatial):
        axis = DIMS.index(str(dim))
        positions = np.asarray(volume.coords[dim].values, np.float64)
        if len(positions) == 0:
            raise GeometryError(f"the volume is empty: no voxel along axis {dim!r}")
        step = positions[1] - positions[0] if len(positions) > 1 else stored[axis]
        if step == 0 or not np.allclose(np.diff(positions), step):
            raise GeometryError(f"axis {dim!r} is not evenly spaced any more")
        affine[:3, column] = axes[:3, axis] * step
        origin += axes[:3, axis] * positions[0]
    affine[:3, 3] = origin
    return affine


def grid_of(volume: xr.DataArray) -> Grid:
    """Return shape and affine of a volume's three spatial axes."""
    shape = tuple(int(volume.sizes[dim]) for dim in volume.dims if dim in DIMS)
    return Grid((shape[0], shape[1], shape[2]), affine_of(volume))


def view_of(volume: xr.DataArray) -> View:
    """Return the voxels as something to be read by region; of a dask array, none is read yet."""
    return values_of(volume) if isinstance(volume.data, np.ndarray) else Lazy(volume.data)


def values_of(volume: xr.DataArray) -> NDArray[Any]:
    """Return all voxels as a NumPy array."""
    return np.asarray(volume.values)
