"""Tasks that ask for anatomy: segmentation and skull stripping.

Hippocampus stays unseen: labels 17 and 53 of a head may appear as anatomy and are never a
foreground, alone or in a group.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..errors import InputError
from .fields import chance, integer
from .volumes import LabelDraw, Volumes

NEVER_FOREGROUND = frozenset({17, 53})  # FreeSurfer: left and right hippocampus
SMALLEST_SHARE = 0.0015  # of the first volume; a smaller class is no foreground


def allowed_foreground(draw: LabelDraw) -> list[int]:
    """Return the class indices that may be a foreground: large enough, and not kept unseen."""
    counts = torch.bincount(draw.classes[0].flatten().int(), minlength=len(draw.values))
    smallest = SMALLEST_SHARE * draw.classes[0].numel()
    never = draw.never | NEVER_FOREGROUND if draw.is_brain else draw.never
    return [
        index
        for index, value in enumerate(draw.values)
        if index and counts[index] >= smallest and value not in never
    ]


def draw_foreground(
    draw: LabelDraw, generator: Generator, group: float = 0.5, largest_group: int = 10
) -> list[int]:
    """Choose the class indices of a foreground; empty where no class is allowed.

    Parameters
    ----------
    group : how often classes are grouped, two to `largest_group` or as many as there are.

    Source: Neuroverse3D B.2 (random foreground). It leaves open how large a group is: all
    sizes are as likely.
    """
    allowed = allowed_foreground(draw)
    if not allowed:
        return []
    single = chance(generator, 1 - group)
    size = 1 if single else min(len(allowed), integer(generator, 2, largest_group))
    order = torch.randperm(len(allowed), generator=generator)
    return [allowed[int(i)] for i in order[:size]]


def segmentation(
    volumes: Volumes, generator: Generator, *, group: float = 0.5, largest_group: int = 10
) -> tuple[Tensor, Tensor]:
    """Find one class or a random group of classes: images in, soft masks out.

    `group` and `largest_group` as in `draw_foreground`.

    Raises
    ------
    InputError : no labels, or no class in the first volume that may be a foreground.

    Source: Neuroverse3D B.1 and B.2 (random foreground).
    """
    if volumes.labels is None:
        raise InputError("segmentation needs labels; pass Volumes(images, labels=...)")
    foreground = draw_foreground(volumes.labels, generator, group, largest_group)
    if not foreground:
        raise InputError(
            f"segmentation needs a class that fills {SMALLEST_SHARE:.2%} of the first volume and "
            "may be a foreground (background and hippocampus may not); draw other volumes"
        )
    return volumes.images, volumes.labels.masks(foreground, volumes.side)


def skull_stripping(
    volumes: Volumes,
    generator: Generator,  # noqa: ARG001, every task has one signature; this one draws nothing
) -> tuple[Tensor, Tensor]:
    """Remove all but the brain: whole heads in, brains on a black background out.

    The brain's rim is soft where the label maps are finer than the images.

    Raises
    ------
    InputError : no labels, none of a head, or a volume without brain.

    Source: Neuroverse3D B.1. There FreeSurfer strips the skull; here its labels do.
    """
    if volumes.labels is None or not volumes.labels.is_brain:
        raise InputError(
            "skull stripping needs the labels of heads; pass Volumes(images, labels=...) "
            "with is_brain=True"
        )
    brain = volumes.labels.brain_mask(volumes.side)
    empty = [i for i, mask in enumerate(brain) if not mask.any()]
    if empty:
        raise InputError(f"skull stripping needs brain in every volume; volumes {empty} have none")
    return volumes.images, volumes.images * brain


def shows_skull(draw: LabelDraw, smallest_share: float = 0.05) -> bool:
    """Tell whether every volume holds both brain and other tissue, so that stripping has work."""
    if not draw.is_brain:
        return False
    side = draw.classes.shape[-1]
    brain = draw.brain_mask(side)
    other = (draw.classes > 0) & (brain == 0)
    shares = torch.stack([brain.mean((1, 2, 3)), other.float().mean((1, 2, 3))])
    return bool((shares >= smallest_share).all())
