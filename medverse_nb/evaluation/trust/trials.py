"""Trials: drawn targets of known truth, to learn from what a right answer can be told.

Only synthetic contrast over label maps and shapes is drawn. Labels get the borders that hands
draw; `BREAKS` lists how a context can be broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Generator, Tensor

from ...pair import ContextPair, make_pair
from ...tasks.anatomy import allowed_foreground, draw_foreground
from ...tasks.enhancement import add_bias_field, add_gaussian_noise
from ...tasks.fields import blur, chance, integer, smooth_field, uniform
from ...tasks.scenes import Source
from ...volume import make_volume
from ..wrong_context import flip_labels, shuffle_labels, swap_labels

FOREGROUND, OTHER = 1, 2
SIDES = (32, 40, 48, 56, 64, 96)
SHARES = (0.15, 0.15, 0.15, 0.15, 0.2, 0.2)
SMALLEST_SIDE_SHARE = 0.6  # crops are seldom cubes
FEWEST_VOXELS = 30
SPOILT = 0.15  # of the scans of a cohort, in each way
HAND_BLUR_VOX, HAND_NOISE = 1.0, 0.3


class Case(NamedTuple):
    """A target and its label, (X, Y, Z) each; `FOREGROUND` in the label is what is asked for."""

    image: xr.DataArray
    label: xr.DataArray


@dataclass(frozen=True)
class Trial:
    """Subjects of one kind, as a user has them: some labelled, some to be answered."""

    pairs: tuple[ContextPair, ...]
    targets: tuple[Case, ...]


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


def draw_trial(source: Source, generator: Generator, pairs: int, targets: int) -> Trial:
    """Draw subjects in one contrast; scans and labels vary in quality as those of a cohort do."""
    while True:
        side = SIDES[int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))]
        scene = source.draw(generator, pairs + targets, side)
        foreground = draw_foreground(scene.labels, generator, 0.3, 3)
        others = [i for i in allowed_foreground(scene.labels) if i not in foreground]
        if not foreground or not others:
            continue
        other = others[integer(generator, 0, len(others) - 1)]
        asked, unasked = (
            _drawn_by_hand(scene.labels.masks(indices, side), generator)
            for indices in (foreground, [other])
        )
        box = _box(side, generator)
        labels = (FOREGROUND * asked + OTHER * (unasked & ~asked))[(..., *box)]
        if all(int((one == value).sum()) >= FEWEST_VOXELS for one in labels for value in (1, 2)):
            break
    images = torch.stack([_scanned(one, generator) for one in scene.paint(generator)])
    cases = [
        Case(make_volume(image.numpy(), np.eye(4)), make_volume(label.numpy(), np.eye(4)))
        for image, label in zip(images[(..., *box)], labels, strict=True)
    ]
    named = enumerate(cases[:pairs])
    return Trial(
        tuple(make_pair(case.image, case.label, name=f"pair-{n}") for n, case in named),
        tuple(cases[pairs:]),
    )


def break_context(pairs: Sequence[ContextPair], seed: int) -> tuple[str, list[ContextPair]]:
    """Break a context in one of the ways of `BREAKS`, chosen by seed, and name it."""
    name = [*BREAKS][seed % len(BREAKS)]
    return name, BREAKS[name](pairs, seed // len(BREAKS))


def _scanned(image: Tensor, generator: Generator) -> Tensor:
    """Make one image (S, S, S) of a cohort blurred, noisy or shaded, most of them not."""
    if chance(generator, SPOILT):
        image = blur(image, uniform(generator, 0.3, 1.2))
    for spoil in (add_gaussian_noise, add_bias_field):
        if chance(generator, SPOILT):
            image = spoil(image[None], generator)[0]
    return image.clamp(0, 1)


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
