"""One scale as a Dask graph: windows read, run and blended, never a whole stack of contexts.

A task takes a batch of windows: it reads its crops, runs the network and keeps the answers
as tiles. Another task blends the tiles over one chunk of the volume into the store. Tiles
are dropped as soon as the last chunk over them is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask.threaded
import numpy as np

from ..geometry import Shape
from ..regions import Region
from ..resampling import FloatArray
from .blending import blend
from .crops import Crops, ScaleVolumes
from .runner import WindowRunner
from .storage import Store
from .windows import Window

WINDOWS_A_CHUNK = 4  # along each axis
THREADS = 2  # one runs the network while the other reads its next crops
Graph = dict[Any, Any]
Scheduler = Callable[[Graph, list[Any]], Any]
OnWindows = Callable[[int, int], None]  # windows done, of how many


def run_scale(
    runner: WindowRunner,
    volumes: ScaleVolumes,
    windows: Sequence[Window],
    store: Store,
    batch: int,
    on_windows: OnWindows,
    scheduler: Scheduler | None = None,
) -> None:
    """Predict the windows of a scale and blend them into `store`; finished chunks stay.

    scheduler : gets a Dask graph and its keys; None runs threads of this process.
    """
    done = itertools.count(1)

    def predict(chosen: Sequence[Window]) -> FloatArray:
        answer = runner(Crops.read(volumes, chosen))
        on_windows(min(next(done) * batch, len(windows)), len(windows))
        return answer

    graph, keys = plan_graph(windows, volumes.shape, batch, predict, store)
    (scheduler or run_threads)(graph, keys)


def run_threads(graph: Graph, keys: list[Any]) -> None:
    """Run a graph in threads of this process."""
    dask.threaded.get(graph, keys, num_workers=THREADS)


def plan_graph(
    windows: Sequence[Window],
    shape: Shape,
    batch: int,
    predict: Callable[[Sequence[Window]], FloatArray],
    store: Store,
) -> tuple[Graph, list[Any]]:
    """Return the graph of a scale and the keys that complete it, one for each missing chunk."""
    batches = [list(windows[i : i + batch]) for i in range(0, len(windows), batch)]
    graph: Graph = {}

    def finish(
        number: int, region: Region, numbers: Sequence[int], tiles: Sequence[FloatArray]
    ) -> None:
        pairs = [
            (window, tile)
            for i, answers in zip(numbers, tiles, strict=True)
            for window, tile in zip(batches[i], np.moveaxis(answers, 1, 0), strict=True)
            if window.reaches(region)
        ]
        store.write(number, (slice(None), *region), blend(region, pairs))

    keys = []
    for number, region in enumerate(plan_chunks(shape, windows[0].sides)):
        if store.has(number):
            continue
        over = [i for i, chosen in enumerate(batches) if any(w.reaches(region) for w in chosen)]
        keys.append(("chunk", number))
        graph |= {("tiles", i): (predict, batches[i]) for i in over}
        graph[keys[-1]] = (finish, number, region, over, [("tiles", i) for i in over])
    return graph, keys


def plan_chunks(shape: Shape, sides: Shape) -> Iterator[Region]:
    """Cut a volume into chunks of a few windows, in the order of its axes."""
    edges = [
        [slice(a, min(a + WINDOWS_A_CHUNK * side, n)) for a in range(0, n, WINDOWS_A_CHUNK * side)]
        for n, side in zip(shape, sides, strict=True)
    ]
    yield from itertools.product(*edges)
