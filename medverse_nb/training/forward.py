"""One task through the network, wherever its weights are."""

from __future__ import annotations

from torch import Generator, Tensor

from ..model.config import Precision
from ..model.device import autocast
from ..model.network import ICLNetwork
from ..tasks.draw import TaskDraw


def predict_task(
    network: ICLNetwork,
    task: TaskDraw,
    precision: Precision = "float32",
    generator: Generator | None = None,
) -> Tensor:
    """Predict (1, 1, X, Y, Z) float32 on the network's device.

    `generator` lets a context too large for the memory be trained by mini-contexts.
    """
    device = next(network.parameters()).device

    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, non_blocking=True)

    with autocast(precision, device):
        prediction: Tensor = network(
            move(task.target),
            move(task.context_image),
            move(task.context_label),
            move(task.ar_image),
            move(task.ar_label),
            generator=generator,
        )
    return prediction.float()
