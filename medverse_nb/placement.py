"""From a file's axes to the grid the network sees, and back.

The working grid is the target's own, in canonical axis order: flips and permutations
only, so nothing of the target is interpolated, and the way back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .geometry import Align, Grid, Reorientation, placement
from .resampling import FloatArray, Region, resample_affine
from .volume import affine_of, grid_of, values_of


@dataclass(frozen=True)
class CanonicalVolume:
    """Voxels in canonical axis order, their grid, and the way back to the file's order."""

    array: NDArray[Any]
    grid: Grid
    reorientation: Reorientation

    @classmethod
    def of(cls, volume: xr.DataArray) -> CanonicalVolume:
        """Bring a volume into canonical order, exactly."""
        grid = grid_of(volume)
        turn = Reorientation.to_canonical(grid.affine, grid.shape)
        array = turn.apply(values_of(volume))
        shape = (array.shape[0], array.shape[1], array.shape[2])
        return cls(array, Grid(shape, turn.affine(affine_of(volume))), turn)


def place(
    array: NDArray[Any], grid: Grid, target: Grid, align: Align, region: Region | None = None
) -> FloatArray:
    """Resample a canonical array onto the target's canonical grid, linearly.

    Outside the source it is 0; "box" has no outside. Only `region` of the target's grid
    is computed where one is given.
    """
    matrix = placement(target, grid, align)
    return resample_affine(
        np.asarray(array, np.float32), matrix, target.shape, edge=align == "box", region=region
    )
