"""Train `medverse-tiny` on synthetic contrast: a plain, seeded script.

    python -m medverse_nb.training.tiny --label-maps DIR --minutes 75 --run runs/tiny --resume

Subjects 13-16 are held out for validation; hippocampus is never a foreground. Every worker
is a process with one thread that draws tasks of its own, and gradients are averaged: on two
cores that did 1.5 times the tasks of one process with two threads. The learning rate follows
the clock (warm-up, then cosine), so a run always ends on time; the drawn tasks depend on
`--seed`, the step and the worker alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor
from torch.multiprocessing.spawn import spawn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..model.config import NetworkConfig
from ..model.network import ICLNetwork
from ..model.weights import save_network
from ..tasks.draw import TaskDraw, draw_task
from ..tasks.labelmaps import HeadMap, read_head_maps
from .losses import task_loss

CONFIG = NetworkConfig(
    channels=(16, 32, 64, 64),
    window=32,
    partition="contiguous",
    position_bias="relative",
    norm="group",
    output="sigmoid",
)
TRAINING_SUBJECTS, VALIDATION_SUBJECTS = range(1, 13), range(13, 17)
LARGEST_CONTEXT = 4
PEAK_RATE, WARM_UP_STEPS, EMA_DECAY, CLIP = 2e-3, 300, 0.999, 1.0
CHECKPOINT_EVERY_S, VALIDATE_EVERY_S, LOG_EVERY = 240, 1800, 100
VALIDATION_TASKS = 60


def training_task(heads: Sequence[HeadMap], seed: int, step: int, worker: int) -> TaskDraw:
    """Draw a worker's task of a step; all workers of a step have one context size."""
    size_generator = Generator().manual_seed(seed * 10_000_000 + step)
    size = int(torch.randint(1, LARGEST_CONTEXT + 1, (), generator=size_generator))
    generator = Generator().manual_seed((seed * 10_000_000 + step) * 64 + worker)
    return draw_task(heads, generator, size, CONFIG.window)


@dataclass
class Progress:
    """Where a run stands; survives a restart."""

    step: int = 0
    elapsed_s: float = 0.0


def predict(network: torch.nn.Module, task: TaskDraw) -> Tensor:
    """Run the network on one task in bfloat16; the answer is float32."""
    with torch.autocast("cpu", torch.bfloat16):
        prediction: Tensor = network(
            task.target,
            task.context_image,
            task.context_label,
            task.ar_image,
            task.ar_label,
            mini_context_size=task.context_image.shape[1],
        )
    return prediction.float()


def hard_dice(prediction: Tensor, truth: Tensor) -> float:
    """Return the Dice of two soft masks cut at 0.5."""
    a, b = prediction > 0.5, truth > 0.5
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


@torch.no_grad()
def validate(
    network: torch.nn.Module, heads: Sequence[HeadMap], context_size: int
) -> dict[str, float]:
    """Score held-out brains beside the mean label: mean Dice over fixed tasks, no feedback."""
    scores, baseline = [], []
    for index in range(VALIDATION_TASKS):
        task = draw_task(heads, Generator().manual_seed(index), context_size, CONFIG.window)
        if task.kind != "segmentation" or (task.truth > 0.5).sum() < 20:
            continue
        alone = TaskDraw(task.kind, task.target, task.truth, task.context_image, task.context_label)
        scores.append(hard_dice(predict(network, alone), task.truth))
        baseline.append(hard_dice(task.context_label.mean(1), task.truth))
    return {
        f"dice_{context_size}": sum(scores) / len(scores),
        f"mean_label_{context_size}": sum(baseline) / len(baseline),
    }


def learning_rate(progress: Progress, budget_s: float, peak: float = PEAK_RATE) -> float:
    """Warm up by steps, then a cosine of the time used down to 1% of the peak."""
    used = min(1.0, progress.elapsed_s / budget_s)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(used * torch.pi)).item())
    return peak * min(1.0, (progress.step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine)


def average_gradients(network: torch.nn.Module) -> None:
    """Average the gradients over the workers; alone, do nothing."""
    if not dist.is_initialized():
        return
    for parameter in network.parameters():  # no autoregressive pair, no gradient: count it as 0
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        part = flat[offset : offset + gradient.numel()]
        gradient.copy_(part.view(gradient.shape))
        offset += gradient.numel()


class Trainer:
    """Network, its running average, optimiser and progress: what a checkpoint holds."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = ICLNetwork(CONFIG)
        self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=False
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), PEAK_RATE, weight_decay=1e-4, fused=True
        )
        self.progress = Progress()

    def step(self, task: TaskDraw, rate: float) -> float:
        """Take one optimiser step on one task of each worker; return this worker's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if task.coarse is not None:
            with torch.no_grad():
                task = task.feed_back(predict(self.network, task.coarse))
        loss = task_loss(predict(self.network, task), task.truth, task.kind)
        loss.backward()
        average_gradients(self.network)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.network)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.progress.step,
            "elapsed_s": self.progress.elapsed_s,
        }
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of `save`."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["step"], state["elapsed_s"])


@dataclass(frozen=True)
class Run:
    """What one run was asked for."""

    label_maps: Path
    minutes: float
    folder: Path
    seed: int
    resume: bool
    workers: int
    peak_rate: float = PEAK_RATE

    @property
    def checkpoint(self) -> Path:
        """Where the run can be taken up again."""
        return self.folder / "last.ckpt"


def train_worker(worker: int, run: Run, rendezvous: str) -> None:
    """Train until the time is used up; worker 0 logs to stdout, validates and saves."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=worker, world_size=run.workers
    )
    trainer = Trainer(run.seed)
    if run.resume and run.checkpoint.is_file():
        trainer.load(run.checkpoint)
    heads = read_head_maps(run.label_maps, TRAINING_SUBJECTS)
    keeper = Keeper(run, trainer) if worker == 0 else None
    progress, parent = trainer.progress, os.getppid()
    while progress.elapsed_s < run.minutes * 60:
        if os.getppid() != parent:  # killed: its workers must not write on beside the next run
            sys.exit("the run that started this worker has ended")
        task = training_task(heads, run.seed, progress.step, worker)
        loss = trainer.step(task, learning_rate(progress, run.minutes * 60, run.peak_rate))
        elapsed = torch.tensor(keeper.after_step(loss) if keeper else 0.0)
        dist.broadcast(elapsed, src=0)
        progress.elapsed_s = elapsed.item()
    if keeper:
        keeper.finish()
    dist.destroy_process_group()


class Keeper:
    """The first worker's side jobs: clock, log, checkpoints, validation."""

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self.run, self.trainer = run, trainer
        self.heads = read_head_maps(run.label_maps, VALIDATION_SUBJECTS)
        self.last = self.saved = self.validated = time.monotonic()
        self.losses: list[float] = []
        print(f"starting at step {trainer.progress.step}", flush=True)

    def after_step(self, loss: float) -> float:
        """Do what is due; return the seconds trained so far, side jobs not counted."""
        progress = self.trainer.progress
        self.losses.append(loss)
        now = time.monotonic()
        progress.elapsed_s += now - self.last
        if progress.step % LOG_EVERY == 0:
            mean, minutes = sum(self.losses) / len(self.losses), progress.elapsed_s / 60
            print(f"step {progress.step} {minutes:.1f} min loss {mean:.4f}", flush=True)
            self.losses.clear()
        if now - self.saved > CHECKPOINT_EVERY_S:
            self.trainer.save(self.run.checkpoint)
            self.saved = now
        if now - self.validated > VALIDATE_EVERY_S:
            self.validate()
            self.validated = now
        self.last = time.monotonic()
        return progress.elapsed_s

    def validate(self) -> None:
        """Print the running average's scores on held-out heads."""
        scores: dict[str, float] = {"step": self.trainer.progress.step}
        for size in (1, 8):
            scores |= validate(self.trainer.average, self.heads, size)
        print(json.dumps({key: round(value, 4) for key, value in scores.items()}), flush=True)

    def finish(self) -> None:
        """Save, validate, and export the averaged weights."""
        self.trainer.save(self.run.checkpoint)
        self.validate()
        export(self.trainer, self.run)


def export(trainer: Trainer, run: Run) -> None:
    """Write the averaged weights in half precision, with how they came about."""
    network, progress = trainer.average.module, trainer.progress
    assert isinstance(network, ICLNetwork)
    save_network(
        network,
        run.folder / "medverse-tiny.safetensors",
        dtype=torch.float16,
        name="medverse-tiny",
        licence="Apache-2.0",
        training=(
            f"{progress.step} steps, {progress.elapsed_s / 60:.0f} minutes, {run.workers} CPU "
            f"workers, seed {run.seed}; synthetic contrast over {len(TRAINING_SUBJECTS)} "
            "FreeSurfer label maps (SynthSeg project, Apache-2.0) and random shapes; "
            "hippocampus never a foreground"
        ),
    )


def main() -> None:
    """Parse the command line and start the workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE)
    args = parser.parse_args()
    run = Run(
        args.label_maps,
        args.minutes,
        args.run,
        args.seed,
        args.resume,
        args.workers,
        args.peak_rate,
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        spawn(train_worker, (run, str(Path(folder) / "rendezvous")), nprocs=run.workers)


if __name__ == "__main__":
    main()
