"""One scale: windows read, run and blended, never a whole stack of contexts.

A task takes a batch of windows: it reads its crops, runs the network and keeps the answers
as tiles. Another task blends the tiles over one chunk of the volume, which is then written.
Tiles are dropped as soon as the last chunk over them is blended. Who runs the tasks is an
executor's matter: threads of this process (below), or a cluster.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask.threaded
import numpy as np

from ..geometry import Shape
from ..model.memory import release_memory
from ..regions import Region
from ..resampling import FloatArray
from .blending import blend
from .crops import Crops, ScaleVolumes
from .runner import WindowRunner
from .storage import Store
from .windows import Window, cut_all

EMPTY_BELOW = 0.1  # probability: where a coarser scale has less everywhere, nothing is
WINDOWS_A_CHUNK = 2  # along each axis
THREADS = 2  # one runs the network while the other reads its next crops
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

    def over(self, chunk: Chunk) -> list[Batch]:
        """Return the batches over a chunk."""
        return [self.batches[i] for i in chunk.over]


@dataclass(frozen=True)
class Predict:
    """Reads a batch of windows and runs the network on it; can be sent to another process."""

    runner: WindowRunner
    volumes: ScaleVolumes
    skip_empty: bool = False

    def __call__(self, batch: Batch) -> FloatArray:
        """Return the tiles of B windows: (K, B, *sides)."""
        fed = self.volumes.feedback
        if not (self.skip_empty and fed):
            return self.run(batch)
        coarser = cut_all(fed[1], batch)
        wanted = coarser.max(axis=(0, 2, 3, 4)) >= EMPTY_BELOW
        if wanted.any():
            windows = [window for window, want in zip(batch, wanted, strict=True) if want]
            coarser[:, wanted] = self.run(windows)
        return coarser

    def run(self, windows: Batch) -> FloatArray:
        """Read windows and run the network on them."""
        return self.runner(Crops.read(self.volumes, windows))


Write = Callable[[Chunk, FloatArray], None]
OnBatch = Callable[[Batch], None]  # after it
Executor = Callable[[Plan, Predict, Write, OnBatch], None]


def run_scale(
    predict: Predict,
    windows: Sequence[Window],
    store: Store,
    batch: int,
    on_windows: Callable[[int], None],
    executor: Executor,
) -> None:
    """Predict the windows of a scale and blend them into `store`; finished chunks stay.

    on_windows : gets the number of windows that are done; what it raises ends the run.
    """
    plan = plan_scale(windows, predict.volumes.shape, batch, store)
    done = len(windows) - sum(len(plan.batches[i]) for i in plan.needed)
    counting = threading.Lock()

    def write(chunk: Chunk, voxels: FloatArray) -> None:
        store.write(chunk.number, (slice(None), *chunk.region), voxels)

    def count(finished: Batch) -> None:
        nonlocal done
        with counting:
            done += len(finished)
            on_windows(done)

    executor(plan, predict, write, count)


def plan_scale(windows: Sequence[Window], shape: Shape, batch: int, store: Store) -> Plan:
    """Cut the volume into chunks, and the windows into batches that stay close together."""
    batches = [list(windows[i : i + batch]) for i in range(0, len(windows), batch)]
    starts, sides = np.array([window.start for window in windows]), np.array(windows[0].sides)
    chunks = []
    for number, region in enumerate(plan_chunks(shape, windows[0].sides)):
        if not store.has(number):
            low, high = np.array([(part.start, part.stop) for part in region]).T
            over = ((starts < high) & (low < starts + sides)).all(axis=1).nonzero()[0] // batch
            chunks.append(Chunk(number, region, tuple(np.unique(over).tolist())))
    return Plan(batches, chunks)


def plan_chunks(shape: Shape, sides: Shape) -> Iterator[Region]:
    """Cut a volume into chunks of a few windows; along its longest axis last.

    In that order the fewest tiles wait for a later chunk.
    """
    edges = [
        [slice(a, min(a + WINDOWS_A_CHUNK * side, n)) for a in range(0, n, WINDOWS_A_CHUNK * side)]
        for n, side in zip(shape, sides, strict=True)
    ]
    axes = sorted(range(3), key=lambda axis: -shape[axis])
    for parts in itertools.product(*(edges[axis] for axis in axes)):
        x, y, z = (parts[axes.index(axis)] for axis in range(3))
        yield x, y, z


def blend_chunk(
    region: Region, batches: Sequence[Batch], tiles: Sequence[FloatArray]
) -> FloatArray:
    """Blend the tiles (K, B, *sides) of the batches over a region: (K, X, Y, Z)."""
    pairs = (
        (window, tile)
        for batch, answers in zip(batches, tiles, strict=True)
        for window, tile in zip(batch, np.moveaxis(answers, 1, 0), strict=True)
        if window.reaches(region)
    )
    return blend(region, pairs)


def run_threads(plan: Plan, predict: Predict, write: Write, on_batch: OnBatch) -> None:
    """Run a plan in threads of this process, chunk after chunk, each as a Dask graph."""

    def compute(number: int) -> FloatArray:
        answer = predict(plan.batches[number])
        on_batch(plan.batches[number])
        return answer

    last = {i: chunk.number for chunk in plan.chunks for i in chunk.over}
    tiles: dict[int, FloatArray] = {}
    for chunk in plan.chunks:
        missing = [i for i in chunk.over if i not in tiles]
        graph: dict[Any, Any] = {("tiles", i): (compute, i) for i in missing}
        answers = dask.threaded.get(graph, list(graph), num_workers=THREADS)
        tiles |= zip(missing, answers, strict=True)
        write(chunk, blend_chunk(chunk.region, plan.over(chunk), [tiles[i] for i in chunk.over]))
        for i in chunk.over:
            if last[i] == chunk.number:
                del tiles[i]
        release_memory()
