"""What the pairs alone tell: how well each is answered from the others, and fits its own image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...pair import ContextPair
from ..doctor.exam import find_foreground
from ..doctor.labels import FEWEST_VOXELS, edge_agreement
from ..metrics import dice
from .coarse import Asker

LEFT_OUT = ["pair", "class", "dice", "mean_label_dice"]  # columns
MOST_LEFT_OUT = 8  # predictions; of a larger context evenly spaced pairs are left out


@dataclass(frozen=True)
class ContextSignals:
    """What was found of a context, the same for every target.

    edges : mean agreement of the labels' borders with their images' edges, (0, 1]; NaN where no
        label is large enough.
    left_out : `pair`, `class`, `dice` of the pair's answer from the others with its own label,
        and `mean_label_dice`, that of the others' mean label. Empty where it was not asked for,
        or of a single pair.
    """

    edges: float
    left_out: pd.DataFrame

    def of_class(self, number: int) -> dict[str, float]:
        """Return the signals of class `number`, counted from 0; only those there are."""
        signals = {} if np.isnan(self.edges) else {"edges": self.edges}
        rows = self.left_out[self.left_out["class"] == number]
        if len(rows):
            signals["left_out"] = float(rows["dice"].mean())
            signals["gain"] = float((rows["dice"] - rows["mean_label_dice"]).mean())
        return signals


def context_signals(ask: Asker, pairs: Sequence[ContextPair], *, leave_out: bool) -> ContextSignals:
    """Look at the pairs; with `leave_out` each is predicted from the others.

    At most `MOST_LEFT_OUT` runs of one window, from all other pairs each.
    """
    left_out = _left_out(ask, pairs) if leave_out and len(pairs) > 1 else []
    return ContextSignals(_edges(pairs), pd.DataFrame(left_out, columns=LEFT_OUT))


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` numbers from 0 to count - 1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _edges(pairs: Sequence[ContextPair]) -> float:
    found = [(pair, find_foreground(pair)) for pair in pairs if pair.values]
    scores = [edge_agreement(p, fg)[0] for p, fg in found if fg.voxels >= FEWEST_VOXELS]
    return float(np.mean(scores)) if scores else float("nan")


def _left_out(ask: Asker, pairs: Sequence[ContextPair]) -> list[tuple[str, int, float, float]]:
    rows = []
    for number in evenly(len(pairs), MOST_LEFT_OUT):
        pair = pairs[number]
        others = [other for other in pairs if other is not pair]
        scan = ask.coarse(pair)
        own, answer = ask.labels(pair, scan), ask.masks(scan, others)
        mean = np.mean([ask.labels(other, scan) for other in others], axis=0) > 0.5
        for k, mask in enumerate(answer):
            if not own[k].any():
                continue  # an empty example of the class says nothing of how it is found
            rows.append((pair.name, k, dice(mask, own[k]), dice(mean[k], own[k])))
    return rows
