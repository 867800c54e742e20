"""Train `medverse-tiny` on synthetic contrast: a plain, seeded script.

    python -m medverse_nb.training.tiny --label-maps DIR --minutes 75 --run runs/tiny --resume

Subjects 13-16 are held out for validation; hippocampus is never a foreground. The
learning rate follows the clock (warm-up, then cosine), so a run always ends on time; the
drawn tasks depend on `--seed` and the step alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from ..model.config import NetworkConfig
from ..model.network import ICLNetwork
from ..model.weights import save_network
from ..tasks.draw import TaskDraw, draw_task
from ..tasks.labelmaps import HeadMap, read_head_maps
from .losses import task_loss

CONFIG = NetworkConfig(channels=(16, 32, 64, 64), window=32, output="sigmoid")
TRAINING_SUBJECTS, VALIDATION_SUBJECTS = range(1, 13), range(13, 17)
LARGEST_CONTEXT = 6
PEAK_RATE, WARM_UP_STEPS, EMA_DECAY, CLIP = 1e-3, 300, 0.999, 1.0
CHECKPOINT_EVERY_S, VALIDATE_EVERY_S, LOG_EVERY = 240, 1200, 100
VALIDATION_TASKS = 60


class TaskStream(IterableDataset[TaskDraw]):
    """Endless training tasks; task `i` depends on the seed and `i` alone."""

    def __init__(self, heads: Sequence[HeadMap], seed: int, start: int) -> None:
        self.heads, self.seed, self.start = heads, seed, start

    def __iter__(self) -> Iterator[TaskDraw]:
        torch.set_num_threads(1)
        index = self.start
        while True:
            generator = Generator().manual_seed(self.seed * 10_000_000 + index)
            size = int(torch.randint(1, LARGEST_CONTEXT + 1, (), generator=generator))
            yield draw_task(self.heads, generator, size, CONFIG.window)
            index += 1


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


def learning_rate(progress: Progress, budget_s: float) -> float:
    """Warm up by steps, then a cosine of the time used down to 1% of the peak."""
    used = min(1.0, progress.elapsed_s / budget_s)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(used * torch.pi)).item())
    return PEAK_RATE * min(1.0, (progress.step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine)


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
        """Take one optimiser step on one task; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = task_loss(predict(self.network, task), task.truth, task.kind)
        loss.backward()
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


def train(label_maps: Path, minutes: float, run: Path, seed: int, resume: bool) -> Trainer:
    """Train until the time is used up; log to stdout, checkpoint to `run`."""
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "last.ckpt"
    trainer = Trainer(seed)
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"resumed at step {trainer.progress.step}", flush=True)
    validation_heads = read_head_maps(label_maps, VALIDATION_SUBJECTS)
    stream = TaskStream(read_head_maps(label_maps, TRAINING_SUBJECTS), seed, trainer.progress.step)
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    progress, budget_s = trainer.progress, minutes * 60
    saved = validated = last = time.monotonic()
    losses: list[float] = []
    for task in loader:
        losses.append(trainer.step(task, learning_rate(progress, budget_s)))
        now = time.monotonic()
        progress.elapsed_s += now - last
        last = now
        over = progress.elapsed_s >= budget_s
        if progress.step % LOG_EVERY == 0:
            mean = sum(losses) / len(losses)
            print(
                f"step {progress.step} {progress.elapsed_s / 60:.1f} min loss {mean:.4f}",
                flush=True,
            )
            losses.clear()
        if over or now - saved > CHECKPOINT_EVERY_S:
            trainer.save(checkpoint)
            saved = time.monotonic()
        if over or now - validated > VALIDATE_EVERY_S:
            scores = {"step": progress.step, **validate(trainer.average, validation_heads, 1)}
            scores |= validate(trainer.average, validation_heads, 8)
            print(json.dumps({k: round(v, 4) for k, v in scores.items()}), flush=True)
            validated = last = time.monotonic()
        if over:
            break
    return trainer


def main() -> None:
    """Parse the command line, train, and export the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--export", type=Path, default=None, help="default: RUN/medverse-tiny.safetensors"
    )
    args = parser.parse_args()
    trainer = train(args.label_maps, args.minutes, args.run, args.seed, args.resume)
    network = trainer.average.module
    assert isinstance(network, ICLNetwork)
    save_network(
        network,
        args.export or args.run / "medverse-tiny.safetensors",
        dtype=torch.float16,
        name="medverse-tiny",
        licence="Apache-2.0",
        training=(
            f"{trainer.progress.step} steps, {trainer.progress.elapsed_s / 60:.0f} minutes on "
            f"{torch.get_num_threads()} CPU threads, seed {args.seed}; synthetic contrast over "
            "12 FreeSurfer label maps (SynthSeg project, Apache-2.0) and random shapes; "
            "hippocampus never a foreground"
        ),
    )


if __name__ == "__main__":
    main()
