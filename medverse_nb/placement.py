"""From a file's axes to the grid the network sees, and back.

The working grid is the target's own, in canonical axis order: flips and permutations
only, so nothing of the target is interpolated, and the way back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .geometry import Align, Grid, Reorientation, placement
from .intensity import IntensityScale, quantile_scale
from .regions import Region, View, read
from .resampling import FloatArray
from .views import Placed, mapped, turned
from .volume import affine_of, grid_of, view_of


@dataclass(frozen=True)
class CanonicalVolume:
    """Voxels in canonical axis order, their grid, and the way back to the file's order.

    view : a NumPy array, or, of a lazy volume, what reads its regions.
    """

    view: View
    grid: Grid
    reorientation: Reorientation

    @property
    def array(self) -> NDArray[Any]:
        """All voxels."""
        return read(self.view)

    @classmethod
    def of(cls, volume: xr.DataArray) -> CanonicalVolume:
        """Bring a volume into canonical order, exactly."""
        grid = grid_of(volume)
        turn = Reorientation.to_canonical(grid.affine, grid.shape)
        view = turned(view_of(volume), turn)
        x, y, z = view.shape
        return cls(view, Grid((x, y, z), turn.affine(affine_of(volume))), turn)

    def scaled(self, scale: IntensityScale | None = None) -> CanonicalVolume:
        """Return the image in [0, 1], as a run reads it; None for the scale of its quantiles."""
        chosen = quantile_scale(self.view) if scale is None else scale
        return replace(self, view=mapped(self.view, chosen.apply))


def placed(source: View, grid: Grid, target: Grid, align: Align) -> View:
    """Lay a canonical volume on the target's canonical grid, linearly.

    Outside the source it is 0; "box" has no outside.
    """
    matrix = placement(target, grid, align)
    if grid.shape == target.shape and np.array_equal(matrix, np.eye(4)):
        return source
    return Placed(source, matrix, target.shape, edge=align == "box")


def place(
    source: View, grid: Grid, target: Grid, align: Align, region: Region | None = None
) -> FloatArray:
    """Return the voxels of `placed`, all of them or a region."""
    return read(placed(source, grid, target, align), region).astype(np.float32, copy=False)
