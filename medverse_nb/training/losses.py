"""Losses on predictions (B, 1, X, Y, Z) in label units; each returns a scalar.

The papers train every task with the L1 family, so that one weight a task balances them;
our own small models may use BCE + Dice for segmentation (`segmentation="bce_dice"`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.registry import SEGMENTATION

SegmentationLoss = Literal["smooth_l1", "bce_dice"]
IMAGE_WEIGHT = 3.0  # beside BCE + Dice: brings an image task's L1 to its size


def modified_smooth_l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the mean of |d|^3 / 3 below 1 and |d| - 2/3 above, d being the difference.

    The third power turns from large easy structures to small complex ones.
    Source: Neuroverse3D Eq. 6.
    """
    distance = (prediction - truth).abs()
    return torch.where(distance < 1, distance**3 / 3, distance - 2 / 3).mean()


def intensity_differences(x: Tensor) -> list[Tensor]:
    """Return the forward differences of (B, 1, X, Y, Z) along X, Y and Z, each one shorter."""
    return [x.diff(dim=axis) for axis in (2, 3, 4)]


def generation_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return half the smooth L1 of the intensities and half that of their differences.

    The paper does not say which neighbours a difference is taken to: these are forward
    differences, all three axes weighing the same.

    Source: Neuroverse3D Eq. 7.
    """
    pairs = zip(intensity_differences(prediction), intensity_differences(truth), strict=True)
    differences = torch.stack([F.smooth_l1_loss(p, t) for p, t in pairs]).mean()
    return F.smooth_l1_loss(prediction, truth) / 2 + differences / 2


def soft_dice_loss(prediction: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - Dice of two soft masks; `smooth` voxels on both sides of the ratio."""
    axes = (1, 2, 3, 4)
    overlap = (prediction * truth).sum(axes)
    total = prediction.sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def task_loss(
    prediction: Tensor,
    truth: Tensor,
    task: str,
    weight: float = 1.0,
    segmentation: SegmentationLoss = "bce_dice",
) -> Tensor:
    """Return the loss of one task.

    Parameters
    ----------
    task : "segmentation", or the name of an image task.
    weight : lambda of the task, Neuroverse3D Table 3; only with `segmentation="smooth_l1"`,
        the papers' recipe. "bce_dice" balances the tasks by itself, for predictions in
        [0, 1]: BCE + soft Dice, and three times the L1 of an image.
    """
    if segmentation == "smooth_l1":
        loss = modified_smooth_l1 if task == SEGMENTATION else generation_loss
        return weight * loss(prediction, truth)
    if task == SEGMENTATION:
        return F.binary_cross_entropy(prediction, truth) + soft_dice_loss(prediction, truth)
    return IMAGE_WEIGHT * F.l1_loss(prediction, truth)
