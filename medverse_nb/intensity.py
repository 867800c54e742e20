"""Intensity scaling to [0, 1] and back.

Source: both papers, data preprocessing: the 0.02 and 0.98 quantiles become 0 and 1.
The quantiles are read off one histogram with a fixed number of bins, so that a volume
read in chunks gives the same scaling as one read whole. Where a few wild voxels make its
bins too coarse for all the others, another one is laid around the quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .regions import View, slabs

BINS = 65536
LOW_QUANTILE, HIGH_QUANTILE = 0.02, 0.98
FINE_BINS = 256  # fewer between the quantiles and the histogram is too coarse
MOST_ZOOMS = 12  # histograms
PIECE_VOXELS = 2**20  # counted or scaled at once, in float64


@dataclass(frozen=True)
class IntensityScale:
    """A linear map: `low` to 0 and `high` to 1, clipped."""

    low: float
    high: float

    def apply(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Scale to [0, 1], clipped; a constant volume becomes 0."""
        width = self.high - self.low
        if width <= 0:
            return np.zeros(volume.shape, np.float32)
        return _in_pieces(lambda piece: np.clip((piece - self.low) / width, 0, 1), volume)

    def invert(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Bring scaled values back to the original units."""
        return _in_pieces(lambda piece: piece * (self.high - self.low) + self.low, volume)


def quantile_scale(
    volume: View, low: float = LOW_QUANTILE, high: float = HIGH_QUANTILE
) -> IntensityScale:
    """Read the scale of a finite volume off its histogram; it is read in slabs.

    Where the two quantiles coincide (more than 98% of one value) the extremes are used;
    a constant volume gets a scale of width 0, which maps it to 0.
    """
    least, most = _extremes(volume, -np.inf, np.inf)
    first, last = least, most
    for _ in range(MOST_ZOOMS):
        if first == last:  # one value, or more than 98% of it
            return IntensityScale(least, most)
        bounds, edges = _find_quantiles(volume, first, last, (low, high))
        if bounds[1] - bounds[0] >= FINE_BINS * (edges[1] - edges[0]):
            return IntensityScale(*bounds)
        inner = np.searchsorted(edges, bounds, "right") - 1
        around = edges[max(0, inner[0] - 1)], edges[min(inner[1] + 2, BINS)]
        first, last = _extremes(volume, *around)
    return IntensityScale(first, last)


def _in_pieces(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], volume: NDArray[Any]
) -> NDArray[np.float32]:
    """Apply a function of single voxels in float64, a few planes at a time."""
    result = np.empty(volume.shape, np.float32)
    planes = max(1, PIECE_VOXELS // max(1, volume[:1].size))
    for start in range(0, len(volume), planes):
        part = slice(start, start + planes)
        result[part] = function(volume[part].astype(np.float64))
    return result


def _extremes(volume: View, low: float, high: float) -> tuple[float, float]:
    """Return the least and the largest value within [low, high]."""
    least, most = np.inf, -np.inf
    for slab in slabs(volume):
        inside = slab[(slab >= low) & (slab <= high)] if np.isfinite(low) else slab
        if inside.size:
            least, most = min(least, float(inside.min())), max(most, float(inside.max()))
    return least, most


def _find_quantiles(
    volume: View, first: float, last: float, shares: tuple[float, float]
) -> tuple[tuple[float, float], NDArray[np.float64]]:
    """Return two quantiles from one histogram over [first, last], and its edges."""
    below, counts = 0, np.zeros(BINS, np.int64)
    edges = first + (last - first) * np.linspace(0, 1, BINS + 1)
    for slab in slabs(volume):
        flat = slab.ravel()
        for start in range(0, flat.size, PIECE_VOXELS):
            values = flat[start : start + PIECE_VOXELS].astype(np.float64)
            below += int(np.count_nonzero(values < first))
            inside = values[(values >= first) & (values <= last)]
            bins = ((inside - first) * (BINS / (last - first))).astype(np.int64)
            counts += np.bincount(bins.clip(0, BINS - 1), minlength=BINS)
    reached = (below + np.concatenate([[0], np.cumsum(counts)])) / math.prod(volume.shape)
    one, other = np.interp(shares, reached, edges)
    return (float(one), float(other)), edges
