import errno
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import lightning as L
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from torch import Generator
from torch.utils.data import DataLoader

import medverse_nb as mv
from medverse_nb.model.weights import load_network, read_notes
from medverse_nb.tasks.draw import TaskDraw, TaskRates, draw_task, stack_tasks
from medverse_nb.tasks.fields import double
from medverse_nb.tasks.scenes import Mixture, ShapeSource
from medverse_nb.training import module as module_file
from medverse_nb.training import run as run_file
from medverse_nb.training import sampler as sampler_file
from medverse_nb.training import validation as validation_file
from medverse_nb.training.augmentation import AugmentationRates
from medverse_nb.training.config import TrainingConfig
from medverse_nb.training.forward import predict_tasks
from medverse_nb.training.losses import task_loss
from medverse_nb.training.module import ICLModule, Plateau
from medverse_nb.training.sampler import (
    StepSampler,
    TaskIndex,
    TaskStream,
    augmentation_rates,
    augmented,
    seed_of,
    stage_at,
    task_rates,
)
from medverse_nb.training.validation import hard_dice, peak_signal_to_noise, validate

WINDOW = 16
SETTINGS = {
    "name": "toy",
    "licence": "CC0-1.0",
    "description": "random shapes",
    "network": {"channels": [4, 8], "window": WINDOW, "output": "sigmoid"},
    "data": [{"kind": "shapes"}],
    "optimizer": {"warm_up_steps": 2, "average_decay": 0.9},
    "validation": {"tasks": 3, "context_sizes": [1, 2]},
}
SHAPES = Mixture([ShapeSource()], [1.0])


@pytest.fixture(autouse=True)
def single(one_thread):
    """Small convolutions only wait for other threads."""


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def settings_with(**changes: object) -> dict:
    """Change parts of the settings: `optimizer={"accumulate": 2}` keeps its other keys."""
    return SETTINGS | {
        key: SETTINGS.get(key, {}) | value if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def config_with(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate(settings_with(**changes))


def plant_task(kind: str = "segmentation", seed: int = 0, **rates: float) -> TaskDraw:
    image_share = 0.0 if kind == "segmentation" else 1.0
    asked = TaskRates(**{"autoregressive": 0.0, "padded": 0.0, "enhancement": image_share} | rates)
    return draw_task(ShapeSource(), seeded(seed), 2, WINDOW, asked)


def parameters_of(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(a, b, strict=True))


# --- the learning rate -------------------------------------------------------------------------


def module_at(monkeypatch, step: int, share: float = 0.0, **optimizer: object) -> ICLModule:
    settings = {"peak_rate": 2e-3, "warm_up_steps": 300} | optimizer
    module = ICLModule(config_with(optimizer=settings), minutes=10)
    monkeypatch.setattr(ICLModule, "global_step", step)
    module.elapsed_s = 600 * share
    return module


@pytest.mark.parametrize(
    ("step", "share", "rate"),
    [
        (0, 0.0, 2e-3 / 300),
        (149, 0.0, 1e-3),
        (299, 0.0, 2e-3),
        (5000, 0.0, 2e-3),
        (5000, 0.5, 2e-3 * (0.01 + 0.99 / 2)),
        (5000, 0.25, 2e-3 * (0.01 + 0.99 * (0.5 + 0.125**0.5))),
        (149, 0.5, 1e-3 * (0.01 + 0.99 / 2)),
        (5000, 1.0, 2e-5),
        (5000, 1.7, 2e-5),
    ],
)
def test_the_rate_warms_up_by_steps_and_falls_by_the_clock(monkeypatch, step, share, rate):
    assert module_at(monkeypatch, step, share).learning_rate() == pytest.approx(rate)


def test_the_rate_of_a_plateau_is_halved_and_knows_no_clock(monkeypatch):
    module = module_at(monkeypatch, 149, 1.0, schedule="plateau", patience=2)
    assert module.learning_rate() == pytest.approx(1e-3)
    for score, rate in [(0.5, 1e-3), (0.4, 1e-3), (0.4, 5e-4), (0.6, 5e-4), (0.6, 5e-4)]:
        module.plateau.update(score)
        assert module.learning_rate() == pytest.approx(rate)
    module.plateau.update(0.6)  # no better for the second time
    assert module.learning_rate() == pytest.approx(2.5e-4)


def test_a_plateau_goes_on_where_it_was():
    one, two = Plateau(patience=3), Plateau(patience=3)
    for score in (0.1, 0.0, 0.0, 0.0, 0.05):
        one.update(score)
    two.load_state_dict(one.state_dict())
    for plateau in (one, two):
        plateau.update(0.07)
        assert plateau.factor == 0.5
        plateau.update(0.09)
        assert plateau.factor == 0.25
    assert two.best == 0.1


# --- steps -------------------------------------------------------------------------------------


class Watch(L.Callback):
    """Keep what each step did: loss, learning rate, parameters after it, their average."""

    def __init__(self) -> None:
        self.losses, self.rates, self.networks, self.averages = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.networks.append(parameters_of(module.network))
        self.averages.append(parameters_of(module.average.module))


def fit(module: ICLModule, tasks: list[TaskDraw], accumulate: int = 1) -> Watch:
    watch = Watch()
    L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(tasks, batch_size=None))
    return watch


def test_steps_lower_the_loss_on_one_task():
    module = ICLModule(config_with(optimizer={"warm_up_steps": 4}), minutes=10)
    watch = fit(module, [plant_task(seed=1)] * 40)
    assert len(watch.losses) == 40
    assert watch.rates[:5] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3, 2e-3])
    assert sum(watch.losses[-3:]) / 3 < 0.8 * watch.losses[0]


def test_a_step_is_as_large_as_the_rate():
    module = ICLModule(config_with(optimizer={"peak_rate": 1e-2, "warm_up_steps": 1}), minutes=10)
    before = parameters_of(module.network)
    (after,) = fit(module, [plant_task()]).networks
    moved = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert 0.9e-2 < moved <= 1.1e-2  # the first step of Adam


def test_the_average_trails_the_network():
    module = ICLModule(config_with(optimizer={"peak_rate": 1e-2}), minutes=10)
    watch = fit(module, [plant_task()] * 3)
    one, two, three = watch.networks
    assert same(watch.averages[0], one)  # it starts at the first step's weights
    for average, a, b, c in zip(watch.averages[2], one, two, three, strict=True):
        before = (2 * a + 9 * b) / 11  # (1 + n) / (10 + n) stays after n updates, at most 0.9
        assert torch.allclose(average, (3 * before + 9 * c) / 12, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in module.average.parameters())


def test_the_average_waits_for_accumulated_gradients():
    config = config_with(optimizer={"peak_rate": 1e-2, "accumulate": 2})
    watch = fit(ICLModule(config, minutes=10), [plant_task()] * 4, accumulate=2)
    assert not same(watch.averages[1], watch.averages[3])
    assert same(watch.averages[1], watch.averages[2])
    for average, a, b in zip(watch.averages[3], watch.networks[1], watch.networks[3], strict=True):
        assert torch.allclose(average, (2 * a + 9 * b) / 11, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_passed_over():
    good = plant_task("image")
    broken = replace(good, target=torch.full_like(good.target, torch.inf))
    watch = fit(ICLModule(config_with(), minutes=10), [good, broken, good])
    assert [torch.isfinite(torch.tensor(loss)).item() for loss in watch.losses] == [1, 0, 1]
    assert same(watch.networks[0], watch.networks[1])
    assert not same(watch.networks[1], watch.networks[2])
    assert all(torch.isfinite(parameter).all() for parameter in watch.networks[2])


def test_a_gradient_is_clipped(monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted(parameters, limit):
        parameters = list(parameters)
        clip(parameters, limit)
        norms.append(
            float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm())
        )
        return torch.tensor(1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    fit(ICLModule(config_with(optimizer={"clip": 1e-3}), minutes=10), [plant_task()])
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_seed_decides_the_network():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two, other = (ICLModule(config_with(seed=seed), minutes=1) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(parameters_of(one.network), parameters_of(two.network))
    assert not same(parameters_of(one.network), parameters_of(other.network))
    assert same(parameters_of(one.network), parameters_of(one.average.module))


@pytest.mark.parametrize("loss", ["bce_dice", "smooth_l1"])
@pytest.mark.parametrize("kind", ["segmentation", "image"])
@torch.no_grad()
def test_the_loss_is_the_one_asked_for_with_the_tasks_weight(monkeypatch, loss, kind):
    monkeypatch.setattr(ICLModule, "log", lambda *_, **__: None)  # there is no trainer
    module, task = ICLModule(config_with(loss=loss), minutes=1), plant_task(kind)
    wanted = task_loss(
        predict_tasks(module.network, task),
        task.truth,
        task.kind,
        task.weights[0],
        segmentation=loss,
    )
    assert float(module.training_step(task, 0)) == pytest.approx(float(wanted))
    doubled = float(module.training_step(replace(task, weights=(2 * task.weights[0],)), 0))
    assert doubled == pytest.approx(float(wanted) * (2 if loss == "smooth_l1" else 1))


@pytest.mark.parametrize("feedback", ["none", "own"])
def test_a_step_of_several_tasks_is_the_mean_of_their_losses(monkeypatch, feedback):
    monkeypatch.setattr(ICLModule, "log", lambda *_, **__: None)
    module = ICLModule(config_with(), minutes=1)
    rates = TaskRates(enhancement=0.5)
    tasks = [draw_task(SHAPES.sources[0], seeded(s), 2, WINDOW, rates, feedback) for s in range(4)]
    assert len({task.kind for task in tasks}) > 1
    losses = [float(module.training_step(task, 0).detach()) for task in tasks]
    together = float(module.training_step(stack_tasks(tasks), 0).detach())
    assert together == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_the_networks_own_coarse_prediction_is_fed_back(monkeypatch):
    monkeypatch.setattr(ICLModule, "log", lambda *_, **__: None)
    module = ICLModule(config_with(), minutes=1)
    task = plant_task(autoregressive=1.0, own_prediction=1.0)
    asked = []

    def noted(network, task, *arguments, **settings):
        prediction = predict_tasks(network, task, *arguments, **settings)
        asked.append((task, torch.is_grad_enabled(), prediction))
        return prediction

    monkeypatch.setattr(module_file, "predict_tasks", noted)
    loss = module.training_step(task, 0)
    (coarse, graph_of_coarse, answer), (fine, graph_of_fine, prediction) = asked
    assert coarse is task.coarse
    assert (graph_of_coarse, graph_of_fine) == (False, True)
    assert not answer.requires_grad
    region = (..., *task.regions[0])
    assert torch.equal(fine.ar_label[0], double(answer)[region])
    assert torch.equal(fine.ar_image[0], double(coarse.target)[region])
    assert torch.equal(fine.target, task.target)
    assert torch.equal(loss, task_loss(prediction, task.truth, task.kind))
    loss.backward()
    assert float(module.network.autoregressive_embedding.grad.abs().sum()) > 0


# --- the stream of tasks -----------------------------------------------------------------------


def indexes(config: TrainingConfig, count: int, first=0, share=0.0, rank=0) -> list[TaskIndex]:
    sampler = StepSampler(config, lambda: first, lambda: share, lambda: rank)
    return [index for (index,) in itertools.islice(sampler, count)]


def test_the_sampler_starts_where_the_run_stands():
    config = config_with(stages=[{"context_size": [1, 9]}])
    whole = indexes(config, 30)
    assert [index.step for index in whole] == list(range(30))
    assert indexes(config, 18, first=12) == whole[12:]
    assert indexes(config_with(seed=2, stages=[{"context_size": [1, 9]}]), 30) != whole
    assert indexes(config, 30) == whole


def test_the_sampler_asks_where_the_run_stands_when_it_starts():
    stands = [7]
    sampler = StepSampler(config_with(), lambda: stands[0], lambda: 0.0, lambda: 0)
    stands[0] = 40  # a checkpoint was read meanwhile
    assert next(iter(sampler))[0].step == 40


def test_context_sizes_lie_in_the_stages_range():
    config = config_with(stages=[{"context_size": [2, 5]}])
    sizes = [index.context_size for index in indexes(config, 200)]
    assert set(sizes) == {2, 3, 4, 5}
    assert all(abs(sizes.count(size) - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5 for size in set(sizes))


def test_windows_come_as_often_as_they_are_asked_for():
    assert {index.window for index in indexes(config_with(), 9)} == {WINDOW}
    config = config_with(windows={WINDOW: 3, 2 * WINDOW: 1})
    drawn = indexes(config, 200)
    larger = sum(index.window == 2 * WINDOW for index in drawn)
    assert abs(larger - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5
    stream = TaskStream(SHAPES, config)
    sides = {index.window: stream[index].target.shape[-1] for index in drawn[:20]}
    assert sides == {WINDOW: WINDOW, 2 * WINDOW: 2 * WINDOW}


def test_all_processes_have_one_window_context_size_and_feedback_at_a_step():
    config = config_with(stages=[{"context_size": [1, 9]}], windows={WINDOW: 1, 2 * WINDOW: 1})
    drawn = [indexes(config, 20, rank=rank) for rank in range(3)]
    for rank, mine in enumerate(drawn):
        assert [index[:4] for index in mine] == [index[:4] for index in drawn[0]]
        assert {index.rank for index in mine} == {rank}


STAGES = [{"share": share, "context_size": [n, n]} for n, share in enumerate((1, 2, 1), start=1)]


def test_stages_come_by_their_share_of_the_time():
    config = config_with(stages=STAGES)
    shares = [0.0, 0.249, 0.25, 0.749, 0.75, 0.999, 1.0]
    assert [stage_at(config, share).context_size[0] for share in shares] == [1, 1, 2, 2, 3, 3, 3]
    share = [0.1]
    drawn = iter(StepSampler(config, lambda: 0, lambda: share[0], lambda: 0))
    sizes = []
    for share[0] in (0.1, 0.5, 0.9):  # the stage changes while the run goes on
        sizes.append(next(drawn)[0].context_size)
    assert sizes == [1, 2, 3]


def same_task(a: TaskDraw, b: TaskDraw) -> bool:
    return torch.equal(a.target, b.target) and torch.equal(a.context_label, b.context_label)


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_seed_and_index_alone_decide_a_task(augmentation):
    stream = TaskStream(SHAPES, config_with(augmentation=augmentation))
    torch.manual_seed(1)
    index = TaskIndex(5, WINDOW, 2, "none", 0, 0)
    first = stream[index]
    torch.manual_seed(2)
    again = TaskStream(SHAPES, config_with(augmentation=augmentation))
    again[TaskIndex(4, WINDOW, 1, "none", 0, 0)]
    assert same_task(again[index], first)
    others = [stream[index._replace(**{name: 6})] for name in ("step", "rank", "place")]
    others.append(TaskStream(SHAPES, config_with(seed=2, augmentation=augmentation))[index])
    assert not any(same_task(other, first) for other in others)
    assert first.context_image.shape == (1, 2, 1, *(WINDOW,) * 3)


def test_no_two_tasks_have_one_seed():
    numbers = list(itertools.product((0, 1, 2**64 - 1), (0, 1, 9_999_999), (0, 1, 63), (0, 12)))
    seeds = {seed_of(*each) for each in numbers}
    assert len(seeds) == len(numbers)
    assert seed_of(1, 23) != seed_of(12, 3)
    for seed in seeds:
        seeded(seed)  # none is too large


def test_what_the_configuration_asks_of_the_volumes_is_drawn():
    asked = {"enhancement": 1.0, "autoregressive": 1.0, "own_prediction": 0.0, "padded": 0.0}
    rates = task_rates(config_with(tasks=asked | {"group": 0.1, "largest_group": 3}))
    assert rates == TaskRates(**asked, group=0.1, largest_group=3)
    stream = TaskStream(SHAPES, config_with(tasks=asked))
    drawn = [stream[TaskIndex(step, WINDOW, 1, "imitated", 0, 0)] for step in range(4)]
    assert all(task.kind != "segmentation" and task.ar_image is not None for task in drawn)


def test_augmentation_keeps_shapes_and_ranges():
    plain, stream = (TaskStream(SHAPES, config_with(augmentation=a)) for a in ("none", "paper"))
    changed = 0
    for step, feedback in zip(range(30), itertools.cycle(("none", "imitated", "own"))):
        index = TaskIndex(step, WINDOW, 2, feedback, 0, 0)
        one, two = plain[index], stream[index]
        assert two.kind == one.kind
        for field in fields(TaskDraw):
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert type(a) is type(b), field.name
            if isinstance(b, torch.Tensor):
                assert b.shape == a.shape, field.name
                assert b.dtype == torch.float32, field.name
                assert 0 <= b.min() <= b.max() <= 1, field.name
        changed += not same_task(one, two)
        if one.coarse is not None:
            assert same_task(one, two)
            assert same_task(one.coarse, two.coarse)
    assert 5 < changed < 30


NONE = AugmentationRates(**{field.name: 0.0 for field in fields(AugmentationRates)})


def test_augmentation_treats_all_volumes_of_a_task_alike():
    task = plant_task()
    flipped = augmented(task, seeded(), replace(NONE, flip=1.0))
    axis = next(
        axis for axis in (-1, -2, -3) if torch.equal(flipped.target, task.target.flip(axis))
    )
    for name in ("truth", "context_image", "context_label"):
        assert torch.equal(getattr(flipped, name), getattr(task, name).flip(axis)), name
    assert flipped.ar_image is None
    assert same_task(augmented(task, seeded(), NONE), task)


def test_an_imitated_prediction_follows_its_augmented_task():
    task = plant_task(autoregressive=1.0, own_prediction=0.0)
    inverted = augmented(task, seeded(), replace(NONE, mask_inversion=1.0, inversion=1.0))
    assert torch.allclose(inverted.truth, 1 - task.truth)
    assert torch.allclose(inverted.ar_image, 1 - task.ar_image, atol=1e-5)
    far = (inverted.ar_label[0] - task.truth).abs().mean()
    assert (inverted.ar_label[0] - inverted.truth).abs().mean() < 0.5 * far


def test_masks_are_not_inverted_where_something_is_never_asked_for(tmp_path):
    shapes, heads = {"kind": "shapes"}, {"kind": "label_maps", "folder": tmp_path}
    scans = {"kind": "nnunet", "folder": tmp_path}
    plain = AugmentationRates()
    careful = replace(plain, mask_inversion=0.0)
    assert augmentation_rates(config_with(data=[shapes, scans])) == plain
    assert augmentation_rates(config_with(data=[shapes, heads])) == careful
    assert augmentation_rates(config_with(data=[scans | {"never_foreground": [3]}])) == careful
    for data, inverting in [([shapes], 1.0), ([shapes, heads], 0.0)]:
        stream = TaskStream(SHAPES, config_with(data=data, augmentation="paper"))
        asked = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sampler_file,
                "augment_task",
                lambda *arguments, seen=asked: (seen.append(arguments[-1]), arguments[1:3])[1],
            )
            while not asked:
                stream[TaskIndex(len(asked), WINDOW, 1, "none", len(asked), 0)]
        assert asked[0].mask_inversion == inverting * plain.mask_inversion


# --- validation --------------------------------------------------------------------------------


def mask(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


def test_hard_dice_by_hand():
    assert hard_dice(mask(0.9, 0.6, 0.4, 0.5), mask(1, 0, 1, 0)) == pytest.approx(2 / 4)
    assert hard_dice(mask(0.1, 0.2), mask(0, 0)) == 1
    assert hard_dice(mask(0.9, 0.2), mask(0, 0)) == 0


def test_peak_signal_to_noise_by_hand():
    truth = torch.full((1, 1, 2, 2, 2), 0.5)
    assert peak_signal_to_noise(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    assert peak_signal_to_noise(truth + 9, truth) == pytest.approx(6.0206, abs=1e-3)  # clipped
    assert peak_signal_to_noise(truth, truth) == pytest.approx(100)


class MeanLabel(torch.nn.Module):
    """Answers with the mean label; takes no feedback and no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asked = 0

    def forward(self, _target, _image, label, *feedback, **_):
        assert feedback == (None, None)
        assert not torch.is_grad_enabled()
        self.asked += 1
        return label.mean(1)


def test_a_network_that_copies_the_mean_label_scores_as_it():
    asked = {"autoregressive": 1.0, "own_prediction": 1.0, "enhancement": 0.3}
    config = config_with(tasks=asked, validation={"tasks": 8, "context_sizes": [1, 3]})
    network = MeanLabel()
    scores = validate(network, SHAPES, config)
    names = {"dice", "mean_label", "psnr_gain"}
    assert set(scores) == {f"{name}_{size}" for name in names for size in (1, 3)}
    for size in (1, 3):
        assert scores[f"dice_{size}"] == scores[f"mean_label_{size}"]
        assert 0 < scores[f"dice_{size}"] < 1
    assert 8 < network.asked <= 16
    assert validate(network, SHAPES, config) == scores  # the tasks are fixed


def test_image_tasks_are_drawn_in_float32_whatever_the_precision():
    asked = {"enhancement": 1.0}
    config = config_with(tasks=asked, validation={"tasks": 2, "context_sizes": [1]})
    network = ICLModule(config, minutes=1).network
    scores = validate(network, SHAPES, config, "bfloat16")
    assert scores["psnr_gain_1"] == pytest.approx(
        validate(network, SHAPES, config)["psnr_gain_1"], abs=0.5
    )


def test_scores_by_hand(monkeypatch):
    def segmentation(truth: int, *context: int) -> TaskDraw:
        """Make masks of so many voxels at the start of 64."""
        volumes = torch.zeros(1 + len(context), 1, 1, 64)
        for volume, count in zip(volumes, (truth, *context), strict=True):
            volume[..., :count] = 1
        label = volumes[None, 1:, None]
        return TaskDraw(("segmentation",), volumes[None, :1], volumes[None, :1], label, label)

    grey = torch.full((1, 1, 2, 2, 2), 0.5)
    image = TaskDraw(("inpainting",), grey + 0.1, grey, grey[None], grey[None] + 0.01)
    drawn = {
        0: segmentation(40, 40, 10, 30),  # two of three hold the first 30
        1: segmentation(20, 10, 10, 64),  # ten are in all
        2: segmentation(19, 64, 64, 64),  # too small to be counted
        3: image,
    }

    def draw(source, generator, size, window, rates):
        assert (source, size, window) == (SHAPES.sources[0], 3, WINDOW)
        assert rates.autoregressive == 0
        return drawn[generator.initial_seed()]

    monkeypatch.setattr(validation_file, "draw_task", draw)
    config = config_with(validation={"tasks": 4, "context_sizes": [3]})
    dice = (2 * 30 / 70 + 2 * 10 / 30) / 2
    assert validate(MeanLabel(), SHAPES, config) == {
        "dice_3": pytest.approx(dice),
        "mean_label_3": pytest.approx(dice),
        "psnr_gain_3": pytest.approx(20, abs=0.01),  # from 20 dB to 40
    }


# --- whole runs ----------------------------------------------------------------------------------


class Clock:
    """Moves a second at every look, so that a run's length is a count of steps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_file, "time", clock)
    return clock


@pytest.fixture
def often(monkeypatch):
    """Write a checkpoint after every step but the first, and a line of the log."""
    monkeypatch.setattr(run_file, "CHECKPOINT_EVERY", timedelta(microseconds=1))
    monkeypatch.setattr(run_file, "LOG_EVERY_STEPS", 1)


@pytest.fixture
def drawn(monkeypatch) -> list[TaskIndex]:
    """What was asked of the stream; the loader is one task ahead of the training."""
    indexes = []
    draw = TaskStream.__getitem__
    monkeypatch.setattr(
        TaskStream, "__getitem__", lambda self, index: indexes.append(index) or draw(self, index)
    )
    return indexes


@pytest.fixture
def train(cli, clock, tmp_path):
    """Train so many steps in all, by the command line, in this process."""

    def trained(steps: int, *options: str, folder: str = "run", **changes: object):
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(settings_with(**changes)))
        arguments = ["train", "--config", path, "--run", tmp_path / folder, "--device", "cpu"]
        arguments += ["--workers", 1, "--minutes", (steps - 0.5) / 60]
        return cli(*arguments, *options)

    return trained


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=True)


def contents_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def test_a_run_trains_and_leaves_what_it_promises(train, often, tmp_path):
    run = tmp_path / "run"
    outcome = train(6)
    assert outcome.code == 0, outcome.err
    assert f"written to {run / 'toy.safetensors'}" in outcome.out
    assert {path.name for path in run.iterdir()} == {
        "last.ckpt",
        "validation.jsonl",
        "logs",
        "toy.safetensors",
    }
    checkpoint = checkpoint_of(run)
    assert checkpoint["global_step"] == 6
    assert checkpoint["elapsed_s"] == 6

    (row,) = lines_of(run)
    assert (row["step"], row["minutes"]) == (6, 0.1)
    assert {"dice_1", "mean_label_1", "dice_2", "mean_label_2"} <= set(row)
    assert json.dumps(row) in outcome.out

    (metrics,) = (run / "logs").rglob("metrics.csv")
    header, *rows = metrics.read_text().splitlines()
    columns = header.split(",")
    table = [dict(zip(columns, line.split(","), strict=True)) for line in rows]
    losses = [float(line["loss"]) for line in table if line["loss"]]
    assert len(losses) == 6
    (scored,) = [line for line in table if line["dice_2"]]
    assert float(scored["dice_2"]) == pytest.approx(row["dice_2"], abs=1e-4)
    assert int(scored["step"]) == 6
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    assert all(0 < loss < 10 for loss in losses)

    weights = run / "toy.safetensors"
    network = mv.load_model(str(weights))
    assert network.config == config_with().network_config
    averaged = checkpoint["state_dict"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, averaged[f"average.module.{key}"].half().float()), key
    notes = read_notes(weights)
    assert notes["name"] == "toy"
    assert notes["licence"] == "CC0-1.0"
    assert notes["training"].startswith("6 steps, 0 minutes, 1 workers on cpu, seed 1, torch ")
    assert notes["training"].endswith("; random shapes")


def test_a_step_takes_as_many_tasks_as_asked_for(train, drawn, tmp_path):
    assert train(3, optimizer={"batch": 2}).code == 0
    assert [(index.step, index.place) for index in drawn[:6]] == [
        (step, place) for step in range(3) for place in range(2)
    ]
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3


def test_a_run_starts_from_weights_and_with_the_seed_it_is_given(train, tmp_path):
    assert train(4).code == 0
    first = tmp_path / "run" / "toy.safetensors"
    options = ["--initial-weights", first, "--seed", 5]
    outcome = train(2, *options, folder="second", optimizer={"peak_rate": 1e-9})
    assert outcome.code == 0, outcome.err
    second = tmp_path / "second" / "toy.safetensors"
    one, two, other = (mv.load_model(str(path)) for path in (first, second, first))
    assert one.config == two.config
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    chance_weights = ICLModule(config_with(seed=5), minutes=1).network
    assert not same(parameters_of(other), parameters_of(chance_weights))
    notes = read_notes(second)["training"]
    assert notes.startswith("from toy (4 steps, 0 minutes, 1 workers on cpu, seed 1, ")
    assert "), 2 steps, " in notes
    assert "seed 5" in notes


def test_the_same_network_goes_on_with_another_window(train, tmp_path):
    assert train(2).code == 0
    wider = {"channels": [4, 8], "window": 2 * WINDOW, "output": "sigmoid"}
    options = ["--initial-weights", tmp_path / "run" / "toy.safetensors"]
    outcome = train(1, *options, folder="wider", network=wider)
    assert outcome.code == 0, outcome.err
    assert mv.load_model(str(tmp_path / "wider" / "toy.safetensors")).config.window == 2 * WINDOW


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("medverse-tiny", "is another network: channels"),
        ("medverse-huge", "no model 'medverse-huge'"),
    ],
)
def test_weights_that_cannot_be_started_from_leave_nothing(train, tmp_path, weights, reason):
    outcome = train(2, "--initial-weights", weights)
    assert outcome.code == 2
    assert reason in outcome.err
    assert not (tmp_path / "run").exists()


def settings_without_clock(accumulate: int) -> dict[str, dict]:
    """Return settings that bring the same steps whatever the time of a run."""
    return {
        "optimizer": {"schedule": "plateau", "accumulate": accumulate, "peak_rate": 1e-2},
        "tasks": {"autoregressive": 1.0, "own_prediction": 0.5},
    }


def assert_same_run(one: Path, two: Path, before: dict) -> None:
    """Assert that two runs came to the same end, and not to where they were before."""
    a, b = checkpoint_of(one), checkpoint_of(two)
    assert a["global_step"] == b["global_step"] > before["global_step"]
    assert a["elapsed_s"] == b["elapsed_s"] > before["elapsed_s"]
    moved = 0.0
    for key, value in a["state_dict"].items():
        assert torch.allclose(value, b["state_dict"][key], atol=1e-6), key
        moved = max(moved, float((value - before["state_dict"][key]).abs().max()))
    assert moved > 1e-3
    (state,), (other,) = a["optimizer_states"], b["optimizer_states"]
    for key, value in state["state"].items():
        assert torch.allclose(value["exp_avg"], other["state"][key]["exp_avg"], atol=1e-6)
        assert value["step"] == other["state"][key]["step"]
    notes = [read_notes(folder / "toy.safetensors")["training"] for folder in (one, two)]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_for_longer_is_the_run_in_one_go(train, drawn, tmp_path, accumulate):
    settings = settings_without_clock(accumulate)
    assert train(8, folder="whole", **settings).code == 0
    whole = drawn[:8]
    drawn.clear()
    assert train(4, **settings).code == 0
    first = checkpoint_of(tmp_path / "run")
    assert (first["global_step"], first["elapsed_s"]) == (4 // accumulate, 4)
    assert drawn[:4] == whole[:4]
    drawn.clear()
    outcome = train(8, "--resume", **settings)
    assert outcome.code == 0, outcome.err
    assert drawn[:4] == whole[4:]
    assert [row["step"] for row in lines_of(tmp_path / "run")] == [4 // accumulate, 8 // accumulate]
    assert_same_run(tmp_path / "whole", tmp_path / "run", first)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_half_way_is_the_run_in_one_go(
    train, often, tmp_path, monkeypatch, accumulate
):
    settings, copied = settings_without_clock(accumulate), []
    training_step = ICLModule.training_step

    def copying(self, task, index):
        if self.global_step == 4 // accumulate and not copied:
            copied.append((tmp_path / "whole" / "last.ckpt").read_bytes())
        return training_step(self, task, index)

    with monkeypatch.context() as patch:
        patch.setattr(ICLModule, "training_step", copying)
        assert train(8, folder="whole", **settings).code == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes(copied[0])
    half_way = checkpoint_of(tmp_path / "run")
    assert (half_way["global_step"], half_way["elapsed_s"]) == (4 // accumulate, 4)
    assert train(8, "--resume", **settings).code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run", half_way)


def test_a_second_run_without_resume_changes_nothing(train, tmp_path):
    assert train(2).code == 0
    before = contents_of(tmp_path)
    outcome = train(4)
    assert outcome.code == 2
    assert "last.ckpt is there already; --resume it, or use another --run" in outcome.err
    assert contents_of(tmp_path) == before


def test_resume_of_nothing_starts_from_the_beginning(train, drawn, tmp_path):
    assert train(2, "--resume").code == 0
    assert drawn[0][0] == 0
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2


def test_a_run_out_of_time_is_only_finished(train, tmp_path):
    assert train(4).code == 0
    assert train(2, "--resume").code == 0
    assert checkpoint_of(tmp_path / "run")["global_step"] == 5  # the least that can be done


@pytest.mark.parametrize("place", ["run", "run/deeper"])
def test_a_run_where_nothing_can_be_written(train, tmp_path, place):
    (tmp_path / "run").write_text("a file")
    outcome = train(2, folder=place)
    assert outcome.code == 2
    assert "not a folder" in outcome.err
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("option", [("--minutes", 0), ("--minutes", -1), ("--workers", 0)])
def test_times_and_workers_are_positive(train, tmp_path, option):
    outcome = train(2, *option)
    assert outcome.code == 2
    assert "must be positive" in outcome.err
    assert not (tmp_path / "run").exists()


def test_without_lightning_it_says_what_to_install(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    for name in ("run", "module"):
        monkeypatch.delitem(sys.modules, f"medverse_nb.training.{name}")
    outcome = train(2)
    assert outcome.code == 2
    assert (
        f'training needs lightning: {sys.executable} -m pip install "medverse_nb[train]"'
        in outcome.err
    )


def test_strict_stops_at_a_bad_case(train, tmp_path):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for name in ("one", "two"):
        label = np.zeros((16, 16, 16), np.float32)
        label[4:12, 4:12, 4:12] = 1 if name == "one" else 0.5
        image = nib.Nifti1Image(label, np.eye(4))
        nib.save(image, tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(image, tmp_path / "labelsTr" / f"{name}.nii.gz")
    data = [{"kind": "nnunet", "folder": "."}]  # beside the configuration
    outcome = train(2, "--strict", data=data)
    assert outcome.code == 2
    assert "'two': label has fractional values" in outcome.err
    assert not (tmp_path / "run").exists()
    outcome = train(2, data=data)
    assert outcome.code == 0
    assert "warning: passed over: context pair 'two'" in outcome.err


def test_validation_comes_when_due_and_costs_no_training_time(train, clock, tmp_path, monkeypatch):
    def slow(*arguments):
        clock.now += 1000
        return validate(*arguments)

    monkeypatch.setattr(run_file, "validate", slow)
    due = {"validation": {"every_minutes": 3 / 60, "tasks": 1, "context_sizes": [1]}}
    assert train(7, **due).code == 0
    assert [row["step"] for row in lines_of(tmp_path / "run")] == [3, 6, 7]
    assert train(11, "--resume", **due).code == 0
    assert [row["step"] for row in lines_of(tmp_path / "run")] == [3, 6, 7, 9, 11]
    assert checkpoint_of(tmp_path / "run")["elapsed_s"] == 11


def test_validation_scores_the_average_and_feeds_the_plateau(train, tmp_path, monkeypatch):
    scored = []

    def noted(network, held_out, config, precision):
        scored.append(parameters_of(network))
        return {"dice_1": 0.3, "dice_2": 0.5, "mean_label_1": 0.9, "psnr_gain_1": 7.0}

    monkeypatch.setattr(run_file, "validate", noted)
    plateau = {"schedule": "plateau", "patience": 1, "average_decay": 0.9}
    due = {"every_minutes": 1 / 60}
    assert train(3, optimizer=plateau, validation=due).code == 0
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint["plateau"] == {"factor": 0.25, "best": 0.4, "waited": 0}
    names = [name for name, _ in ICLModule(config_with(), 1).network.named_parameters()]
    saved = [checkpoint["state_dict"][f"average.module.{name}"] for name in names]
    assert same(scored[-1], saved)
    assert not same(scored[-2], saved)
    assert train(5, "--resume", optimizer=plateau, validation=due).code == 0
    after = checkpoint_of(tmp_path / "run")["plateau"]
    assert after == {"factor": 0.25 / 4, "best": 0.4, "waited": 0}  # it goes on


# --- what goes wrong -----------------------------------------------------------------------------


def interrupt_at(monkeypatch, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    training_step = ICLModule.training_step

    def interrupted(self, task, index):
        if self.global_step == step:
            raise error
        return training_step(self, task, index)

    monkeypatch.setattr(ICLModule, "training_step", interrupted)


def test_ctrl_c_leaves_a_whole_checkpoint(train, drawn, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        outcome = train(6)
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert signal.getsignal(signal.SIGINT) is handler
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["last.ckpt", "logs"]
    checkpoint = checkpoint_of(run)
    assert checkpoint["global_step"] == checkpoint["elapsed_s"] == 3
    drawn.clear()
    assert train(6, "--resume").code == 0
    assert drawn[0][0] == 3
    assert checkpoint_of(run)["global_step"] == 6


def test_another_error_leaves_a_whole_checkpoint_too(train, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 3, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        train(6)
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3


class FullDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = path.open("wb"), room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def fill_disk(monkeypatch, how: str) -> None:
    def save(checkpoint, file):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if how == "torch.save":
        monkeypatch.setattr(torch, "save", save)
    else:
        monkeypatch.setattr(run_file, "open", lambda path, _: FullDisk(path, 5000), raising=False)


@pytest.mark.parametrize("how", ["torch.save", "the file"])
def test_a_full_disk_leaves_the_checkpoint_before(train, often, tmp_path, monkeypatch, how):
    """Of torch's own writer a full disk makes a RuntimeError."""
    run, kept = tmp_path / "run", []
    training_step = ICLModule.training_step

    def filling(self, task, index):
        if self.global_step == 4:
            kept.append((run / "last.ckpt").read_bytes())
            fill_disk(monkeypatch, how)
        return training_step(self, task, index)

    with monkeypatch.context() as patch:
        patch.setattr(ICLModule, "training_step", filling)
        outcome = train(9)
    monkeypatch.undo()
    assert outcome.code == 2
    (message,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert "last.ckpt: could not be written" in message
    assert "No space left on device" in message
    assert (run / "last.ckpt").read_bytes() == kept[0]
    assert sorted(path.name for path in run.iterdir()) == ["last.ckpt", "logs"]
    assert checkpoint_of(run)["global_step"] == 4


def test_a_checkpoint_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    writer, path = run_file.WholeOrNothing(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    replaced = []
    replace_with = os.replace

    def noted(new, old):
        replaced.append((torch.load(new, weights_only=True), torch.load(old, weights_only=True)))
        replace_with(new, old)

    monkeypatch.setattr(os, "replace", noted)
    writer.save_checkpoint({"step": 2}, path)
    assert replaced == [({"step": 2}, {"step": 1})]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted_save)
        with pytest.raises(KeyboardInterrupt):
            writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def interrupted_save(checkpoint, file) -> None:
    file.write(b"PK")
    raise KeyboardInterrupt


# --- in processes of their own ---------------------------------------------------------------------

DRIVER = """
    import pathlib
    from datetime import timedelta

    from medverse_nb.cli import main
    from medverse_nb.training import run
    from medverse_nb.training.sampler import TaskStream

    run.CHECKPOINT_EVERY = timedelta(microseconds=1)
    draw = TaskStream.__getitem__


    def noted(self, index):
        with open(f"rank-{index.rank}.txt", "a", encoding="utf-8") as file:
            file.write(f"{index.step} {index.context_size}\\n")
        return draw(self, index)


    TaskStream.__getitem__ = noted


    def broken(*_):
        raise RuntimeError("no held-out subject today")


    if pathlib.Path("broken").exists():
        run.validate = broken
    main()
"""


@pytest.fixture
def start(tmp_path):
    """Start `python -m driver train ...`, which is the command line but for what it notes."""
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    started = []

    def starting(*options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "driver", "train", "--config", "toy.yaml"]
        command += ["--run", "run", "--device", "cpu", *map(str, options)]
        paths = [str(Path(mv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield starting
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_killed_run_can_be_resumed(start, train, drawn, tmp_path):
    run = tmp_path / "run"
    process = start("--workers", 1, "--minutes", 60)
    deadline = time.monotonic() + 300
    while not (run / "last.ckpt").is_file() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    checkpoint = checkpoint_of(run)
    assert checkpoint["global_step"] >= 1
    steps = checkpoint["global_step"] + 2
    clock_s = checkpoint["elapsed_s"]
    outcome = train(clock_s + 2, "--resume")
    assert outcome.code == 0, outcome.err
    assert drawn[0][0] == checkpoint["global_step"]
    resumed = checkpoint_of(run)
    assert resumed["global_step"] == steps
    assert resumed["elapsed_s"] == pytest.approx(clock_s + 2)
    assert load_network(run / "toy.safetensors").config.window == WINDOW
    assert not list(run.glob("*partial*"))


@pytest.mark.slow
def test_two_processes_train_together(start, tmp_path):
    process = start("--workers", 2, "--minutes", 0.05)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    run = tmp_path / "run"
    assert [path.name for path in run.glob("*.safetensors")] == ["toy.safetensors"]
    assert told.count("written to") == 1
    notes = read_notes(run / "toy.safetensors")
    assert "2 workers on cpu" in notes["training"]
    steps = checkpoint_of(run)["global_step"]
    assert steps >= 1
    assert notes["training"].startswith(f"{steps} steps")
    assert len(lines_of(run)) == 1
    one, two = ((tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1))
    assert one == two  # the same steps and context sizes
    assert len(one.splitlines()) == steps + 1  # one was drawn ahead


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(start, tmp_path):
    (tmp_path / "broken").touch()
    process = start("--workers", 2, "--minutes", 0.02)
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "no held-out subject today" in told
