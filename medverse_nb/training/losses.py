"""Losses of the training script, on probabilities in [0, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IMAGE_WEIGHT = 3.0  # brings an image task's L1 to the size of a segmentation's BCE + Dice


def soft_dice_loss(prediction: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - Dice of two (B, 1, X, Y, Z) soft masks; `smooth` voxels on both sides of the ratio."""
    axes = (1, 2, 3, 4)
    overlap = (prediction * truth).sum(axes)
    total = prediction.sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def task_loss(prediction: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Return BCE + soft Dice for "segmentation", weighted L1 for image tasks."""
    if kind == "segmentation":
        return F.binary_cross_entropy(prediction, truth) + soft_dice_loss(prediction, truth)
    return IMAGE_WEIGHT * F.l1_loss(prediction, truth)
