"""How many pairs are enough: the answer from 1, 2, 4, ... pairs, several draws of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ContextError, InputError
from ..pair import ContextPair
from .answers import Answer, Asking, Measure, OnPrediction, PredictFrom, check_pairs


@dataclass(frozen=True)
class Draws:
    """Contexts to compare: of every order of the pairs the first 1, 2, 4, ... L.

    So the contexts of a draw are nested, and a larger one only adds pairs. Made by
    `draw_contexts`; orders of your own, such as from `choose`, serve as well.
    """

    orders: tuple[tuple[ContextPair, ...], ...]
    sizes: tuple[int, ...]  # rising; the last is L

    def __iter__(self) -> Iterator[tuple[int, int, tuple[ContextPair, ...]]]:
        """Go through size, number of the draw and its pairs, small contexts first."""
        for size in self.sizes:
            for number, order in enumerate(self.orders):
                yield size, number, order[:size]

    @property
    def predictions(self) -> int:
        """What `how_many` will ask for: contexts of the same pairs are answered once."""
        return len({_key(pairs) for _, _, pairs in self})


def draw_contexts(
    pairs: Sequence[ContextPair],
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    seed: int = 0,
) -> Draws:
    """Draw random orders of the pairs; `.predictions` says what measuring them will cost.

    The order of `pairs` changes nothing, and more draws begin with the same ones.

    Parameters
    ----------
    sizes : numbers of pairs; None for 1, 2, 4, 8, .... All L pairs always close the curve.

    Raises
    ------
    ContextError : no pairs, two of one name, or a size that is not in 1..L.
    InputError : no draw.
    """
    check_pairs(pairs)
    most = len(pairs)
    if draws < 1:
        raise InputError(f"draws={draws} must be 1 or more")
    wanted = [2**power for power in range(most.bit_length())] if sizes is None else sizes
    if wrong := [size for size in wanted if not 1 <= size <= most]:
        raise ContextError(f"sizes {wrong} must lie in 1..{most}, the number of pairs")
    by_name = sorted(pairs, key=lambda pair: pair.name)
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(most) for _ in range(draws))
    return Draws(
        tuple(tuple(by_name[i] for i in order) for order in orders),
        tuple(sorted({*wanted, most})),
    )


def how_many(
    predict: PredictFrom,
    draws: Draws,
    *,
    truth: Any = None,
    on_progress: OnPrediction | None = None,
    cancel: Event | None = None,
) -> pd.DataFrame:
    """Measure the answer against the number of pairs: `draws.predictions` predictions.

    Without a truth the answers are compared with the one from all pairs. That is agreement,
    not accuracy: it ends at 1 (or at a difference of 0) whatever the answer is worth.

    Parameters
    ----------
    predict : answers the target from some pairs, such as `predictor(...)`.
    truth : K masks (K, X, Y, Z), one mask or one image, on the answer's grid.
    on_progress : called with what is being predicted, predictions done, and of how many.
    cancel : once set, ends before the next prediction; `measure_draws` gives what was measured
        till then.

    Returns
    -------
    A row a size and class: `size`, `class`, `measure` (a key of `answers.MEANING`), `mean`,
    `std` (NaN of one draw), `min`, `max` and `draws`. Draws share pairs, the more the closer
    a size comes to L, so the spread shrinks to 0 there by itself.

    Raises
    ------
    InputError : a truth of another shape than the answer.
    Cancelled : by `cancel`.

    Examples
    --------
    ::

        draws = draw_contexts(session.context.pairs, draws=5, seed=0)
        print(draws.predictions)
        table = how_many(predict, draws, truth=mask)
    """
    rows = measure_draws(predict, draws, truth=truth, on_progress=on_progress, cancel=cancel)
    return summarise(pd.DataFrame(rows))


def measure_draws(
    predict: PredictFrom,
    draws: Draws,
    *,
    truth: Any = None,
    on_progress: OnPrediction | None = None,
    cancel: Event | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield `size`, `draw`, `class`, `measure` and `score` as soon as each is known.

    Parameters and errors are those of `how_many`. The answer from all pairs is asked for
    first, small contexts next.
    """
    task = draws.orders[0][0].task
    ask = Asking(predict, task, draws.predictions, on_progress, cancel)
    known = None if truth is None else Answer.of(truth, task)
    everything = draws.orders[0][: draws.sizes[-1]]
    whole = ask(f"all {len(everything)} pairs", _by_name(everything))

    def measure(answer: Answer) -> tuple[Measure, list[float]]:
        if known is not None:
            return answer.measure, answer.score(known)
        if task == "image":
            return "difference", answer.change(whole)
        return "agreement", answer.score(whole)

    measured = {_key(everything): measure(whole)}
    for size, number, pairs in draws:
        if _key(pairs) not in measured:
            answer = ask(f"{size} of {len(everything)} pairs, draw {number + 1}", _by_name(pairs))
            measured[_key(pairs)] = measure(answer)
        name, scores = measured[_key(pairs)]
        for class_name, score in zip(whole.names, scores, strict=True):
            yield {
                "size": size,
                "draw": number,
                "class": class_name,
                "measure": name,
                "score": score,
            }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread over the draws, a row a size and class."""
    by_size = rows.groupby(["size", "class", "measure"], sort=False)["score"]
    table = by_size.agg(["mean", "std", "min", "max", "count"])
    return table.rename(columns={"count": "draws"}).reset_index()


def _key(pairs: Sequence[ContextPair]) -> frozenset[str]:
    return frozenset(pair.name for pair in pairs)


def _by_name(pairs: Sequence[ContextPair]) -> list[ContextPair]:
    return sorted(pairs, key=lambda pair: pair.name)  # the same pairs give the same rounding
