"""What each pair does to an answer: leave it out and see what changes."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import Any

import pandas as pd

from ..errors import ContextError
from ..pair import ContextPair
from .answers import Answer, Asking, OnPrediction, PredictFrom, check_pairs


def influence(
    predict: PredictFrom,
    pairs: Sequence[ContextPair],
    *,
    truth: Any = None,
    on_progress: OnPrediction | None = None,
    cancel: Event | None = None,
) -> pd.DataFrame:
    """Compare the answer from all L pairs with the answer without each one: L + 1 predictions.

    Two pairs that are alike stand in for each other, so both may look unimportant; leave both
    out to know.

    Parameters
    ----------
    predict : answers the target from some pairs, such as `predictor(...)`.
    truth : K masks (K, X, Y, Z), one mask or one image, on the answer's grid; tells which
        pairs help and which hurt.
    on_progress : called with what is being predicted, predictions done, and of how many.
    cancel : once set, ends before the next prediction.

    Returns
    -------
    A row a pair and class, pairs in their order: `pair`, `class` and `influence`, 0 where the
    pair changes nothing: 1 - soft Dice of the two answers, in [0, 1], or the mean absolute
    difference of two images. With a truth also `dice` (or `psnr` in dB) from all pairs,
    `dice_without` the pair, and `gain`, their difference: positive where the pair helps.

    Raises
    ------
    ContextError : fewer than two pairs, or two of one name.
    InputError : a truth of another shape than the answer.
    Cancelled : by `cancel`.
    """
    check_pairs(pairs)
    if len(pairs) < 2:
        raise ContextError(
            f"leaving out {pairs[0].name!r}, the only pair, leaves nothing to answer from; "
            "influence needs two pairs or more"
        )
    known = None if truth is None else Answer.of(truth, pairs[0].task)
    ask = Asking(predict, pairs[0].task, len(pairs) + 1, on_progress, cancel)
    whole = ask(f"all {len(pairs)} pairs", pairs)
    score = None if known is None else whole.score(known)
    rows = []
    for pair in pairs:
        without = ask(f"without {pair.name}", [other for other in pairs if other is not pair])
        lines = pd.DataFrame(
            {"pair": pair.name, "class": whole.names, "influence": whole.change(without)}
        )
        if known is not None and score is not None:
            lines[whole.measure] = score
            lines[f"{whole.measure}_without"] = without.score(known)
            lines["gain"] = lines[whole.measure] - lines[f"{whole.measure}_without"]
        rows.append(lines)
    return pd.concat(rows, ignore_index=True)
