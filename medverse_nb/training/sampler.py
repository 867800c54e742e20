"""The stream of training tasks: which one comes at a step depends on the seed and the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator
from torch.utils.data import Dataset, Sampler

from ..tasks.draw import (
    Feedback,
    TaskDraw,
    TaskRates,
    draw_feedback,
    draw_task,
    imitate_coarser_scale,
)
from ..tasks.fields import integer
from ..tasks.scenes import Mixture
from .augmentation import AugmentationRates, augment_images, augment_task
from .config import StageConfig, TrainingConfig


class TaskIndex(NamedTuple):
    """Which task: what all of a step share, then whose it is, and which of its owner's."""

    step: int
    window: int
    context_size: int
    feedback: Feedback
    rank: int
    place: int


def task_rates(config: TrainingConfig) -> TaskRates:
    """Return what a configuration asks of the volumes."""
    return TaskRates(**config.tasks.model_dump())


def augmentation_rates(config: TrainingConfig) -> AugmentationRates:
    """Return the paper's rates, without inverted masks where something is never to be asked for.

    An inverted mask asks for all the rest, and so for what is kept out of every foreground.
    """
    kept_out = any(part.kind == "label_maps" or part.never_foreground for part in config.data)
    return AugmentationRates(mask_inversion=0.0) if kept_out else AugmentationRates()


def seed_of(*numbers: int) -> int:
    """Return a generator's seed that is its own for these numbers, in this order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stage_at(config: TrainingConfig, share: float) -> StageConfig:
    """Return the stage of a run after `share`, 0 to 1, of its time."""
    total, passed = sum(stage.share for stage in config.stages), 0.0
    for stage in config.stages:
        passed += stage.share / total
        if share < passed:
            return stage
    return config.stages[-1]


def draw_window(config: TrainingConfig, generator: Generator) -> int:
    """Draw the side of the cubes of one step."""
    if not config.windows:
        return config.network_config.window
    shares = torch.tensor(list(config.windows.values()), dtype=torch.float64)
    return list(config.windows)[int(torch.multinomial(shares, 1, generator=generator))]


class TaskStream(Dataset[TaskDraw]):
    """Draws the task behind an index."""

    def __init__(self, mixture: Mixture, config: TrainingConfig) -> None:
        self.mixture, self.config, self.rates = mixture, config, task_rates(config)
        self.augmentation = augmentation_rates(config)

    def __getitem__(self, index: TaskIndex) -> TaskDraw:
        seed = seed_of(self.config.seed, index.step, index.rank, index.place)
        generator = Generator().manual_seed(seed)
        source = self.mixture.choose(generator)
        task = draw_task(
            source, generator, index.context_size, index.window, self.rates, index.feedback
        )
        if self.config.augmentation == "none":
            return task
        return augmented(task, generator, self.augmentation)


def augmented(task: TaskDraw, generator: Generator, rates: AugmentationRates) -> TaskDraw:
    """Augment all volumes of a task of one scale; one of two scales stays as it is.

    An autoregressive context is imitated anew, from what the task has become.
    """
    if task.coarse is not None:
        return task
    inputs = torch.cat([task.target[0], task.context_image[0, :, 0]])
    outputs = torch.cat([task.truth[0], task.context_label[0, :, 0]])
    inputs, outputs = augment_task(task.kind, inputs, outputs, generator, rates)
    inputs, outputs = augment_images(inputs, outputs, generator, rates)
    changed = replace(
        task,
        target=inputs[None, :1],
        truth=outputs[None, :1],
        context_image=inputs[None, 1:, None],
        context_label=outputs[None, 1:, None],
    )
    return changed if task.ar_image is None else imitate_coarser_scale(changed, generator)


class StepSampler(Sampler[list[TaskIndex]]):
    """Yields the tasks of each step, from the one a run stands at, without end.

    The processes of a run have a rank each and draw tasks of their own, all with one window,
    one context size and one kind of feedback at a step: none waits for another, and a step's
    tasks stack.
    """

    def __init__(
        self,
        config: TrainingConfig,
        first: Callable[[], int],
        share: Callable[[], float],
        rank: Callable[[], int],
    ) -> None:
        self.config, self.first, self.share, self.rank = config, first, share, rank
        self.rates = task_rates(config)

    def __iter__(self) -> Iterator[list[TaskIndex]]:
        step, rank = self.first(), self.rank()
        while True:
            low, high = stage_at(self.config, self.share()).context_size
            generator = Generator().manual_seed(seed_of(self.config.seed, step))
            size = integer(generator, low, high)
            feedback = draw_feedback(generator, self.rates)
            window = draw_window(self.config, generator)
            places = range(self.config.optimizer.batch)
            yield [TaskIndex(step, window, size, feedback, rank, place) for place in places]
            step += 1
