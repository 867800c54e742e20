"""In-context tuning: a copy of the network, trained a minute on the user's own pairs.

Each step makes one pair the target and others its context (leave-one-out), in a crop at
one of the scales that inference would use. What the tuning is worth is measured on pairs
that stay out of it, before, half way and at the end; the best copy wins, and that may be
the untuned one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from ..geometry import Align, Grid, Shape
from ..inference.inputs import Values
from ..inference.schedule import scale_count, scale_shape
from ..model.config import Precision
from ..model.network import ICLNetwork
from ..pair import ContextPair
from ..regions import Region, read
from ..resampling import FloatArray
from ..tasks.draw import TaskDraw, imitate_coarser_scale
from ..tasks.fields import chance, integer
from ..tasks.registry import SEGMENTATION
from .forward import predict_tasks
from .losses import task_loss
from .rates import cosine, warm_up

OnProgress = Callable[[float, float], None]  # seconds used, of how many

PEAK_RATE, LOWEST_RATE, WARM_UP_STEPS, CLIP = 5e-4, 0.05, 10, 1.0
LARGEST_CONTEXT = 4
AROUND_FOREGROUND = 0.75  # share of the windows that hold a voxel of the class


@dataclass(frozen=True)
class TuningTasks:
    """Draws leave-one-out tasks from pairs; every volume is read by region.

    wanted : label values of each class, or `[None]` for an image task.
    window : side of the network's window in voxels; it decides the scales.
    crop : side of the cubes that are drawn.
    """

    pairs: Sequence[ContextPair]
    wanted: Sequence[Values]
    align: Align
    window: int
    crop: int

    def draw(self, generator: Generator) -> TaskDraw:
        """Draw a target, up to four other pairs, a class, a scale and a crop."""
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        size = integer(generator, 1, min(LARGEST_CONTEXT, len(self.pairs) - 1))
        chosen = [self.pairs[i] for i in order[: size + 1]]
        values = self.wanted[integer(generator, 0, len(self.wanted) - 1)]
        grid = chosen[0].canonical_image.grid
        scales = scale_count(grid.shape, self.window)
        scale = integer(generator, 1, scales)
        level = grid.resized(scale_shape(grid.shape, scale, scales, self.window))
        region = self._draw_region(chosen[0], values, level.shape, generator)
        image, label = self._read(chosen, values, level, region)
        kind = "image" if values is None else SEGMENTATION
        task = TaskDraw((kind,), image[:1], label[:1], image[None, 1:], label[None, 1:])
        return task if scale == 1 else imitate_coarser_scale(task, generator)

    def _draw_region(
        self, target: ContextPair, values: Values, shape: Shape, generator: Generator
    ) -> Region:
        room = [max(0, side - self.crop) for side in shape]
        start = [integer(generator, 0, free) for free in room]
        if values is not None and chance(generator, AROUND_FOREGROUND):
            label = target.canonical_label.array
            inside = np.argwhere(np.isin(label, values))
            if len(inside):
                voxel = inside[integer(generator, 0, len(inside) - 1)] / np.array(label.shape)
                start = [
                    min(free, max(0, int(at * side) - integer(generator, 0, self.crop - 1)))
                    for at, side, free in zip(voxel, shape, room, strict=True)
                ]
        x, y, z = (slice(a, min(a + self.crop, n)) for a, n in zip(start, shape, strict=True))
        return x, y, z

    def _read(
        self, pairs: Sequence[ContextPair], values: Values, level: Grid, region: Region
    ) -> tuple[Tensor, Tensor]:
        """Return images and labels (N, 1, S, S, S), zero beyond the volume."""
        images = [read(pair.image_on(level, self.align), region) for pair in pairs]
        labels = [read(pair.label_on(level, self.align, values), region) for pair in pairs]
        return self._fill(images), self._fill(labels)

    def _fill(self, crops: Sequence[FloatArray]) -> Tensor:
        filled = torch.zeros(len(crops), 1, self.crop, self.crop, self.crop)
        for volume, crop in zip(filled, crops, strict=True):
            x, y, z = crop.shape
            volume[0, :x, :y, :z] = torch.from_numpy(crop)
        return filled.clamp_(0, 1)  # resampling may leave the range by a rounding error


@dataclass(frozen=True)
class TunedNetwork:
    """What tuning gave: `network` is the best copy, the given one where none was better.

    curve : (seconds, score on the held-out pairs), untuned first.
    """

    network: ICLNetwork
    curve: tuple[tuple[float, float], ...]
    steps: int

    @property
    def before(self) -> float:
        """Score of the untuned network on the held-out pairs."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Score of the best copy; never below `before`."""
        return max(score for _, score in self.curve)


def tune_network(
    network: ICLNetwork,
    draw: Callable[[Generator], TaskDraw],
    measure: Callable[[ICLNetwork], float],
    seconds: float,
    *,
    precision: Precision = "float32",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> TunedNetwork:
    """Train a copy of `network` and measure it; the given one is not touched.

    Parameters
    ----------
    draw : makes one task from a generator.
    measure : scores a network on pairs that `draw` never uses; higher is better.
    seconds : for training and measuring; the first measurement comes on top.

    Without a score above the untuned network's, the given network comes back.
    """
    best, curve = network, [(0.0, measure(network))]
    copied = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(copied.parameters(), PEAK_RATE, weight_decay=0.0)
    generator = Generator().manual_seed(seed)
    started, steps = time.monotonic(), 0
    cost = 0.0  # of the last measurement, to leave time for the next
    for end in (seconds / 2, seconds):
        while (used := time.monotonic() - started) < end - cost:
            rate = _rate(steps, used / seconds)
            _step(copied, optimizer, draw(generator), rate, precision, generator)
            steps += 1
            if on_progress:
                on_progress(min(time.monotonic() - started, seconds), seconds)
        score = measure(copied.eval())
        copied.train()
        if score > max(before for _, before in curve):
            best = copy.deepcopy(copied)
        curve.append((time.monotonic() - started, score))
        cost = curve[-1][0] - used
    return TunedNetwork(best.eval(), tuple(curve), steps)


def _rate(steps: int, share: float) -> float:
    """Return the learning rate of the next step after a share of the time."""
    return PEAK_RATE * warm_up(steps, WARM_UP_STEPS) * cosine(share, LOWEST_RATE)


def _step(
    network: ICLNetwork,
    optimizer: torch.optim.Optimizer,
    task: TaskDraw,
    rate: float,
    precision: Precision,
    generator: Generator,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    prediction = predict_tasks(network, task, precision, generator)
    truth = task.truth.to(prediction.device)
    task_loss(prediction, truth, task.kind).backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
