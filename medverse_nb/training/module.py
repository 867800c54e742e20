"""The Lightning module: a few tasks a step, the learning rate by the clock, averaged weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..model.network import ICLNetwork
from ..tasks.draw import TaskDraw
from .config import TrainingConfig
from .forward import predict_tasks
from .losses import task_loss
from .rates import cosine, warm_up
from .sampler import seed_of

LOWEST_RATE = 0.01  # of the peak, where the cosine ends


class ICLModule(L.LightningModule):
    """Train an `ICLNetwork` as a configuration says.

    A batch is a `TaskDraw`. `average` is the running average of the weights, which is
    what is validated and shipped. `elapsed_s` survives a restart.

    Parameters
    ----------
    minutes : the run's whole budget; the learning rate reaches its end there.
    initial : a network of the same configuration to start from; None starts from chance.
    """

    def __init__(
        self, config: TrainingConfig, minutes: float, initial: ICLNetwork | None = None
    ) -> None:
        super().__init__()
        self.config, self.budget_s, self.elapsed_s = config, 60 * minutes, 0.0
        self.plateau = Plateau(config.optimizer.patience)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.network = ICLNetwork(config.network_config)
        if initial is not None:
            self.network.load_state_dict(initial.state_dict())
        self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.network,
            multi_avg_fn=partial(_follow, decay=config.optimizer.average_decay),
            use_buffers=False,
        ).requires_grad_(False)

    @property
    def share(self) -> float:
        """Share of the time used, 0 to 1."""
        return min(1.0, self.elapsed_s / self.budget_s)

    def learning_rate(self) -> float:
        """Return the rate of the next step: warm-up by steps, then cosine or plateau."""
        settings = self.config.optimizer
        rate = settings.peak_rate * warm_up(self.global_step, settings.warm_up_steps)
        if settings.schedule == "plateau":
            return rate * self.plateau.factor
        return rate * cosine(self.share, LOWEST_RATE)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.config.optimizer
        return torch.optim.AdamW(
            self.network.parameters(),
            settings.peak_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def training_step(self, tasks: TaskDraw, index: int) -> Tensor:  # noqa: ARG002, Lightning's
        generator = Generator().manual_seed(seed_of(self.config.seed, self.global_step))
        if tasks.coarse is not None:
            with torch.no_grad():
                tasks = tasks.feed_back(predict_tasks(self.network, tasks.coarse))
        prediction = predict_tasks(self.network, tasks, generator=generator)
        each = zip(
            prediction.split(1), tasks.truth.split(1), tasks.kinds, tasks.weights, strict=True
        )
        loss = torch.stack([task_loss(*task, self.config.loss) for task in each]).mean()
        self.log("loss", loss, batch_size=1)
        return loss

    def on_train_batch_start(self, *_: Any) -> None:
        optimizer = self.optimizers()
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = self.learning_rate()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002, Lightning's
        gradient_clip_val: float | None = None,  # noqa: ARG002
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002
    ) -> None:
        """Clip the norm; a step whose gradient is not finite is passed over."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimizer.clip)
        if not torch.isfinite(norm):
            for parameter in self.network.parameters():
                parameter.grad = None

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Let the average follow each step, before it is validated or saved."""
        super().optimizer_step(*arguments, **settings)
        self.average.update_parameters(self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["elapsed_s"] = self.elapsed_s
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.elapsed_s = float(checkpoint["elapsed_s"])
        self.plateau.load_state_dict(checkpoint["plateau"])


def _follow(averaged: Any, current: Any, count: Tensor | int, *, decay: float) -> None:
    """Update the running average: freely at first, so that a short run forgets its start."""
    count = int(count)
    get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, count)


class Plateau:
    """Halve the learning rate where `patience` validations in a row brought no better score.

    Source: Neuroverse3D C.1.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.factor, self.best, self.waited = patience, 1.0, -math.inf, 0

    def update(self, score: float) -> None:
        """Take a validation score; higher is better."""
        if score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.factor, self.waited = self.factor / 2, 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor, self.best = state["factor"], state["best"]
        self.waited = int(state["waited"])
