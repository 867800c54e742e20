"""A whole training run: data, trainer, side jobs, export."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.data import DataLoader

from ..errors import InputError
from ..files import check_writable, write_atomically
from ..model.device import choose_device, choose_precision
from ..model.network import ICLNetwork
from ..model.registry import find_weights, load_model
from ..model.weights import read_notes, save_network
from ..tasks.draw import TaskDraw, stack_tasks
from ..tasks.scenes import Mixture
from .config import TrainingConfig
from .module import ICLModule
from .sampler import StepSampler, TaskStream
from .sources import open_source
from .validation import validate

CHECKPOINT_EVERY = timedelta(minutes=4)
LOG_EVERY_STEPS = 50
DATA_WORKERS_OF_A_GPU = 8


@dataclass(frozen=True)
class Run:
    """What a run is asked for apart from its configuration.

    folder : for checkpoints, logs and the trained weights.
    minutes : of training in all, earlier parts of a resumed run included.
    workers : processes on a CPU, one thread each; None for one a core.
    initial_weights : a model's name or file to start from; None starts from chance.
    """

    config: TrainingConfig
    folder: Path
    minutes: float
    device: str = "auto"
    resume: bool = False
    strict: bool = False
    workers: int | None = None
    initial_weights: str | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the run can be taken up again."""
        return self.folder / "last.ckpt"

    @property
    def weights(self) -> Path:
        """Where the trained weights go."""
        return self.folder / f"{self.config.name}.safetensors"


@dataclass(frozen=True)
class Data:
    """The sources of a run, opened and split."""

    training: Mixture
    validation: Mixture
    skipped: tuple[str, ...]


def open_data(config: TrainingConfig, *, strict: bool = False) -> Data:
    """Open every source; validation falls back on a source that has no cases held out."""
    splits = [open_source(part, strict=strict) for part in config.data]
    rates = [part.rate for part in config.data]
    held_out = [
        (split.validation, rate)
        for split, rate in zip(splits, rates, strict=True)
        if split.validation is not None
    ] or [(split.training, rate) for split, rate in zip(splits, rates, strict=True)]
    return Data(
        Mixture([split.training for split in splits], rates),
        Mixture([source for source, _ in held_out], [rate for _, rate in held_out]),
        tuple(message for split in splits for message in split.skipped),
    )


def train(run: Run) -> Path | None:
    """Train, resume or finish a run; return the trained weights.

    Of several processes only the first writes them, and the others return None. Ctrl-C leaves
    a whole checkpoint behind; so does a full disk: an old one is replaced only by a complete
    new one.

    Raises
    ------
    InputError : data that cannot be used, or a run that is already there and not resumed.
    WeightsError : weights to start from that cannot be read.
    OutputError : a checkpoint that cannot be written; the one before it is kept.
    """
    initial = open_initial(run)
    check_writable(run.checkpoint)
    if run.checkpoint.is_file() and not run.resume:
        raise InputError(f"{run.checkpoint} is there already; --resume it, or use another --run")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    device = choose_device(run.device)
    on_cpu = device.type == "cpu"
    torch.set_num_threads(1 if on_cpu and worker_count(run) > 1 else torch.get_num_threads())
    module = ICLModule(run.config, run.minutes, initial)
    data = open_data(run.config, strict=run.strict)
    run.folder.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(run, device, data)
    workers = 0 if on_cpu else DATA_WORKERS_OF_A_GPU
    loader: DataLoader[TaskDraw] = DataLoader(
        TaskStream(data.training, run.config),
        batch_sampler=StepSampler(
            run.config,
            first=lambda: module.global_step * run.config.optimizer.accumulate,
            share=lambda: module.share,
            rank=lambda: module.global_rank,
        ),
        collate_fn=stack_tasks,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    resumed = str(run.checkpoint) if run.checkpoint.is_file() else None
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, ckpt_path=resumed, weights_only=True)
    except SystemExit as stop:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from stop  # what it was before Lightning took it
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    trainer.save_checkpoint(run.checkpoint)
    if not trainer.is_global_zero:
        return None
    export(module, run, f"{worker_count(run) if on_cpu else 1} workers on {device.type}")
    return run.weights


def open_initial(run: Run) -> ICLNetwork | None:
    """Load the weights a run starts from.

    Raises
    ------
    InputError : they belong to another network than the configuration's. Another window is the
        same network: nothing in it is sized by the window.
    WeightsError : unknown or damaged weights.
    """
    if run.initial_weights is None:
        return None
    network = load_model(run.initial_weights, "cpu")
    theirs, ours = network.config.to_dict(), run.config.network_config.to_dict()
    others = [
        f"{key} {theirs[key]} for {ours[key]}"
        for key in ours
        if key != "window" and theirs[key] != ours[key]
    ]
    if others:
        raise InputError(f"{run.initial_weights} is another network: {', '.join(others)}")
    return network


def worker_count(run: Run) -> int:
    """Return how many processes train on a CPU."""
    return run.workers or os.cpu_count() or 1


def make_trainer(run: Run, device: torch.device, data: Data) -> L.Trainer:
    """Return a trainer without epochs or batches of its own: until time is up."""
    on_cpu = device.type == "cpu"
    clock = Clock()
    devices: Any = worker_count(run) if on_cpu else [device.index or 0]
    fast = choose_precision("auto", device) == "bfloat16"
    strategy: str | Strategy = "auto"
    if on_cpu and devices > 1:
        strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=devices,
        strategy=strategy,
        precision="bf16-mixed" if fast else "32-true",
        accumulate_grad_batches=run.config.optimizer.accumulate,
        max_epochs=-1,  # a run that came to its end can be resumed for longer
        callbacks=[
            clock,
            Validation(run, data.validation, clock),
            Checkpoints(
                run.folder,
                filename="last",
                train_time_interval=CHECKPOINT_EVERY,
                save_on_exception=True,
                enable_version_counter=False,
            ),
        ],
        plugins=[WholeOrNothing()],
        logger=open_logs(run.folder),
        log_every_n_steps=LOG_EVERY_STEPS,
        use_distributed_sampler=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def open_logs(folder: Path) -> list[Logger]:
    """Return a CSV log and one for TensorBoard, both in `logs/version_N`."""
    table = CSVLogger(folder, name="logs")
    return [table, TensorBoardLogger(folder, name="logs", version=table.version)]


class Checkpoints(ModelCheckpoint):
    """Saves from time to time, on Ctrl-C, which all processes get, and on an error.

    Not on an error of one process of several: it would wait for the others, and they for it.
    """

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if trainer.world_size == 1 or not isinstance(exception, Exception):
            super().on_exception(trainer, pl_module, exception)


class WholeOrNothing(TorchCheckpointIO):
    """Replaces a checkpoint by a complete new one: neither a kill nor a full disk breaks it."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002, Lightning's
    ) -> None:
        write_atomically(Path(path), partial(_save, checkpoint))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint down to the disk; torch tells a full one by a RuntimeError."""
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else OSError(str(error)) from error


class Clock(Callback):
    """Counts the seconds of training, the same for all processes, and ends the run in time."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def go_on(self) -> None:
        """Count from now: what came before was not training."""
        self.last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        self.go_on()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ICLModule)
        now = time.monotonic()
        module.elapsed_s = trainer.strategy.broadcast(module.elapsed_s + now - self.last)
        self.last = now
        if module.elapsed_s >= module.budget_s:
            trainer.should_stop = True


class Validation(Callback):
    """Validates the averaged weights from time to time and at the end; the first process does."""

    def __init__(self, run: Run, held_out: Mixture, clock: Clock) -> None:
        self.config, self.held_out, self.clock = run.config, held_out, clock
        self.every_s = 60 * run.config.validation.every_minutes
        self.due_s = self.every_s
        self.file = run.folder / "validation.jsonl"

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        assert isinstance(module, ICLModule)
        self.due_s = (module.elapsed_s // self.every_s + 1) * self.every_s

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ICLModule)
        if module.elapsed_s < self.due_s and not trainer.should_stop:
            return
        self.due_s += self.every_s
        scores = self.validate(module) if trainer.is_global_zero else {}
        for log in trainer.loggers:
            log.log_metrics(scores, module.global_step)
        scores = trainer.strategy.broadcast(scores)
        dice = [value for name, value in scores.items() if name.startswith("dice")]
        module.plateau.update(sum(dice) / len(dice) if dice else 0.0)
        self.clock.go_on()

    def validate(self, module: ICLModule) -> dict[str, float]:
        """Score the averaged weights and write a line of the log."""
        network = module.average.module
        assert isinstance(network, ICLNetwork)
        precision = choose_precision("auto", module.device)
        scores = validate(network, self.held_out, self.config, precision)
        row = {"step": module.global_step, "minutes": round(module.elapsed_s / 60, 1)}
        row |= {name: round(value, 4) for name, value in scores.items()}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return scores


def export(module: ICLModule, run: Run, trained_on: str) -> None:
    """Write the averaged weights in half precision, with how they came about."""
    network = module.average.module
    assert isinstance(network, ICLNetwork)
    begun = f"from {describe_initial(run.initial_weights)}, " if run.initial_weights else ""
    steps, minutes = module.global_step, module.elapsed_s / 60
    notes = {
        "name": run.config.name,
        "licence": run.config.licence,
        "training": f"{begun}{steps} steps, {minutes:.0f} minutes, {trained_on}, seed "
        f"{run.config.seed}, torch {version('torch')}; {run.config.description.strip()}",
    }
    write_atomically(
        run.weights, lambda part: save_network(network, part, dtype=torch.float16, **notes)
    )


def describe_initial(source: str) -> str:
    """Name weights that a run started from, and how they came about if the file tells."""
    path = find_weights(source)
    notes = read_notes(path) if path.suffix == ".safetensors" else {}
    how = notes.get("training", "").split(";")[0]
    return f"{path.stem} ({how})" if how else path.stem
