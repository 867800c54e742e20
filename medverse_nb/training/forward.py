"""Tasks through the network, wherever its weights are."""

from __future__ import annotations

from torch import Generator, Tensor

from ..model.config import Precision
from ..model.device import autocast
from ..model.network import ICLNetwork
from ..tasks.draw import TaskDraw


def predict_tasks(
    network: ICLNetwork,
    tasks: TaskDraw,
    precision: Precision = "float32",
    generator: Generator | None = None,
) -> Tensor:
    """Predict (N, 1, X, Y, Z) float32 on the network's device.

    `generator` lets a context too large for the memory be trained by mini-contexts.
    """
    device = next(network.parameters()).device
    tasks = tasks.to(device)
    with autocast(precision, device):
        prediction: Tensor = network(
            tasks.target,
            tasks.context_image,
            tasks.context_label,
            tasks.ar_image,
            tasks.ar_label,
            generator=generator,
        )
    return prediction.float()
