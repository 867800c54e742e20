"""What a run will take: windows, time and memory, from one window that is really run."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..errors import InputError
from ..files import in_words
from ..geometry import Shape
from ..model.memory import free_memory, held_memory, window_memory
from ..model.network import ICLNetwork
from ..stored import is_large
from ..views import Mapped
from .crops import Place, ScaleVolumes, place_of
from .engine import Predict
from .inputs import Inputs
from .plan import Plan, plan_scale
from .recipe import Recipe, Settings, choose_recipe
from .runner import WindowRunner
from .windows import Window, plan_windows

SLOW_S = 2.0  # of windows that are timed
MOST_TIMED = 5  # after the first
SAMPLE_S = 0.003


@dataclass(frozen=True)
class Estimate:
    """What a run will take; memory and scratch space in bytes.

    windows : of each scale; every one is run once for each of `questions` (classes).
    memory : the most this process will hold, and `held` what it holds already.
    device_memory : the most on a GPU; 0 without one.
    scratch : disk space for answers that are too large for memory.
    free, device_free : what could be had beyond `held`.
    """

    windows: tuple[int, ...]
    questions: int
    seconds: float
    memory: int
    held: int
    device_memory: int
    scratch: int
    free: int
    device_free: int

    @property
    def fits(self) -> bool:
        """Whether memory suffices."""
        return self.memory - self.held <= self.free and self.device_memory <= self.device_free

    def __repr__(self) -> str:
        parts = [
            f"{self.seconds:.1f} s",
            f"{' + '.join(map(str, self.windows))} windows, {self.questions} times each",
            f"{in_words(self.memory)} of memory, {in_words(self.free)} more are free",
        ]
        if self.device_memory:
            parts.append(
                f"{in_words(self.device_memory)} on the GPU, {in_words(self.device_free)} are free"
            )
        if self.scratch:
            parts.append(f"{in_words(self.scratch)} of scratch space")
        return f"<Estimate: {'; '.join(parts)}{'' if self.fits else '; DOES NOT FIT'}>"


def check_memory(model: ICLNetwork, recipe: Recipe, settings: Settings) -> None:
    """Refuse a run whose window, with a single pair, is larger than what is free.

    Raises
    ------
    InputError : it tells what would fit.
    """
    device = next(model.parameters()).device
    voxels = settings.batch * recipe.window**3
    needed, free = window_memory(model.config, voxels, settings.precision), free_memory(device)
    if needed <= free:
        return
    ways = ["a model with a smaller window, such as medverse-tiny"]
    if device.type != "cpu" and needed <= free_memory(torch.device("cpu")):
        ways.insert(0, 'device="cpu"')
    if window_memory(model.config, voxels, "bfloat16") <= free:
        ways.insert(0, 'precision="bfloat16"')
    raise InputError(
        f"a window of {recipe.window}^3 needs about {in_words(needed)} on {device}, where "
        f"{in_words(free)} are free; what would fit: {', or '.join(ways)}"
    )


def estimate_run(model: ICLNetwork, inputs: Inputs, settings: Settings) -> Estimate:
    """Estimate a run, by running one window in the middle of its finest scale.

    Raises
    ------
    InputError : a setting out of range, or a window that does not fit.
    """
    recipe = choose_recipe(model.config, inputs.shape, settings)
    check_memory(model, recipe, settings)
    shapes = [recipe.working(scale) for scale in range(1, recipe.scales + 1)]
    plans = [plan_windows(shape, recipe.window, settings.overlap) for shape in shapes]
    volumes = _volumes(inputs, shapes[-1], fed=len(shapes) > 1)
    runner = WindowRunner(model, settings.precision, settings.mini_context_size)
    middle = len(plans[-1]) // 2
    held = held_memory()
    with _watched(runner.device) as peak:
        seconds = _time(Predict(runner, volumes), plans[-1][middle : middle + settings.batch])
    on_gpu = runner.device.type != "cpu"
    questions = len(volumes.labels)
    scratch = [size for size, large in _answers(questions, shapes) if large]
    scratch.append(max(_kept(volumes.count, shapes, Place.SCRATCH)))
    plan = plan_scale(plans[-1], shapes[-1], settings.batch, lambda _: False)
    arrays = _array_bytes(volumes, shapes, plan)
    return Estimate(
        windows=tuple(map(len, plans)),
        questions=questions,
        seconds=seconds * sum(math.ceil(len(plan) / settings.batch) for plan in plans),
        memory=held + arrays + (0 if on_gpu else peak[0]),
        held=held,
        device_memory=peak[0] if on_gpu else 0,
        scratch=sum(scratch),
        free=free_memory(torch.device("cpu")),
        device_free=free_memory(runner.device) if on_gpu else 0,
    )


def _volumes(inputs: Inputs, shape: Shape, *, fed: bool) -> ScaleVolumes:
    """Return what a scale reads, with an empty answer of a coarser one."""
    target, labels = inputs.target(shape), inputs.labels(shape)
    feedback = (target, [Mapped(target, np.zeros_like) for _ in labels]) if fed else None
    return ScaleVolumes(target, inputs.images(shape), labels, feedback)


def _array_bytes(volumes: ScaleVolumes, shapes: Sequence[Shape], plan: Plan) -> int:
    """Return what a run holds beside the network and its crops."""
    questions = len(volumes.labels)
    kept = _kept(volumes.count, shapes, Place.MEMORY)
    two_scales = max(first + second for first, second in pairwise([0, *kept]))
    stores = [size for size, large in _answers(questions, shapes) if not large]
    batch = plan.batches[0]
    tiles = 4 * questions * plan.most_at_once * len(batch) * math.prod(batch[0].sides)
    regions = [chunk.region for chunk in plan.chunks]
    blending = 4 * (questions + 1) * max(math.prod(s.stop - s.start for s in r) for r in regions)
    size, large = _answers(questions, shapes)[-1]
    answer = 0 if large else 2 * size  # each class, then all together
    return sum(stores) + max(two_scales + tiles + blending, answer)


def _kept(count: int, shapes: Sequence[Shape], where: Place) -> list[int]:
    """Return the bytes that the volumes of each scale take in one place."""
    places = [place_of(count, shape, coarse=shape != shapes[-1]) for shape in shapes]
    return [size if place is where else 0 for place, size in places]


def _answers(questions: int, shapes: Sequence[Shape]) -> list[tuple[int, bool]]:
    """Return the bytes of each scale's answer, and whether they are too large for memory."""
    large = is_large((questions, *shapes[-1]))
    return [(4 * questions * math.prod(shape), large) for shape in shapes]


def _time(predict: Predict, batch: Sequence[Window]) -> float:
    """Return the seconds a batch takes, reading included: the median of a few, the first left out.

    The first alone where it takes long.
    """
    seconds: list[float] = []
    while len(seconds) <= MOST_TIMED and sum(seconds) < SLOW_S:
        started = time.perf_counter()
        predict(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)


@contextmanager
def _watched(device: torch.device) -> Iterator[list[int]]:
    """Watch what is held at most, beyond what is held now; the list's only item, afterwards."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    before, ended = held_memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            peak[0] = max(peak[0], held_memory() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
