"""One target, several methods, one truth: same pairs, same metrics, a row a method and class."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import Cancelled, first_line
from .baselines.protocol import Baseline, Trial
from .metrics import dice

Metric = Callable[[Any, Any], float]
METRICS: dict[str, Metric] = {"dice": dice}  # higher is better, the first decides who wins
OnMethod = Callable[[str, int, int], None]  # its name, methods done, of how many


@dataclass(frozen=True)
class Run:
    """One method's answer, or why there is none.

    mask : class numbers on the target's own grid; None where it failed.
    """

    name: str
    mask: NDArray[Any] | None
    seconds: float
    note: str = ""
    error: str = ""


def run_methods(
    trial: Trial, methods: Sequence[Baseline], on_method: OnMethod | None = None
) -> list[Run]:
    """Run the methods one after the other; one that fails is told, and the others go on.

    Raises
    ------
    Cancelled : by the trial's `cancel`.
    """
    runs = []
    for number, method in enumerate(methods):
        trial.check()
        if on_method:
            on_method(method.name, number, len(methods))
        runs.append(_run(trial, method))
    if on_method:
        on_method("", len(methods), len(methods))
    return runs


def table_of(runs: Sequence[Run], truth: NDArray[Any], trial: Trial, model: str) -> pd.DataFrame:
    """Return `method`, `class`, the metrics, `seconds`, `note` and `error`; NaN for a failure.

    Notes say where a baseline is better than the model, by the first metric.

    Parameters
    ----------
    truth : label values in the target's axis order.
    model : the name of the run that the others are compared with.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        for spec in trial.classes:
            inside = np.isin(truth, spec.values)
            scores = {
                name: np.nan if run.mask is None else metric(run.mask == spec.number, inside)
                for name, metric in METRICS.items()
            }
            rows.append(
                {
                    "method": run.name,
                    "class": spec.name,
                    **scores,
                    "seconds": round(run.seconds, 3),
                    "note": run.note,
                    "error": run.error,
                }
            )
    _tell_winners(rows, model)
    return pd.DataFrame(rows)


def _run(trial: Trial, method: Baseline) -> Run:
    started = time.perf_counter()
    try:
        outcome = method.predict(replace(trial))  # what one caches is not the next one's gain
        if outcome.mask.shape != trial.target.shape:
            raise ValueError(  # noqa: TRY301, told like any other failure
                f"answered {outcome.mask.shape}, the target is {trial.target.shape}"
            )
    except Cancelled:
        raise
    except Exception as error:  # noqa: BLE001, whatever another method does must not end ours
        message = f"{type(error).__name__}: {first_line(error)}"
        return Run(method.name, None, time.perf_counter() - started, error=message)
    return Run(method.name, outcome.mask, time.perf_counter() - started, outcome.note)


def _tell_winners(rows: list[dict[str, Any]], model: str) -> None:
    """Say on both sides where a baseline is better than the model."""
    first = next(iter(METRICS))
    ours = {row["class"]: row for row in rows if row["method"] == model}
    for row in rows:
        own = ours[row["class"]]
        gain = row[first] - own[first]  # NaN, and so not above 0, where either failed
        if gain > 0:
            row["note"] = _joined(f"better than {model} by {gain:.3f} {first}", row["note"])
    for name, own in ours.items():
        winners = [r for r in rows if r["class"] == name and r[first] > own[first]]
        if winners:
            winners.sort(key=lambda row: -row[first])
            beaten = "beaten by " + ", ".join(row["method"] for row in winners)
            own["note"] = _joined(beaten, own["note"])


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
