"""Trials: drawn targets of known truth, to learn from what a right answer can be told.

Only synthetic contrast over label maps and shapes is drawn. Labels get the borders that hands
draw, and a share of the contexts is broken on purpose, in the ways `BREAKS` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Generator, Tensor

from ...context import ContextPair, make_pair
from ...tasks.anatomy import allowed_foreground, draw_foreground
from ...tasks.fields import blur, chance, integer, smooth_field, uniform
from ...tasks.scenes import Source
from ...volume import make_volume
from ..wrong_context import flip_labels, shuffle_labels, swap_labels

FOREGROUND, OTHER = 1, 2
SIDES = (32, 40, 48, 56, 64, 96)
SHARES = (0.15, 0.15, 0.15, 0.15, 0.2, 0.2)
SMALLEST_SIDE_SHARE = 0.6  # crops are seldom cubes
FEWEST_VOXELS = 30
BROKEN_SHARE = 0.25
HAND_BLUR_VOX, HAND_NOISE = 1.0, 0.3


@dataclass(frozen=True)
class Trial:
    """A target of known truth, and a context.

    broken : the name of what was done to the context, "" for a sound one.
    """

    target: xr.DataArray
    truth: xr.DataArray
    pairs: tuple[ContextPair, ...]
    broken: str = ""


def mix_structures(pairs: Sequence[ContextPair], seed: int) -> list[ContextPair]:
    """Return the pairs, every second with another structure in the place of the first."""
    first = seed % 2
    wrong = swap_labels(pairs[first::2], {FOREGROUND: OTHER})
    names = {pair.name: pair for pair in wrong}
    return [names.get(pair.name, pair) for pair in pairs]


BREAKS: dict[str, Callable[[Sequence[ContextPair], int], list[ContextPair]]] = {
    "wrong structure": mix_structures,
    "shuffled labels": lambda pairs, seed: shuffle_labels(pairs, seed=seed),
    "flipped labels": lambda pairs, seed: flip_labels(pairs, seed % 3),
}


def draw_trial(source: Source, generator: Generator, context_size: int) -> Trial:
    """Draw a target, its truth and `context_size` pairs; of two and more, some broken."""
    while True:
        side = SIDES[int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))]
        scene = source.draw(generator, context_size + 1, side)
        foreground = draw_foreground(scene.labels, generator, 0.3, 3)
        others = [i for i in allowed_foreground(scene.labels) if i not in foreground]
        if not foreground or not others:
            continue
        other = others[integer(generator, 0, len(others) - 1)]
        labels = torch.stack([
            FOREGROUND * one + OTHER * another * ~one
            for one, another in zip(
                _drawn_by_hand(scene.labels.masks(foreground, side), generator),
                _drawn_by_hand(scene.labels.masks([other], side), generator),
                strict=True,
            )
        ])  # fmt: skip
        images = scene.paint(generator)
        box = _box(side, generator)
        labels, images = labels[(..., *box)], images[(..., *box)]
        counts = (labels == FOREGROUND).flatten(1).sum(1), (labels == OTHER).flatten(1).sum(1)
        if min(int(c.min()) for c in counts) >= FEWEST_VOXELS:
            break
    affine = np.eye(4)
    volumes = [
        (make_volume(image.numpy(), affine), make_volume(label.numpy(), affine))
        for image, label in zip(images, labels, strict=True)
    ]
    pairs = tuple(
        make_pair(image, label, name=f"pair-{n}") for n, (image, label) in enumerate(volumes[1:])
    )
    trial = Trial(*volumes[0], pairs)
    if context_size > 1 and chance(generator, BROKEN_SHARE):
        return break_context(trial, integer(generator, 0, 10_000))
    return trial


def break_context(trial: Trial, seed: int) -> Trial:
    """Break the context in one of the ways of `BREAKS`, chosen by seed."""
    name = [*BREAKS][seed % len(BREAKS)]
    pairs = BREAKS[name](trial.pairs, seed // len(BREAKS))
    return replace(trial, pairs=tuple(pairs), broken=name)


def _drawn_by_hand(masks: Tensor, generator: Generator) -> Tensor:
    """Return soft masks (N, S, S, S) as bool, their borders smoothed and moved a little."""
    width, noise = uniform(generator, 0, HAND_BLUR_VOX), uniform(generator, 0, HAND_NOISE)
    side = masks.shape[-1]
    moved = [noise * smooth_field(generator, side, max(4, side // 5))[0] for _ in masks]
    return blur(masks, width) + torch.stack(moved) > 0.5


def _box(side: int, generator: Generator) -> tuple[slice, slice, slice]:
    x, y, z = (integer(generator, int(SMALLEST_SIDE_SHARE * side), side) for _ in range(3))
    sides = [(side - n) // 2 for n in (x, y, z)]
    a, b, c = (slice(low, side - low) for low in sides)
    return a, b, c
