"""Learn a calibration from trials: which signals tell a right answer, and how surely.

By scikit-learn (a sum with no negative weight, isotonic and quantile regression) and MAPIE (conformal
correction of the interval, on trials that the quantiles have not seen); extra `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .calibration import Calibration, Curve

CONFIDENCE = 0.8
ALWAYS = ("confidence", "volume", "mean_label", "reverse")
OPTIONAL = (("scales",), ("spread", "left_out", "gain"))
FEWEST_TRIALS = 40  # to learn from
SEED = 0


def fit(trials: pd.DataFrame, weights_sha256: str, learnt_on: str) -> Calibration:
    """Return the calibration that these trials teach.

    Parameters
    ----------
    trials : a row each with the true `dice`, the signals there were, and the `case` it was of: the
        rows of one case are on one side when trials are split.
    """
    patterns = [
        [*ALWAYS, *(name for group, there in zip(OPTIONAL, chosen, strict=True) if there
                    for name in group)]
        for chosen in product((True, False), repeat=len(OPTIONAL))
    ]  # fmt: skip
    curves = [_curve(rows, names) for names, rows in _enough(trials, patterns)]
    return Calibration(weights_sha256, CONFIDENCE, len(trials), learnt_on, tuple(curves))


def _enough(
    trials: pd.DataFrame, patterns: Sequence[list[str]]
) -> list[tuple[list[str], pd.DataFrame]]:
    found = [(names, trials.dropna(subset=names)) for names in patterns]
    return [(names, rows) for names, rows in found if len(rows) >= FEWEST_TRIALS]


def _curve(rows: pd.DataFrame, names: list[str]) -> Curve:
    """Fit one set of signals; half of the cases only widen or narrow the interval."""
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.linear_model import LinearRegression, QuantileRegressor
    from sklearn.model_selection import GroupShuffleSplit

    dice = rows["dice"].to_numpy()
    linear = LinearRegression(positive=True).fit(rows[names].to_numpy(), dice)
    scores = linear.predict(rows[names].to_numpy())
    split = GroupShuffleSplit(1, test_size=0.5, random_state=SEED)
    ((learn, correct),) = split.split(scores, groups=rows["case"])
    tail = (1 - CONFIDENCE) / 2
    quantiles = [
        QuantileRegressor(quantile=level, alpha=0).fit(scores[learn, None], dice[learn])
        for level in (tail, 1 - tail, 0.5)
    ]
    conformal = ConformalizedQuantileRegressor(quantiles, CONFIDENCE, prefit=True)
    conformal.conformalize(scores[correct, None], dice[correct])
    knots, expected = _isotonic(scores, dice)
    _, intervals = conformal.predict_interval(knots[:, None], symmetric_correction=True)
    low, high = intervals[:, 0, 0], intervals[:, 1, 0]
    return Curve(
        dict(zip(names, _rounded(linear.coef_), strict=True)),
        round(float(linear.intercept_), 5),
        _rounded(knots),
        _rounded(expected),
        _rounded(np.clip(np.minimum(low, expected), 0, 1)),
        _rounded(np.clip(np.maximum(high, expected), 0, 1)),
    )


def _isotonic(
    scores: NDArray[np.float64], dice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return knots of the rising curve, one a level: where it has steps, the middle of each.

    A step would give different answers one score.

    Source: centred isotonic regression, Oron and Flournoy 2017.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit_transform(scores, dice)
    levels = pd.Series(scores).groupby(fitted).mean()
    return levels.to_numpy(), levels.index.to_numpy()


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
