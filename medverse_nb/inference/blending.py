"""Putting overlapping window predictions together: a Gaussian-weighted mean."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import Shape
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


class Blender:
    """Collect weighted window predictions of one volume and return their mean.

    Every voxel's weights sum to one, so a constant stays constant, borders included.
    """

    def __init__(self, shape: Shape) -> None:
        self.total = np.zeros(shape, np.float32)
        self.weight = np.zeros(shape, np.float32)

    def add(self, window: Window, prediction: NDArray[Any]) -> None:
        """Add a window's prediction; what lies in the padding is dropped."""
        region = tuple(
            slice(s.start, min(s.stop, side))
            for s, side in zip(window.region, self.total.shape, strict=True)
        )
        inside = tuple(slice(0, s.stop - s.start) for s in region)
        weights = window_weights(window.sides)[inside]
        self.total[region] += weights * prediction[inside]
        self.weight[region] += weights

    def result(self) -> FloatArray:
        """Return the blended volume; every voxel must have been covered."""
        blended: FloatArray = self.total / self.weight
        return blended
