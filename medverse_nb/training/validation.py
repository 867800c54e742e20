"""Held-out subjects during a run, with the mean label beside them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from ..model.config import Precision
from ..model.network import ICLNetwork
from ..tasks.draw import draw_task
from ..tasks.scenes import Mixture
from .config import TrainingConfig
from .forward import predict_tasks
from .sampler import task_rates

SMALLEST_TRUTH = 20  # voxels; Dice of less is chance


def hard_dice(prediction: Tensor, truth: Tensor) -> float:
    """Return the Dice of two soft masks cut at 0.5; 1 where both are empty."""
    a, b = prediction > 0.5, truth > 0.5
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def peak_signal_to_noise(prediction: Tensor, truth: Tensor) -> float:
    """Return the PSNR in dB of images in [0, 1]."""
    error = (prediction.clamp(0, 1) - truth).square().mean().clamp_min(1e-10)
    return float(-10 * torch.log10(error))


@torch.no_grad()
def validate(
    network: ICLNetwork,
    held_out: Mixture,
    config: TrainingConfig,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Score fixed tasks of one window without feedback, for each context size.

    Returns
    -------
    `dice_L` beside `mean_label_L`, and `psnr_gain_L` in dB over the images that came in.
    """
    rates = replace(task_rates(config), autoregressive=0.0)
    window = config.network_config.window
    result: dict[str, float] = {}
    for size in config.validation.context_sizes:
        scores: dict[str, list[float]] = {}
        for index in range(config.validation.tasks):
            generator = Generator().manual_seed(index)
            task = draw_task(held_out.choose(generator), generator, size, window, rates)
            if task.segments and int((task.truth > 0.5).sum()) < SMALLEST_TRUTH:
                continue
            answer = predict_tasks(network, task, precision).cpu()
            if task.segments:
                mean = task.context_label.mean(1)
                row = {
                    "dice": hard_dice(answer, task.truth),
                    "mean_label": hard_dice(mean, task.truth),
                }
            else:
                before = peak_signal_to_noise(task.target, task.truth)
                row = {"psnr_gain": peak_signal_to_noise(answer, task.truth) - before}
            for name, value in row.items():
                scores.setdefault(name, []).append(value)
        result |= {f"{name}_{size}": sum(v) / len(v) for name, v in scores.items()}
    return result
