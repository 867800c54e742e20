"""Putting overlapping window predictions together: a Gaussian-weighted mean."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ..geometry import Shape
from ..regions import Region, overlap
from ..resampling import FloatArray
from .windows import Window

SIGMA_SHARE = 0.125  # of the window's side
SMALLEST_WEIGHT = 1e-3


@lru_cache(maxsize=8)
def window_weights(sides: Shape) -> FloatArray:
    """Return a window's weights: a Gaussian around its centre, at least `SMALLEST_WEIGHT`."""
    axes = []
    for side in sides:
        offsets = np.arange(side) - (side - 1) / 2
        axes.append(np.exp(-0.5 * (offsets / (SIGMA_SHARE * side)) ** 2))
    weights = np.einsum("i,j,k->ijk", *axes)
    result: FloatArray = np.maximum(weights, SMALLEST_WEIGHT).astype(np.float32)
    result.setflags(write=False)
    return result


def blend(region: Region, tiles: Iterable[tuple[Window, FloatArray]]) -> FloatArray:
    """Return the weighted mean of window predictions over a region: (K, X, Y, Z).

    Every voxel's weights sum to one, so a constant stays constant, borders included.

    Parameters
    ----------
    tiles : windows that together cover the region, and their predictions (K, *sides); what
        lies outside the region, padding too, is dropped.
    """
    total: FloatArray | None = None
    for window, tile in tiles:
        (x, y, z), (i, j, k) = overlap(region, window.region)
        if total is None:
            sides = [r.stop - r.start for r in region]
            total = np.zeros((len(tile), *sides), np.float32)
            weight = np.zeros(sides, np.float32)
        weights = window_weights(window.sides)[i, j, k]
        total[:, x, y, z] += weights * tile[:, i, j, k]
        weight[x, y, z] += weights
    assert total is not None, f"no window over {region}"
    total /= weight
    return total
