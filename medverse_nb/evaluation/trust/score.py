"""The trust score: how right an answer probably is, and why, without knowing the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..doctor.agreement import FEWEST_TO_VOTE, outliers
from ..doctor.labels import LEAST_AGREEMENT
from ..doctor.report import Finding
from ..records import records_of
from .calibration import NOTHING_KNOWN, Calibration
from .context_signals import ContextSignals
from .measuring import SIGNALS, Level, Measured

EXPECTED = ("expected_dice", "expected_low", "expected_high")
FAR_DICE = 0.25  # a pair this far below the others' median is told
DOUBTFUL_DICE = 0.5


@dataclass(frozen=True, eq=False)
class Trust:
    """How far to believe one answer.

    table : a row a class: `expected_dice`, and `expected_low` and `expected_high`, an interval
        made to hold `confidence` of the true ones (NaN where the model has no calibration), then
        the signals behind it, as `SIGNALS` tells; NaN for those there are not.
    findings : what speaks against the context or the answer.
    left_out : `pair`, `class`, `dice` of each pair, answered from the others; with "full".
    uncertainty : (class, x, y, z) on the target's grid, the standard deviation of the probability
        over draws of the context, in [0, 0.5]; with "full" and two pairs or more, else None.
    seconds : what it cost.
    """

    level: Level
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    left_out: pd.DataFrame
    uncertainty: xr.DataArray | None
    confidence: float | None
    seconds: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the map."""
        return {
            "level": self.level,
            "confidence": self.confidence,
            "classes": records_of(self.table),
            "findings": [asdict(finding) for finding in self.findings],
            "left_out": records_of(self.left_out.set_index("pair")),
            "seconds": round(self.seconds, 3),
            "note": self.note,
        }

    def __repr__(self) -> str:
        lines = [self._line(str(name), row) for name, row in self.table.iterrows()]
        lines += [f"{f.severity}: {f.pair}: {f.evidence}; {f.remedy}" for f in self.findings]
        return "\n".join([*lines, *filter(None, [self.note])])

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(line)}</p>" for line in repr(self).splitlines()]
        shown = self.table.dropna(axis="columns", how="all")
        return "\n".join([*parts, shown.to_html(float_format="{:.2f}".format, na_rep="")])

    def _line(self, name: str, row: pd.Series) -> str:
        expected, low, high = (row[column] for column in EXPECTED)
        if self.confidence is None or np.isnan(expected):
            return f"{name}: signals only"
        return (
            f"{name}: expect Dice {expected:.2f} "
            f"({self.confidence:.0%} sure: {low:.2f} to {high:.2f})"
        )


def make_trust(
    measured: Measured,
    level: Level,
    names: Sequence[str],
    calibration: Calibration | None,
    uncertainty: xr.DataArray | None,
    seconds: float,
) -> Trust:
    """Turn signals into a score.

    Parameters
    ----------
    names : of the classes.
    calibration : of the weights that answered; None leaves the expected Dice open.
    uncertainty : the map on the target's own grid.
    """
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for number, (name, signals) in enumerate(zip(names, measured.classes, strict=True)):
        findings += context_findings(name, measured.context, number)
        expected = calibration.expect(signals) if calibration else NOTHING_KNOWN
        there = {signal: signals.get(signal, np.nan) for signal in SIGNALS}
        ends = dict(zip(EXPECTED, expected, strict=True))
        rows.append({"class": name, **ends, **there})
        if expected.dice < DOUBTFUL_DICE:
            findings.append(_doubtful(name, expected.dice))
    left_out = measured.context.left_out.assign(
        **{"class": [names[k] for k in measured.context.left_out["class"]]}
    )
    findings += _outsiders(measured.context, names)
    note = "" if calibration else "these weights have no calibration: signals, no expected Dice"
    return Trust(
        level,
        pd.DataFrame(rows).set_index("class"),
        tuple(findings),
        left_out[["pair", "class", "dice"]],
        uncertainty,
        calibration.confidence if calibration else None,
        seconds,
        note,
    )


def context_findings(name: str, context: ContextSignals, number: int) -> Iterator[Finding]:
    """Say what speaks against a context, whatever the target; needs no calibration.

    name, number : of the class; numbers count from 0.
    """
    signals, rows = context.of_class(number), context.left_out["class"] == number
    if signals.get("edges", 1.0) < LEAST_AGREEMENT:
        yield Finding(
            "warning", "labels-off-edges", "context",
            f"{name}: the labels' borders agree with their images' edges {signals['edges']:.2f} "
            "times as well as they would some voxels away",
            "is each label on its own image, and unflipped?",
        )  # fmt: skip
    if signals.get("left_out", 1.0) < DOUBTFUL_DICE:
        yield Finding(
            "warning", "context-weak", "context",
            f"{name}: the pairs answer one another with Dice {signals['left_out']:.2f} only",
            "do all labels mark one structure? if they do, this model does not find it",
        )  # fmt: skip
    if rows.sum() >= FEWEST_TO_VOTE and signals["gain"] <= 0:
        yield Finding(
            "warning", "context-broken", "context",
            f"{name}: the pairs answer one another with Dice {signals['left_out']:.2f}, their mean "
            f"label, which looks at no image, with {signals['left_out'] - signals['gain']:.2f}",
            "is each label on its own image, and unflipped?",
        )  # fmt: skip


def _doubtful(name: str, dice: float) -> Finding:
    return Finding(
        "warning", "low-trust", "target", f"{name}: expect Dice {dice:.2f}",
        "look at the answer; correct it and accept it as a pair, or add pairs like this scan",
    )  # fmt: skip


def _outsiders(context: ContextSignals, names: Sequence[str]) -> list[Finding]:
    """Find pairs that the others answer far worse than they answer one another."""
    found = []
    for number, rows in context.left_out.groupby("class"):
        dice = dict(zip(rows["pair"], rows["dice"], strict=True))
        middle = float(np.median(rows["dice"]))
        far = outliers({pair: np.array([score]) for pair, score in dice.items()}, FAR_DICE)
        found += [
            _outsider(names[int(number)], pair, dice[pair], middle)
            for pair in far
            if dice[pair] < middle
        ]
    return found


def _outsider(name: str, pair: str, dice: float, middle: float) -> Finding:
    return Finding(
        "warning", "pair-left-out", pair,
        f"{name}: the other pairs answer it with Dice {dice:.2f}, one another with {middle:.2f}",
        "look at its label; predict without it and see",
    )  # fmt: skip
