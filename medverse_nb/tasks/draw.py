"""One training task: a target, its context and, at times, an autoregressive context.

What the papers leave open is chosen here: how the coarser prediction of the
autoregressive context is imitated, and how thin volumes, padded with zeros, look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .contrast import render_images, render_labels
from .corruption import CORRUPTIONS
from .fields import chance, integer, smooth_field, uniform
from .labelmaps import HeadMap, draw_foreground, draw_head_labels, draw_shape_labels

NARROWEST_MM, WIDEST_MM = 28.0, 240.0


@dataclass(frozen=True)
class TaskRates:
    """How often each kind of task is drawn."""

    brain: float = 0.7
    enhancement: float = 0.15
    autoregressive: float = 0.5
    padded: float = 0.3


@dataclass(frozen=True)
class TaskDraw:
    """Volumes of one task, sides `window`: target and truth (1, 1, X, Y, Z) in [0, 1],
    context (1, L, 1, X, Y, Z), autoregressive pair (1, 1, 1, X, Y, Z) or None."""

    kind: str
    target: Tensor
    truth: Tensor
    context_image: Tensor
    context_label: Tensor
    ar_image: Tensor | None = None
    ar_label: Tensor | None = None


def draw_task(
    heads: Sequence[HeadMap],
    generator: Generator,
    context_size: int,
    window: int = 32,
    rates: TaskRates = TaskRates(),
) -> TaskDraw:
    """Draw one segmentation or enhancement task with `context_size` pairs."""
    brain = bool(heads) and chance(generator, rates.brain)
    kind, images, labels = "", torch.empty(0), torch.empty(0)
    while not kind:
        kind, images, labels = _try_volumes(
            heads, generator, context_size + 1, window, rates, brain
        )
    images, labels = _turn(images, labels, generator)
    if chance(generator, rates.padded):
        images, labels = _pad(images, labels, generator)
    images, labels = images[:, None], labels[:, None]
    task = TaskDraw(kind, images[:1], labels[:1], images[None, 1:], labels[None, 1:])
    if chance(generator, rates.autoregressive):
        return replace(
            task,
            ar_image=coarsen(images[None, :1]),
            ar_label=imitate_coarse_prediction(labels, kind, generator),
        )
    return task


def _try_volumes(
    heads: Sequence[HeadMap],
    generator: Generator,
    count: int,
    window: int,
    rates: TaskRates,
    brain: bool,
) -> tuple[str, Tensor, Tensor]:
    if brain:
        share = uniform(generator, 0, 1) ** 1.7  # more than half of the crops below 64 mm
        width_mm = NARROWEST_MM * (WIDEST_MM / NARROWEST_MM) ** share
        fine = 2 * window if width_mm > 1.4 * window else window
        labels = draw_head_labels(heads, generator, count, fine, width_mm)
    else:
        labels = draw_shape_labels(generator, count, window * integer(generator, 1, 2))
    if chance(generator, rates.enhancement):
        kind = list(CORRUPTIONS)[integer(generator, 0, len(CORRUPTIONS) - 1)]
        clean = render_images(labels, generator, window)
        return kind, CORRUPTIONS[kind](clean, generator).clamp(0, 1), clean
    foreground = draw_foreground(labels, generator)
    if not foreground:
        return "", torch.empty(0), torch.empty(0)
    return (
        "segmentation",
        render_images(labels, generator, window),
        render_labels(labels, foreground, window),
    )


def _turn(images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in (1, 2, 3) if chance(generator, 0.3)]
    order = torch.randperm(3, generator=generator) if chance(generator, 0.5) else torch.arange(3)
    permutation = (0, *(int(i) + 1 for i in order))
    return images.flip(axes).permute(permutation), labels.flip(axes).permute(permutation)


def _pad(images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Keep a corner box of every volume and set the rest to zero, as padding does."""
    side = images.shape[-1]
    keep = torch.zeros(side, side, side)
    x, y, z = (integer(generator, side * 3 // 8, side) for _ in range(3))
    keep[:x, :y, :z] = 1
    return images * keep, labels * keep


def coarsen(x: Tensor) -> Tensor:
    """Halve the resolution of (..., X, Y, Z) and interpolate back."""
    flat = x.reshape(-1, 1, *x.shape[-3:])
    half = F.avg_pool3d(flat, 2)
    return F.interpolate(half, scale_factor=2, mode="trilinear", align_corners=False).reshape(
        x.shape
    )


def imitate_coarse_prediction(labels: Tensor, kind: str, generator: Generator) -> Tensor:
    """Make the kind of label a coarser scale would have fed back: (1, 1, 1, X, Y, Z).

    `labels` (N, 1, X, Y, Z) holds the truth first. Segmentation mixes in the mean label
    (what an unsure model predicts), shifts by up to two voxels and adds smooth noise.
    """
    truth = labels[:1, 0]
    side = truth.shape[-1]
    if kind == "segmentation":
        if chance(generator, 0.5):
            share = uniform(generator, 0.0, 0.8)
            truth = (1 - share) * truth + share * labels[1:, 0].mean(0, keepdim=True)
        if chance(generator, 0.3):
            shifts = [integer(generator, -2, 2) for _ in range(3)]
            truth = truth.roll(shifts, (1, 2, 3))
        gain = 1 + uniform(generator, 0, 0.4) * smooth_field(generator, side, 6)
        truth = truth * gain + uniform(generator, 0, 0.1) * smooth_field(generator, side, 10)
    noise = uniform(generator, 0, 0.1) * torch.randn(truth.shape, generator=generator)
    return coarsen(truth + noise).clamp(0, 1)[None, None]
