"""Where the sliding windows lie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..errors import InputError
from ..geometry import Shape
from ..regions import Region


@dataclass(frozen=True)
class Window:
    """One window: its first voxel and its sides, inside the padded volume."""

    start: Shape
    sides: Shape

    @property
    def region(self) -> Region:
        """The window as slices."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.sides, strict=True))
        return x, y, z

    def reaches(self, region: Region) -> bool:
        """Whether the window has a voxel of the region."""
        return all(
            s.start < r.stop and r.start < s.stop for s, r in zip(self.region, region, strict=True)
        )


def axis_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return the first voxels of windows along one axis of `size` >= `window` voxels.

    The stride is `int(window * (1 - overlap))`; the last window is shifted inward.
    """
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(size - window) // stride) + 1
    return [min(index * stride, size - window) for index in range(count)]


def plan_windows(shape: Shape, window: int, overlap: float) -> list[Window]:
    """Cover `shape` with windows; axes shorter than the window count as padded to it.

    Raises
    ------
    InputError : overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap must be in [0, 1), got {overlap}")
    starts = [axis_starts(max(side, window), window, overlap) for side in shape]
    sides = (window, window, window)
    return [Window((x, y, z), sides) for x, y, z in itertools.product(*starts)]
