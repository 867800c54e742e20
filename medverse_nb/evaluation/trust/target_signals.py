"""What one answer tells of itself: its certainty, its size, and what other contexts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from ...pair import ContextPair, make_pair
from ...regions import View
from ...resampling import FloatArray
from ...volume import make_volume
from ..metrics import dice
from .coarse import Asker, Coarse, Masks, masks_of
from .context_signals import evenly

REVERSED_PAIRS = 3
CONTEXT_DRAWS = 4


@dataclass(frozen=True)
class TargetSignals:
    """What was found of one answer.

    classes : for each of K classes its signals by name; only those there are.
    uncertainty : (K, X, Y, Z) in [0, 0.5] on the coarse grid, the standard deviation of the
        probability over draws of the context; None where none was drawn.
    """

    classes: tuple[dict[str, float], ...]
    uncertainty: FloatArray | None


def target_signals(
    ask: Asker,
    scan: Coarse,
    answers: Sequence[Sequence[View]],
    pairs: Sequence[ContextPair],
    *,
    draw: bool,
    seed: int = 0,
) -> TargetSignals:
    """Look at an answer, and run it backwards; with `draw` also answer from halves of the pairs.

    `REVERSED_PAIRS` runs of one window from one pair, and `CONTEXT_DRAWS` from half of the pairs.

    Parameters
    ----------
    answers : K probabilities of each scale, the last at full resolution, on the scan's box.
    """
    *coarser, final = [np.stack([scan.resized(view) for view in step]) for step in answers]
    probabilities = np.clip(final, 0, 1)
    masks = masks_of(probabilities)
    labels = np.stack([ask.labels(pair, scan) for pair in pairs], axis=1)
    classes: list[dict[str, float]] = [
        {"confidence": expected_dice(probability, mask), **volume_and_mean_label(mask, shown)}
        for probability, mask, shown in zip(probabilities, masks, labels, strict=True)
    ]
    _add(classes, "reverse", reverse(ask, scan, masks, pairs))
    if coarser:
        _add(classes, "scales", _agreement(masks, masks_of(np.clip(coarser[-1], 0, 1))))
    uncertainty = None
    if draw and len(pairs) > 1:
        drawn = [ask.probabilities(scan, half) for half in halves(pairs, seed)]
        agreements = [_agreement(masks, masks_of(one)) for one in drawn]
        _add(classes, "spread", np.mean(agreements, axis=0))
        uncertainty = np.std([probabilities, *drawn], axis=0, dtype=np.float32)
    return TargetSignals(tuple(classes), uncertainty)


def expected_dice(probability: FloatArray, mask: Masks) -> float:
    """Return the Dice a mask would have if every probability were right; 0 of an empty mask."""
    total = float(probability.sum(dtype=np.float64)) + int(mask.sum())
    return 2 * float(probability[mask].sum(dtype=np.float64)) / total if mask.any() else 0.0


def volume_and_mean_label(mask: Masks, labels: Masks) -> dict[str, float]:
    """Return how far size and place are what the pairs' labels (L, X, Y, Z) show, in [0, 1]."""
    usual, ours = float(np.median([label.sum() for label in labels])), float(mask.sum())
    return {
        "volume": min(usual, ours) / max(usual, ours, 1),
        "mean_label": dice(mask, np.mean(labels, axis=0) > 0.5),
    }


def reverse(ask: Asker, scan: Coarse, masks: Masks, pairs: Sequence[ContextPair]) -> list[float]:
    """Return each class's mean Dice of known pairs, answered from this answer alone.

    Source: reverse classification accuracy, Valindria et al. 2017.
    """
    numbers = np.zeros(scan.grid.shape, np.int32)
    for k, mask in enumerate(masks):
        numbers[mask] = k + 1
    affine = scan.grid.affine
    answered = make_pair(
        make_volume(scan.scan, affine), make_volume(numbers, affine), name="the answer"
    )
    backwards = ask.asking([(k + 1,) for k in range(len(masks))])
    scores: list[list[float]] = [[] for _ in masks]
    for number in evenly(len(pairs), REVERSED_PAIRS):
        known = ask.coarse(pairs[number])
        truth, answer = ask.labels(pairs[number], known), backwards.masks(known, [answered])
        for k, mask in enumerate(answer):
            if truth[k].any():
                scores[k].append(dice(mask, truth[k]))
    return [float(np.mean(one)) if one else 0.0 for one in scores]


def halves(pairs: Sequence[ContextPair], seed: int) -> list[list[ContextPair]]:
    """Return different random halves of the pairs, `CONTEXT_DRAWS` where there are as many."""
    size = (len(pairs) + 1) // 2
    wanted = min(CONTEXT_DRAWS, comb(len(pairs), size))
    generator, chosen = np.random.default_rng(seed), set[tuple[int, ...]]()
    while len(chosen) < wanted:
        chosen.add(tuple(sorted(generator.permutation(len(pairs))[:size].tolist())))
    return [[pairs[number] for number in half] for half in sorted(chosen)]


def _agreement(masks: Masks, others: Masks) -> list[float]:
    return [dice(mask, other) for mask, other in zip(masks, others, strict=True)]


def _add(classes: list[dict[str, float]], name: str, values: Sequence[float]) -> None:
    for signals, value in zip(classes, values, strict=True):
        signals[name] = float(value)
