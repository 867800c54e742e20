"""One scale: windows read, run and blended, never a whole stack of contexts.

A task takes a batch of windows: it reads its crops, runs the network and keeps the answers
as tiles. The tiles over one chunk of the volume are blended, and the chunk is written; no more
of a tile is kept than later chunks need. Who runs the tasks is an executor's matter: threads of
this process (below), or a cluster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.threaded
import numpy as np

from ..model.memory import release_memory
from ..regions import Region
from ..resampling import FloatArray
from .blending import Tile, blend
from .crops import Crops, ScaleVolumes
from .plan import Batch, Chunk, Plan, plan_scale
from .runner import WindowRunner
from .storage import Store
from .windows import Window, cut_all

EMPTY_BELOW = 0.1  # probability: where a coarser scale has less everywhere, nothing is
THREADS = 2  # one runs the network while the other reads its next crops


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
    plan = plan_scale(windows, predict.volumes.shape, batch, store.has)
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


def blend_chunk(
    region: Region, batches: Sequence[Batch], tiles: Sequence[FloatArray]
) -> FloatArray:
    """Blend the answers (K, B, *sides) of the batches over a region: (K, X, Y, Z)."""
    whole = [tile for pair in zip(batches, tiles, strict=True) for tile in tiles_of(*pair)]
    return blend(region, whole)


def tiles_of(batch: Batch, answers: FloatArray) -> list[Tile]:
    """Return the answers (K, B, *sides) of a batch of windows one by one."""
    apart = np.moveaxis(answers, 1, 0)
    return [Tile(w, w.region, tile) for w, tile in zip(batch, apart, strict=True)]


def run_threads(plan: Plan, predict: Predict, write: Write, on_batch: OnBatch) -> None:
    """Run a plan in threads of this process, chunk after chunk, each as a Dask graph.

    Of an answer no more is kept than the box that later chunks need.
    """

    def compute(number: int) -> FloatArray:
        answer = predict(plan.batches[number])
        on_batch(plan.batches[number])
        return answer

    tiles: dict[int, list[Tile]] = {}
    later: dict[int, list[Region]] = {}
    for chunk in plan.chunks:
        for i in chunk.over:
            later.setdefault(i, []).append(chunk.region)
    for chunk in plan.chunks:
        missing = [i for i in chunk.over if i not in tiles]
        graph: dict[Any, Any] = {("tiles", i): (compute, i) for i in missing}
        answers = dask.threaded.get(graph, list(graph), num_workers=THREADS)
        tiles |= {
            i: tiles_of(plan.batches[i], answer) for i, answer in zip(missing, answers, strict=True)
        }
        del answers
        write(chunk, blend(chunk.region, [tile for i in chunk.over for tile in tiles[i]]))
        for i in chunk.over:
            later[i].remove(chunk.region)
            parts = [part for tile in tiles.pop(i) if (part := tile.needed_for(later[i]))]
            if parts:
                tiles[i] = parts
        release_memory()
