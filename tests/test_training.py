import copy
import math
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Generator

from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.weights import load_network, read_notes
from medverse_nb.tasks.draw import TaskDraw, TaskRates, draw_task
from medverse_nb.training import tiny
from medverse_nb.training.tiny import (
    Progress,
    Trainer,
    average_gradients,
    hard_dice,
    learning_rate,
    training_task,
)


@pytest.fixture(autouse=True)
def small(monkeypatch, one_thread):
    """A network of a millisecond a step; torch's thread count as it was."""
    config = NetworkConfig(channels=(4, 8), window=16, output="sigmoid")
    monkeypatch.setattr(tiny, "CONFIG", config)


@pytest.fixture(scope="module")
def task() -> TaskDraw:
    rates = TaskRates(enhancement=0.0, autoregressive=1.0, own_prediction=0.0, padded=0.0)
    return draw_task([], Generator().manual_seed(0), 2, 16, rates)


def parameters_of(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.network.parameters()]


def mask(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


def test_hard_dice_by_hand():
    assert hard_dice(mask(0.9, 0.6, 0.4, 0.5), mask(1, 0, 1, 0)) == pytest.approx(2 / 4)
    assert hard_dice(mask(0.1, 0.2), mask(0, 0)) == 1
    assert hard_dice(mask(0.9, 0.2), mask(0, 0)) == 0


# --- the learning rate -------------------------------------------------------------------------


def test_the_learning_rate_follows_steps_then_the_clock():
    peak, warm = tiny.PEAK_RATE, tiny.WARM_UP_STEPS
    assert learning_rate(Progress(0, 0.0), 100) == pytest.approx(peak / warm)
    assert learning_rate(Progress(warm // 2 - 1, 0.0), 100) == pytest.approx(peak / 2)
    assert learning_rate(Progress(warm, 0.0), 100) == pytest.approx(peak)
    assert learning_rate(Progress(5000, 50.0), 100) == pytest.approx(peak * (0.01 + 0.99 / 2))
    assert learning_rate(Progress(5000, 100.0), 100) == pytest.approx(0.01 * peak)
    assert learning_rate(Progress(5000, 170.0), 100) == pytest.approx(0.01 * peak)


# --- the tasks of a run ------------------------------------------------------------------------


def same_task(a: TaskDraw, b: TaskDraw) -> bool:
    return torch.equal(a.target, b.target) and torch.equal(a.context_label, b.context_label)


def test_a_task_depends_on_seed_step_and_worker_alone():
    torch.manual_seed(1)
    first = training_task([], seed=1, step=5, worker=0)
    torch.manual_seed(2)
    assert same_task(training_task([], seed=1, step=5, worker=0), first)
    for seed, step, worker in [(2, 5, 0), (1, 6, 0), (1, 5, 1)]:
        assert not same_task(training_task([], seed, step, worker), first)
    assert first.target.shape == (1, 1, 16, 16, 16)


def test_workers_of_a_step_have_one_context_size():
    sizes = set()
    for step in range(16):
        here = {training_task([], 1, step, worker).context_image.shape[1] for worker in (0, 1)}
        assert len(here) == 1
        sizes |= here
    assert sizes == set(range(1, tiny.LARGEST_CONTEXT + 1))


def test_held_out_subjects_are_held_out():
    assert not set(tiny.TRAINING_SUBJECTS) & set(tiny.VALIDATION_SUBJECTS)


# --- steps -----------------------------------------------------------------------------------


def test_steps_lower_the_loss_on_one_task(task):
    trainer = Trainer(seed=0)
    losses = [trainer.step(task, rate=5e-3) for _ in range(20)]
    assert trainer.progress.step == 20
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_a_step_uses_the_rate_it_is_given(task):
    trainer = Trainer(seed=0)
    before = parameters_of(trainer)
    trainer.step(task, rate=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters_of(trainer), strict=True))
    trainer.step(task, rate=1e-2)
    moved = [
        float((a - b).abs().max()) for a, b in zip(before, parameters_of(trainer), strict=True)
    ]
    assert 0 < max(moved) <= 1.5e-2  # Adam's steps are about the rate


def test_the_average_trails_the_network(task):
    trainer = Trainer(seed=0)
    trainer.step(task, rate=1e-2)
    first = parameters_of(trainer)  # the average starts at the first step's weights
    trainer.step(task, rate=1e-2)
    for average, one, two in zip(
        trainer.average.module.parameters(), first, parameters_of(trainer), strict=True
    ):
        expected = tiny.EMA_DECAY * one + (1 - tiny.EMA_DECAY) * two
        assert torch.allclose(average, expected, atol=1e-6)


def test_a_non_finite_gradient_is_passed_over(task):
    trainer = Trainer(seed=0)
    trainer.step(task, rate=1e-3)
    before = parameters_of(trainer)
    broken = copy.copy(task)
    object.__setattr__(broken, "target", torch.full_like(task.target, torch.inf))
    # the truth is compared with NaN; an image loss lets it through to the gradient
    object.__setattr__(broken, "kind", "inpainting")
    assert not math.isfinite(trainer.step(broken, rate=1e-3))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters_of(trainer), strict=True))
    assert math.isfinite(trainer.step(task, rate=1e-3))


class OneMoreWorker:
    """torch.distributed with a second worker whose gradients are all three."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def get_world_size() -> int:
        return 2

    @staticmethod
    def all_reduce(flat: torch.Tensor) -> None:
        flat += 3


def test_gradients_are_averaged_over_the_workers(monkeypatch):
    network = torch.nn.Linear(2, 1)
    network.weight.grad = torch.tensor([[1.0, 5.0]])  # the bias has none here: counts as 0
    average_gradients(network)
    assert network.bias.grad is None  # alone, nothing happens
    monkeypatch.setattr(tiny, "dist", OneMoreWorker)
    average_gradients(network)
    assert network.weight.grad.tolist() == [[2.0, 4.0]]
    assert network.bias.grad.tolist() == [1.5]


def test_the_seed_decides_the_network():
    one, two, other = Trainer(1), Trainer(1), Trainer(2)
    pairs = list(zip(parameters_of(one), parameters_of(two), parameters_of(other), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


# --- checkpoints -------------------------------------------------------------------------------


def assert_same(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert_same(value, b[key])
    elif isinstance(a, list | tuple):
        for one, two in zip(a, b, strict=True):
            assert_same(one, two)
    else:
        assert a == b


def test_a_checkpoint_restores_everything(task, tmp_path):
    trainer = Trainer(seed=0)
    for _ in range(3):
        trainer.step(task, rate=1e-3)
    trainer.progress.elapsed_s = 12.5
    trainer.save(tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    again = Trainer(seed=7)
    again.step(task, rate=1e-2)
    again.load(tmp_path / "last.ckpt")
    assert again.progress == Progress(3, 12.5)
    for part in ("network", "average", "optimizer"):
        assert_same(getattr(again, part).state_dict(), getattr(trainer, part).state_dict())
    state = trainer.optimizer.state_dict()["state"]
    assert any(s["exp_avg"].abs().max() > 0 for s in state.values())  # something was compared
    # and the next step is the same step
    assert again.step(task, rate=1e-3) == trainer.step(task, rate=1e-3)
    assert_same(again.network.state_dict(), trainer.network.state_dict())
    assert_same(again.average.state_dict(), trainer.average.state_dict())


# --- the script ----------------------------------------------------------------------------------


def plant_label_maps(folder) -> None:
    """Write sixteen heads of blocks, 24 voxels a side, with and without hippocampus."""
    for subject in range(1, 17):
        rng = np.random.default_rng(subject)
        labels = np.zeros((24, 24, 24), np.float32)
        blocks = rng.choice([2.0, 3.0, 10.0, 17.0, 53.0], (5, 5, 5))
        labels[2:22, 2:22, 2:22] = blocks.repeat(4, 0).repeat(4, 1).repeat(4, 2)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"training_seg_{subject:02d}.nii.gz")


def test_a_run_trains_validates_resumes_and_exports(tmp_path, monkeypatch, capsys):
    """One worker, in this process."""
    plant_label_maps(tmp_path)
    monkeypatch.setattr(tiny, "VALIDATION_TASKS", 8)

    def spawn(function, arguments, nprocs):
        assert nprocs == 1
        function(0, *arguments)

    monkeypatch.setattr(tiny, "spawn", spawn)
    run = tmp_path / "run"
    arguments = ["tiny", "--label-maps", str(tmp_path), "--run", str(run), "--seed", "3"]
    arguments += ["--workers", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0.0001"])
    tiny.main()
    log = capsys.readouterr().out
    assert "starting at step 0" in log
    assert '"dice_1"' in log
    assert '"mean_label_8"' in log
    first = torch.load(run / "last.ckpt", weights_only=True)
    assert first["step"] >= 1
    minutes = (first["elapsed_s"] + 0.05) / 60
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", str(minutes), "--resume"])
    tiny.main()
    assert f"starting at step {first['step']}" in capsys.readouterr().out
    last = torch.load(run / "last.ckpt", weights_only=True)
    assert last["step"] > first["step"]
    weights = run / "medverse-tiny.safetensors"
    network = load_network(weights)
    assert network.config == tiny.CONFIG
    averaged = {k.removeprefix("module."): v for k, v in last["average"].items()}
    for key, value in network.state_dict().items():
        assert torch.equal(value, averaged[key].half().float()), key
    notes = read_notes(weights)
    assert notes["name"] == "medverse-tiny"
    assert notes["licence"] == "Apache-2.0"
    assert f"{last['step']} steps" in notes["training"]
    assert "hippocampus never a foreground" in notes["training"]
    # without --resume the run starts again
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0.0001"])
    tiny.main()
    assert "starting at step 0" in capsys.readouterr().out
