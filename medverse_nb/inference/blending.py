"""Putting overlapping window predictions together: a Gaussian-weighted mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..geometry import Shape
from ..regions import Region, overlap, touch
from ..resampling import FloatArray
from .windows import Window

SIGMA_SHARE = 0.125  # of the window's side
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Tile:
    """A window's answer, or what is still needed of it.

    region : of the volume, inside the window; voxels : (K, X, Y, Z) there.
    """

    window: Window
    region: Region
    voxels: FloatArray

    def needed_for(self, regions: Sequence[Region]) -> Tile | None:
        """Return what the box around some regions needs, a copy; None for nothing."""
        mine = [region for region in regions if touch(region, self.region)]
        if not mine:
            return None
        box = tuple(
            slice(
                max(own.start, min(s.start for s in axis)), min(own.stop, max(s.stop for s in axis))
            )
            for own, *axis in zip(self.region, *mine, strict=True)
        )
        if box == self.region and self.voxels.base is None:  # else a whole batch would be kept
            return self
        x, y, z = box
        _, inside = overlap(box, self.region)
        return Tile(self.window, (x, y, z), self.voxels[:, *inside].copy())


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


def blend(region: Region, tiles: Iterable[Tile]) -> FloatArray:
    """Return the weighted mean of window predictions over a region: (K, X, Y, Z).

    Every voxel's weights sum to one, so a constant stays constant, borders included.

    Parameters
    ----------
    tiles : of windows that together cover the region; what lies outside it, padding too, is
        dropped.
    """
    total: FloatArray | None = None
    for tile in tiles:
        if not touch(region, tile.region):
            continue
        (x, y, z), (i, j, k) = overlap(region, tile.region)
        if total is None:
            sides = [r.stop - r.start for r in region]
            total = np.zeros((len(tile.voxels), *sides), np.float32)
            weight = np.zeros(sides, np.float32)
        inside, _ = overlap(tile.window.region, tile.region)
        weights = window_weights(tile.window.sides)[inside][i, j, k]
        total[:, x, y, z] += weights * tile.voxels[:, i, j, k]
        weight[x, y, z] += weights
    assert total is not None, f"no window over {region}"
    total /= weight
    return total
