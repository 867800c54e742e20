"""One training task: a target, its context and, at times, an autoregressive context.

What the papers leave open is chosen here: how the coarser prediction of the
autoregressive context is imitated, and how thin volumes, padded with zeros, look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .anatomy import draw_foreground, shows_skull
from .fields import chance, coarsen, double, integer, smooth_field, uniform
from .registry import SEGMENTATION, TASKS, Need
from .scenes import Scene, Source
from .volumes import Volumes

Region = tuple[slice, slice, slice]
Feedback = Literal["none", "imitated", "own"]  # where an autoregressive context comes from


@dataclass(frozen=True)
class TaskRates:
    """How often each kind of task is drawn; the defaults are medverse-tiny's.

    `enhancement` is the share of image tasks, between which `TASKS` weighs; `autoregressive`
    that of tasks with an autoregressive context, of which `own_prediction` bring a coarser
    scale to be predicted first; `group` that of foregrounds of two to `largest_group` classes.
    """

    enhancement: float = 0.15
    autoregressive: float = 0.4
    own_prediction: float = 0.5
    padded: float = 0.3
    group: float = 0.4
    largest_group: int = 5


@dataclass(frozen=True)
class TaskDraw:
    """Volumes of N tasks of one context size, sides `window`, all in [0, 1].

    `target` and `truth` are (N, 1, X, Y, Z), the context is (N, L, 1, X, Y, Z), the
    autoregressive pair (N, 1, 1, X, Y, Z) or None; `kinds` and `weights`, the lambdas of the
    loss, are one for each task. A draw holds one task; `stack_tasks` joins draws.

    Where there is a `coarse` task, it shows twice as much at half the resolution, and this one
    is its region, one of `regions`, once that is doubled: predict it first and `feed_back` the
    answer.
    """

    kinds: tuple[str, ...]
    target: Tensor
    truth: Tensor
    context_image: Tensor
    context_label: Tensor
    ar_image: Tensor | None = None
    ar_label: Tensor | None = None
    weights: tuple[float, ...] = (1.0,)
    coarse: TaskDraw | None = None
    regions: tuple[Region, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of a single task."""
        (kind,) = self.kinds
        return kind

    @property
    def segments(self) -> bool:
        """Whether a single task is a segmentation."""
        return self.kind == SEGMENTATION

    def to(self, device: torch.device) -> TaskDraw:
        """Return the same tasks with their volumes on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | TaskDraw):
                moved[field.name] = value.to(device)
        return replace(self, **moved)

    def feed_back(self, prediction: Tensor) -> TaskDraw:
        """Return this task with the coarse task's prediction as autoregressive context."""
        assert self.coarse is not None

        def zoom(volumes: Tensor) -> Tensor:
            doubled = zip(double(volumes), self.regions, strict=True)
            return torch.stack([volume[(..., *region)] for volume, region in doubled])[:, None]

        return replace(
            self,
            ar_image=zoom(self.coarse.target),
            ar_label=zoom(prediction.clamp(0, 1)),
            coarse=None,
            regions=(),
        )


def stack_tasks(tasks: Sequence[TaskDraw]) -> TaskDraw:
    """Join tasks of one context size that all have the same kind of feedback."""

    def join(name: str) -> Tensor:
        return torch.cat([getattr(task, name) for task in tasks])

    first = tasks[0]
    coarse = [task.coarse for task in tasks if task.coarse is not None]
    return TaskDraw(
        tuple(kind for task in tasks for kind in task.kinds),
        join("target"),
        join("truth"),
        join("context_image"),
        join("context_label"),
        None if first.ar_image is None else join("ar_image"),
        None if first.ar_label is None else join("ar_label"),
        tuple(weight for task in tasks for weight in task.weights),
        stack_tasks(coarse) if coarse else None,
        tuple(region for task in tasks for region in task.regions),
    )


def draw_feedback(generator: Generator, rates: TaskRates) -> Feedback:
    """Draw where the autoregressive context of a task comes from."""
    if not chance(generator, rates.autoregressive):
        return "none"
    return "own" if chance(generator, rates.own_prediction) else "imitated"


def draw_task(
    source: Source,
    generator: Generator,
    context_size: int,
    window: int = 32,
    rates: TaskRates = TaskRates(),
    feedback: Feedback | None = None,
) -> TaskDraw:
    """Draw one segmentation or image task with `context_size` pairs.

    `feedback` is drawn too where it is not given.
    """
    if feedback is None:
        feedback = draw_feedback(generator, rates)
    two_scales = feedback == "own"
    side = 2 * window if two_scales else window
    drawn = None
    while drawn is None:
        scene = source.draw(generator, context_size + 1, side, finer=not two_scales)
        drawn = _ask(scene, generator, side, rates)
    kind, images, labels = drawn
    images, labels = _turn(images, labels, generator)
    kept = (side, side, side)
    if kind != "slices_to_volume" and chance(generator, rates.padded):  # might hide all slices
        images, labels, kept = _pad(images, labels, generator)
    if two_scales:
        region = _draw_region(kept, window, generator)
        coarse = _as_task(kind, F.avg_pool3d(images, 2), F.avg_pool3d(labels, 2))
        fine = _as_task(kind, images[(..., *region)], labels[(..., *region)])
        return replace(fine, coarse=coarse, regions=(region,))
    task = _as_task(kind, images, labels)
    return task if feedback == "none" else imitate_coarser_scale(task, generator)


def imitate_coarser_scale(task: TaskDraw, generator: Generator) -> TaskDraw:
    """Return a task of one scale with an imitated prediction as its autoregressive context."""
    labels = torch.cat([task.truth, task.context_label[0]])
    return replace(
        task,
        ar_image=coarsen(task.target[:, None]),
        ar_label=imitate_coarse_prediction(labels, task.kind, generator),
    )


def _as_task(kind: str, images: Tensor, labels: Tensor) -> TaskDraw:
    """Make the first of (N, S, S, S) the target and the others its context."""
    images, labels = images[:, None], labels[:, None]
    return TaskDraw(
        (kind,),
        target=images[:1],
        truth=labels[:1],
        context_image=images[None, 1:],
        context_label=labels[None, 1:],
        weights=(TASKS[kind].weight,),
    )


def _draw_region(kept: tuple[int, int, int], window: int, generator: Generator) -> Region:
    """Draw a window inside the kept corner box, from its first voxel where that is smaller."""
    starts = [integer(generator, 0, max(0, side - window)) for side in kept]
    x, y, z = (slice(start, start + window) for start in starts)
    return x, y, z


def _ask(
    scene: Scene, generator: Generator, side: int, rates: TaskRates
) -> tuple[str, Tensor, Tensor] | None:
    """Choose what is asked of a scene; None where it has nothing to segment."""
    if chance(generator, rates.enhancement):
        return _ask_for_image(scene, generator)
    # As tasks.segmentation does, but the foreground first: without one nothing is painted.
    foreground = draw_foreground(scene.labels, generator, rates.group, rates.largest_group)
    if not foreground:
        return None
    return SEGMENTATION, scene.paint(generator), scene.labels.masks(foreground, side)


def _ask_for_image(scene: Scene, generator: Generator) -> tuple[str, Tensor, Tensor]:
    """Choose one of the image tasks that a scene allows, by their rates."""
    there: set[Need] = {"labels"}
    if scene.any_contrast:
        there.add("second")
    if shows_skull(scene.labels):
        there.add("brain")
    names = [n for n, task in TASKS.items() if not task.is_segmentation and task.needs <= there]
    weights = torch.tensor([float(TASKS[name].rate) for name in names])
    kind = names[int(torch.multinomial(weights, 1, generator=generator))]
    volumes = Volumes(
        images=scene.paint(generator),
        labels=scene.labels,
        second=scene.paint(generator) if "second" in TASKS[kind].needs else None,
    )
    return kind, *TASKS[kind].function(volumes, generator)


def _turn(images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in (1, 2, 3) if chance(generator, 0.3)]
    order = torch.randperm(3, generator=generator) if chance(generator, 0.5) else torch.arange(3)
    permutation = (0, *(int(i) + 1 for i in order))
    return images.flip(axes).permute(permutation), labels.flip(axes).permute(permutation)


def _pad(
    images: Tensor, labels: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Keep a corner box of every volume, set the rest to zero, as padding does; tell its sides."""
    side = images.shape[-1]
    keep = torch.zeros(side, side, side)
    x, y, z = (integer(generator, side * 3 // 8, side) for _ in range(3))
    keep[:x, :y, :z] = 1
    return images * keep, labels * keep, (x, y, z)


def imitate_coarse_prediction(labels: Tensor, kind: str, generator: Generator) -> Tensor:
    """Make the kind of label a coarser scale would have fed back: (1, 1, 1, X, Y, Z).

    `labels` (N, 1, X, Y, Z) holds the truth first. Segmentation mixes in the mean label
    (what an unsure model predicts), shifts by up to two voxels and adds smooth noise.
    """
    truth = labels[:1, 0]
    side = truth.shape[-1]
    if kind == SEGMENTATION:
        if chance(generator, 0.5):
            share = uniform(generator, 0.0, 0.8)
            truth = (1 - share) * truth + share * labels[1:, 0].mean(0, keepdim=True)
        if chance(generator, 0.3):
            shifts = [integer(generator, -2, 2) for _ in range(3)]
            truth = truth.roll(shifts, (1, 2, 3))
        gain = 1 + uniform(generator, 0, 0.4) * smooth_field(generator, side, 6)
        truth = truth * gain + uniform(generator, 0, 0.1) * smooth_field(generator, side, 10)
    noise = uniform(generator, 0, 0.1) * torch.randn(truth.shape, generator=generator)
    return coarsen(truth + noise).clamp(0, 1)[None, None]
