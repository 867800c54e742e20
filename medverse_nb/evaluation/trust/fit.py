"""Learn a calibration from trials: which signals tell a right answer, and how surely.

By scikit-learn (a sum with no negative weight, isotonic regression, rising quantiles) and MAPIE
(conformal correction of the interval, on trials the quantiles have not seen); extra `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .calibration import Alarm, Calibration, Curve

CONFIDENCE = 0.8
ALWAYS = ("confidence", "volume", "mean_label", "reverse")
OPTIONAL = (("scales",), ("spread", "left_out", "gain"))
ALARM_SIGNALS = ("left_out", "gain")
FALSE_ALARMS = 0.03  # of sound trials
FEWEST_TRIALS = 40  # to learn from
KNOTS = 33
SEED = 0


def fit(trials: pd.DataFrame, weights_sha256: str, learnt_on: str) -> Calibration:
    """Return the calibration that these trials teach.

    Parameters
    ----------
    trials : a row each with the true `dice`, the signals there were, and `broken`, "" for a
        sound context.
    """
    patterns = [
        [*ALWAYS, *(name for group, there in zip(OPTIONAL, chosen, strict=True) if there
                    for name in group)]
        for chosen in product((True, False), repeat=len(OPTIONAL))
    ]  # fmt: skip
    curves = [_curve(rows, names) for names, rows in _enough(trials, patterns)]
    alarms = [_alarm(rows, names) for names, rows in _enough(trials, [list(ALARM_SIGNALS)])]
    return Calibration(
        weights_sha256, CONFIDENCE, len(trials), learnt_on, tuple(curves), tuple(alarms)
    )


def _enough(
    trials: pd.DataFrame, patterns: Sequence[list[str]]
) -> list[tuple[list[str], pd.DataFrame]]:
    found = [(names, trials.dropna(subset=names)) for names in patterns]
    return [(names, rows) for names, rows in found if len(rows) >= FEWEST_TRIALS]


def _curve(rows: pd.DataFrame, names: list[str]) -> Curve:
    """Fit one set of signals; half of the trials only widen or narrow the interval."""
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LinearRegression

    order = np.random.default_rng(SEED).permutation(len(rows))
    signals, dice = rows[names].to_numpy()[order], rows["dice"].to_numpy()[order]
    linear = LinearRegression(positive=True).fit(signals, dice)
    scores = linear.predict(signals)[:, None]
    middle = len(rows) // 2
    tail = (1 - CONFIDENCE) / 2
    quantiles = [
        HistGradientBoostingRegressor(
            loss="quantile", quantile=level, monotonic_cst=[1], max_iter=40, max_leaf_nodes=4,
            min_samples_leaf=max(5, middle // 12), early_stopping=False, random_state=SEED,
        ).fit(scores[:middle], dice[:middle])
        for level in (tail, 1 - tail, 0.5)
    ]  # fmt: skip
    conformal = ConformalizedQuantileRegressor(quantiles, CONFIDENCE, prefit=True)
    conformal.conformalize(scores[middle:], dice[middle:])
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(scores[:, 0], dice)
    knots = np.unique(np.quantile(scores[:, 0], np.linspace(0, 1, KNOTS)))
    _, intervals = conformal.predict_interval(knots[:, None], symmetric_correction=True)
    expected = isotonic.predict(knots)
    low, high = intervals[:, 0, 0], intervals[:, 1, 0]
    return Curve(
        dict(zip(names, _rounded(linear.coef_), strict=True)),
        round(float(linear.intercept_), 5),
        _rounded(knots),
        _rounded(expected),
        _rounded(np.clip(np.minimum(low, expected), 0, 1)),
        _rounded(np.clip(np.maximum(high, expected), 0, 1)),
    )


def _alarm(rows: pd.DataFrame, names: list[str]) -> Alarm:
    """Fit sound against broken, and raise so few false alarms as was asked for."""
    from sklearn.linear_model import LogisticRegression

    signals, broken = rows[names].to_numpy(), (rows["broken"] != "").to_numpy()
    logistic = LogisticRegression(class_weight="balanced", C=10.0).fit(signals, broken)
    scores = logistic.decision_function(signals)
    threshold = float(np.quantile(scores[~broken], 1 - FALSE_ALARMS))
    return Alarm(
        dict(zip(names, _rounded(logistic.coef_[0]), strict=True)),
        round(float(logistic.intercept_[0]) - threshold, 5),
    )


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
