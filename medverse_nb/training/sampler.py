"""The stream of training tasks: which one comes at a step depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Generator
from torch.utils.data import Dataset, Sampler

from ..tasks.draw import TaskDraw, TaskRates, draw_task, imitate_coarser_scale
from ..tasks.fields import integer
from ..tasks.scenes import Mixture
from .augmentation import AugmentationRates, augment_images, augment_task
from .config import StageConfig, TrainingConfig

SEEDS_APART = 10_000_000  # steps of one seed before those of the next
MOST_WORKERS = 64


def task_rates(config: TrainingConfig) -> TaskRates:
    """Return what a configuration asks of the volumes."""
    return TaskRates(**config.tasks.model_dump())


def augmentation_rates(config: TrainingConfig) -> AugmentationRates:
    """Return the paper's rates, without inverted masks where something is never to be asked for.

    An inverted mask asks for all the rest, and so for what is kept out of every foreground.
    """
    kept_out = any(part.kind == "label_maps" or part.never_foreground for part in config.data)
    return AugmentationRates(mask_inversion=0.0) if kept_out else AugmentationRates()


def step_seed(config: TrainingConfig, step: int) -> int:
    """Return the seed of what all workers share at a step."""
    return config.seed * SEEDS_APART + step


def task_seed(config: TrainingConfig, step: int, rank: int) -> int:
    """Return the seed of one worker's task at a step."""
    return step_seed(config, step) * MOST_WORKERS + rank


def stage_at(config: TrainingConfig, share: float) -> StageConfig:
    """Return the stage of a run after `share`, 0 to 1, of its time."""
    total, passed = sum(stage.share for stage in config.stages), 0.0
    for stage in config.stages:
        passed += stage.share / total
        if share < passed:
            return stage
    return config.stages[-1]


class TaskStream(Dataset[TaskDraw]):
    """Draws the task behind (step, context size, rank)."""

    def __init__(self, mixture: Mixture, config: TrainingConfig) -> None:
        self.mixture, self.config, self.rates = mixture, config, task_rates(config)
        self.augmentation = augmentation_rates(config)

    def __getitem__(self, index: tuple[int, int, int]) -> TaskDraw:
        step, size, rank = index
        generator = Generator().manual_seed(task_seed(self.config, step, rank))
        source = self.mixture.choose(generator)
        window = self.config.network_config.window
        task = draw_task(source, generator, size, window, self.rates)
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


class StepSampler(Sampler[tuple[int, int, int]]):
    """Yields (step, context size, rank) from the step a run stands at, without end.

    The processes of a run have a rank each and draw tasks of their own, all with one context
    size at a step, so that none waits for another.
    """

    def __init__(
        self,
        config: TrainingConfig,
        first: Callable[[], int],
        share: Callable[[], float],
        rank: Callable[[], int],
    ) -> None:
        self.config, self.first, self.share, self.rank = config, first, share, rank

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        step, rank = self.first(), self.rank()
        while True:
            low, high = stage_at(self.config, self.share()).context_size
            generator = Generator().manual_seed(step_seed(self.config, step))
            yield step, integer(generator, low, high), rank
            step += 1
