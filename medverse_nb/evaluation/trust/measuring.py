"""All signals of one answer, for a score as well as for learning what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

from ...pair import ContextPair
from ...placement import CanonicalVolume
from ...regions import View
from ...resampling import FloatArray
from .coarse import Asker, Coarse
from .context_signals import MOST_LEFT_OUT, ContextSignals, context_signals
from .target_signals import CONTEXT_DRAWS, REVERSED_PAIRS, target_signals

Level = Literal["fast", "full"]

SIGNALS = {
    "confidence": "Dice if every probability were right",
    "scales": "Dice with the answer of the coarser scale",
    "volume": "foreground beside the pairs' median, the smaller by the larger",
    "mean_label": "Dice with the mean label",
    "edges": "agreement of the pairs' label borders with their images' edges",
    "reverse": "Dice of known pairs, answered from this answer alone",
    "spread": "Dice with answers from random halves of the pairs",
    "left_out": "Dice of each pair, answered from the others",
    "gain": "what that answer is better than the others' mean label",
}


@dataclass(frozen=True)
class Measured:
    """What was found of one answer and of its context.

    classes : for each of K classes its signals by name, those of `SIGNALS` that there are.
    uncertainty : as in `TargetSignals`.
    """

    classes: tuple[dict[str, float], ...]
    context: ContextSignals
    uncertainty: FloatArray | None


def count_runs(level: Level, pairs: int, *, context_known: bool) -> int:
    """Return how many runs of one window `measure` will take, from so many pairs."""
    backwards = min(pairs, REVERSED_PAIRS)
    if level == "fast" or pairs == 1:
        return backwards
    draws = min(CONTEXT_DRAWS, comb(pairs, (pairs + 1) // 2))
    return backwards + draws + (0 if context_known else min(pairs, MOST_LEFT_OUT))


def measure(
    ask: Asker,
    target: CanonicalVolume,
    answers: Sequence[Sequence[View]],
    pairs: Sequence[ContextPair],
    level: Level,
    context: ContextSignals | None = None,
) -> Measured:
    """Measure every signal of a level.

    Parameters
    ----------
    target : scaled to [0, 1].
    answers : K probabilities of each scale, the last at full resolution.
    context : what is known already of these pairs at this level.
    """
    full = level == "full"
    known = context or context_signals(ask, pairs, leave_out=full)
    found = target_signals(ask, Coarse.of(target, ask.side), answers, pairs, draw=full)
    classes = tuple(
        {name: signals[name] for name in SIGNALS if name in signals}
        for signals in ({**own, **known.of_class(k)} for k, own in enumerate(found.classes))
    )
    return Measured(classes, known, found.uncertainty)
