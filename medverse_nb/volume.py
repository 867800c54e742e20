"""The xarray contract: a volume is a `DataArray` whose affine survives every operation.

Dims are the array axes `x, y, z`, in the file's order. Each has a coordinate in
millimetres along that axis, and the scalar coordinate `geometry` (JSON, since xarray takes
no matrix there) turns those millimetres into RAS. Slicing, flipping, striding, transposing
and arithmetic keep all of them, so `affine_of` is right after any of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import GeometryError
from .geometry import Affine, Grid, check_affine, spacing_of
from .regions import View, slabs
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
    steps = zip(data.shape[-3:], spacing, strict=True)
    coords = _coords(DIMS, axes, spacing, [np.arange(size) * step for size, step in steps])
    return xr.DataArray(
        data, coords={**lead, **coords}, dims=(*lead, *DIMS), name=name, attrs=attrs or {}
    )


def _coords(
    dims: Sequence[str],
    axes_to_ras: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
    positions_mm: Sequence[NDArray[np.float64]],
) -> dict[str, Any]:
    geometry = {"axes_to_ras": axes_to_ras.tolist(), "spacing_mm": spacing_mm.tolist()}
    along = zip(dims, positions_mm, strict=True)
    coords: dict[str, Any] = {dim: (dim, places, {"units": "mm"}) for dim, places in along}
    return {**coords, "geometry": json.dumps(geometry)}


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


@dataclass(frozen=True)
class Geometry:
    """All that places a volume's voxels, bit for bit; the affine alone is rounded on its way.

    dims : in the order of the array's axes.
    axes_to_ras : (4, 4), from millimetres along x, y, z to RAS.
    spacing_mm : along x, y, z, as the volume was made.
    positions_mm : of the voxels, an array an axis.
    """

    dims: tuple[str, ...]
    axes_to_ras: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    positions_mm: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, volume: xr.DataArray) -> Geometry:
        """Return the geometry of a volume (x, y, z), in any order of its axes.

        Raises
        ------
        GeometryError : none, or an axis that is no longer evenly spaced.
        """
        affine_of(volume)
        geometry = json.loads(str(volume.coords["geometry"].values))
        dims = tuple(str(dim) for dim in volume.dims)
        return cls(
            dims,
            np.array(geometry["axes_to_ras"], np.float64),
            np.array(geometry["spacing_mm"], np.float64),
            tuple(np.asarray(volume.coords[dim].values, np.float64) for dim in dims),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the array."""
        return tuple(len(places) for places in self.positions_mm)

    @property
    def affine(self) -> Affine:
        """The voxel-to-RAS affine, as `affine_of` the volume.

        Raises
        ------
        GeometryError : a geometry that maps no volume.
        """
        check_affine(self.axes_to_ras)
        blank = np.broadcast_to(np.zeros((), np.uint8), self.shape)
        return check_affine(affine_of(self.volume(blank, name="blank", attrs={})))

    def volume(self, data: Any, *, name: str, attrs: dict[str, Any]) -> xr.DataArray:
        """Wrap voxels as the volume that had this geometry."""
        coords = _coords(self.dims, self.axes_to_ras, self.spacing_mm, self.positions_mm)
        return xr.DataArray(data, coords=coords, dims=self.dims, name=name, attrs=attrs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry) or self.dims != other.dims:
            return False
        mine = (self.axes_to_ras, self.spacing_mm, *self.positions_mm)
        theirs = (other.axes_to_ras, other.spacing_mm, *other.positions_mm)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]


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


def same_voxels(first: xr.DataArray, second: xr.DataArray) -> bool:
    """Whether two volumes of one shape have equal voxels; lazy ones are read in slabs."""
    both = zip(slabs(view_of(first)), slabs(view_of(second)), strict=True)
    return all(np.array_equal(one, other) for one, other in both)
