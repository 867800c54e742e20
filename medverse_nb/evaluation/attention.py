"""Reading recorded attention: which block a voxel belongs to, where it looks, how sharply.

What it can tell: which places of a map a block took its features from. What it cannot: which
context pair helped (the target looks at the mean of all pairs), nor why a voxel got its label
(features have mixed places by convolution before, and do again after).

Source: Medverse Eqs. 5-9; `Recorder.dataset` names the dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import Shape


def block_numbers(attention: xr.Dataset, sides: Shape, stage: int) -> NDArray[np.int64]:
    """Return the block each voxel of a window belongs to at a stage: `sides`, 0..p**3 - 1.

    A contiguous block is a box; an interleaved one is every p-th voxel of each axis of the
    stage's map, so its voxels, 2**stage wide, lie scattered over the whole window.

    Raises
    ------
    InputError : a stage the network does not have, or sides its blocks do not divide.
    """
    if stage not in attention.stage.values:
        raise InputError(f"stage {stage} is none of {attention.stage.values.tolist()}")
    p, contiguous = attention.attrs["blocks_per_axis"], attention.attrs["partition"] == "contiguous"
    if any(side % (p * 2**stage) for side in sides):
        raise InputError(f"a window of {sides} has no {p} blocks an axis at stage {stage}")
    axes = []
    for side in sides:
        place = np.arange(side) >> stage
        axes.append(place // (side // p >> stage) if contiguous else place % p)
    x, y, z = np.ix_(*axes)
    return (x * p + y) * p + z


def windows_over(attention: xr.Dataset, scale: int, voxel: Sequence[int]) -> list[int]:
    """Return the recorded windows of a scale that hold a voxel of it, the most central first."""
    here = attention.isel(window=attention.scale.values == scale)
    start, sides = here.start.values, here.sides.values
    offset = np.asarray(voxel) - start
    inside = ((offset >= 0) & (offset < sides)).all(axis=1)
    off_centre = np.abs((offset + 0.5) / np.maximum(sides, 1) - 0.5).max(axis=1)
    order = np.argsort(off_centre, kind="stable")
    return [int(here.window.values[i]) for i in order if inside[i]]


def spread(weights: NDArray[np.floating], blocks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Paint every voxel with the weight of its block, as a share of the largest: 0 to 1."""
    values = np.nan_to_num(np.asarray(weights, np.float32))
    most = float(values.max())
    return (values / most if most > 0 else values)[blocks]


def entropy(weights: xr.DataArray) -> xr.DataArray:
    """Return the mean entropy of the queries' attention: 0 one key, 1 all keys alike.

    weights : with the dimensions `query` and `key`, and `source` where there are two. NaN
        where nothing was recorded.
    """
    over = [dim for dim in ("source", "key") if dim in weights.dims]
    p = weights.astype(np.float64)
    count = p.notnull().sum(over)
    nats = -(p * np.log(p.where(p > 0, 1))).sum(over, skipna=True)
    return (nats / np.log(count.where(count > 1))).mean("query")


def diagonal_share(weights: xr.DataArray) -> xr.DataArray:
    """Return the mean share of its attention that a query pays to the block at its own place.

    1 / (number of keys) where it does not matter; NaN where nothing was recorded.
    """
    query = xr.DataArray(weights["query"].values, dims="block")
    return weights.astype(np.float64).sel(query=query, key=query).mean("block", skipna=False)
