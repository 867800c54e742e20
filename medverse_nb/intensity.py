"""Intensity scaling to [0, 1] and back.

Source: both papers, data preprocessing: the 0.02 and 0.98 quantiles become 0 and 1.
The quantiles are read off one histogram with a fixed number of bins, so that a volume
read in chunks gives the same scaling as one read whole. Where a few wild voxels make its
bins too coarse for all the others, the quantiles are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 65536
LOW_QUANTILE, HIGH_QUANTILE = 0.02, 0.98
FINE_BINS = 256  # fewer between the quantiles and the histogram is too coarse
WIDEST = 1e30  # a range beyond it overflows in the histogram's float32


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
        scaled = (volume.astype(np.float64) - self.low) / width
        return np.clip(scaled, 0, 1).astype(np.float32)

    def invert(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Bring scaled values back to the original units."""
        return (volume.astype(np.float64) * (self.high - self.low) + self.low).astype(np.float32)


def quantile_scale(
    volume: NDArray[Any], low: float = LOW_QUANTILE, high: float = HIGH_QUANTILE
) -> IntensityScale:
    """Read the scale of a finite volume off its histogram.

    Where the two quantiles coincide (more than 98% of one value) the extremes are used;
    a constant volume gets a scale of width 0, which maps it to 0.
    """
    least, most = float(volume.min()), float(volume.max())
    if least == most:
        return IntensityScale(least, most)
    width, first, last = most - least, least, least
    if width < WIDEST:
        counts, edges = np.histogram(volume, bins=BINS, range=(least, most))
        reached = np.concatenate([[0], np.cumsum(counts)]) / volume.size
        first, last = np.interp([low, high], reached, edges)
    if last - first < FINE_BINS * width / BINS:
        first, last = np.quantile(volume, [low, high])
    if first == last:
        return IntensityScale(least, most)
    return IntensityScale(float(first), float(last))
