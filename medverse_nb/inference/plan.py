"""The plan of one scale: which windows run together, and which chunks their answers fill."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..geometry import Shape
from ..regions import Region
from .windows import Window

WINDOWS_A_CHUNK = 2  # about, along each axis
Batch = Sequence[Window]


@dataclass(frozen=True)
class Chunk:
    """A part of the volume, and the batches (by number) whose windows lie over it."""

    number: int
    region: Region
    over: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The batches of windows of a scale, and the chunks that are still missing."""

    batches: Sequence[Batch]
    chunks: Sequence[Chunk]

    @property
    def needed(self) -> list[int]:
        """Numbers of the batches that a missing chunk needs, in the order of the chunks."""
        return list(dict.fromkeys(i for chunk in self.chunks for i in chunk.over))

    @property
    def most_at_once(self) -> int:
        """The most batches that one chunk adds to those of the chunks before it."""
        seen: set[int] = set()
        most = 0
        for chunk in self.chunks:
            most = max(most, len({*chunk.over} - seen))
            seen |= {*chunk.over}
        return most

    def over(self, chunk: Chunk) -> list[Batch]:
        """Return the batches over a chunk."""
        return [self.batches[i] for i in chunk.over]


def plan_scale(
    windows: Sequence[Window], shape: Shape, batch: int, finished: Callable[[int], bool]
) -> Plan:
    """Cut the volume into chunks, and the windows into batches that stay close together.

    finished : tells of a chunk's number whether it can be left out.
    """
    batches = [list(windows[i : i + batch]) for i in range(0, len(windows), batch)]
    starts, sides = np.array([window.start for window in windows]), np.array(windows[0].sides)
    chunks = []
    for number, region in enumerate(plan_chunks(shape, windows)):
        if not finished(number):
            low, high = np.array([(part.start, part.stop) for part in region]).T
            over = ((starts < high) & (low < starts + sides)).all(axis=1).nonzero()[0] // batch
            chunks.append(Chunk(number, region, tuple(np.unique(over).tolist())))
    return Plan(batches, chunks)


def plan_chunks(shape: Shape, windows: Sequence[Window]) -> Iterator[Region]:
    """Cut a volume into chunks of a few windows; along its longest axis last.

    In that order the fewest answers wait for a later chunk. Windows begin where chunks do, so
    that of those over an edge only the overlap waits; a last window that was shifted inward, to
    before the next edge, belongs to the chunk before it.
    """
    edges = []
    for axis, (size, side) in enumerate(zip(shape, stored_sides(windows), strict=True)):
        last = max(window.start[axis] for window in windows)
        cuts = [*range(0, last + 1, WINDOWS_A_CHUNK * side), size]
        edges.append([slice(a, b) for a, b in pairwise(cuts)])
    axes = sorted(range(3), key=lambda axis: -shape[axis])
    for parts in itertools.product(*(edges[axis] for axis in axes)):
        x, y, z = (parts[axes.index(axis)] for axis in range(3))
        yield x, y, z


def stored_sides(windows: Sequence[Window]) -> Shape:
    """Return the sides of a chunk as it is stored: about a window's, in whole strides."""
    sides = []
    for axis, side in enumerate(windows[0].sides):
        first, *more = sorted({window.start[axis] for window in windows})
        stride = more[0] - first if more else side
        sides.append(stride * max(1, round(side / stride)))
    x, y, z = sides
    return x, y, z
