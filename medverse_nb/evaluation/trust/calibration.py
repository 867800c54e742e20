"""What signals are worth: from signals to a predicted Dice with an interval.

A calibration belongs to one set of weights and lies beside them as `NAME.trust.json`: plain
numbers, learnt by `fit`, applied here by interpolation alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import WeightsError

SUFFIX = ".trust.json"


class Expected(NamedTuple):
    """A predicted Dice, and the ends of its interval; NaN where nothing is known."""

    dice: float
    low: float
    high: float


NOTHING_KNOWN = Expected(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Curve:
    """What one set of signals says.

    weights : of each signal, and `offset`: together they give a score.
    scores : knots, rising; `dice`, `low` and `high` are the predicted Dice and its interval
        there, and lie on straight lines between.
    """

    weights: dict[str, float]
    offset: float
    scores: Sequence[float]
    dice: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def at(self, signals: Mapping[str, float]) -> Expected:
        """Return what to expect of an answer with these signals."""
        score = self.offset + sum(w * signals[name] for name, w in self.weights.items())
        found = (np.interp(score, self.scores, ends) for ends in (self.dice, self.low, self.high))
        return Expected(*map(float, found))


@dataclass(frozen=True)
class Calibration:
    """Curves for the sets of signals there can be.

    confidence : share of true Dice that the intervals are made to hold.
    trials : how many predictions it was learnt from; `learnt_on` says of what.
    """

    weights_sha256: str
    confidence: float
    trials: int
    learnt_on: str
    curves: tuple[Curve, ...]

    def expect(self, signals: Mapping[str, float]) -> Expected:
        """Return what to expect, by the curve that uses most of these signals."""
        usable = [curve for curve in self.curves if set(curve.weights) <= set(signals)]
        richest = max(usable, key=lambda curve: len(curve.weights), default=None)
        return richest.at(signals) if richest else NOTHING_KNOWN

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what `to_json` wrote.

        Raises
        ------
        WeightsError : it is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            curves = tuple(Curve(**curve) for curve in fields.pop("curves"))
            return cls(**fields, curves=curves)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"no calibration of the trust score: {error}") from error


def read_calibration(weights: Path, sha256: str) -> Calibration | None:
    """Return the calibration beside a weights file; None where there is none for these weights.

    Raises
    ------
    WeightsError : a file that is none.
    """
    path = weights.with_name(weights.stem + SUFFIX)
    if not path.is_file():
        return None
    calibration = Calibration.from_json(path.read_text(encoding="utf-8"))
    return calibration if calibration.weights_sha256 == sha256 else None
