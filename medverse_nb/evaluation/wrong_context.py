"""Does the context matter: the same target, answered from labels that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ContextError, InputError
from ..pair import ContextPair
from ..stored import LAZY_CHUNK
from ..views import as_dask, mapped
from ..volume import view_of, with_data
from .answers import Answer, Asking, OnPrediction, PredictFrom, check_pairs


@dataclass(frozen=True)
class WrongContext:
    """Both answers (K, X, Y, Z) and how far they agree.

    table : a row a class; see `wrong_context`.
    """

    right: NDArray[Any]
    wrong: NDArray[Any]
    table: pd.DataFrame


def wrong_context(
    predict: PredictFrom,
    pairs: Sequence[ContextPair],
    wrong: Sequence[ContextPair],
    *,
    truth: Any = None,
    on_progress: OnPrediction | None = None,
    cancel: Event | None = None,
) -> WrongContext:
    """Answer from the pairs and from the same with wrong labels: two predictions.

    A network that learns from the context must follow it into error. Where both answers
    agree, the answer came from elsewhere: from the image, or from what the network knew.

    Parameters
    ----------
    predict : answers the target from some pairs, such as `predictor(...)`.
    wrong : such as `swap_labels(pairs, {1: 2})` or `shuffle_labels(pairs)`.
    truth : K masks (K, X, Y, Z), one mask or one image, on the answer's grid.
    on_progress, cancel : as in `influence`.

    Returns
    -------
    Its table has `class` and `agreement`, the Dice of the two answers (of an image task
    `difference`, their mean absolute difference); with a truth `dice` (or `psnr` in dB) and
    `dice_wrong`.

    Raises
    ------
    ContextError : no pairs.
    InputError : a truth of another shape than the answer.
    Cancelled : by `cancel`.
    """
    check_pairs(pairs)
    check_pairs(wrong)
    task = pairs[0].task
    known = None if truth is None else Answer.of(truth, task)
    ask = Asking(predict, task, 2, on_progress, cancel)
    first, second = ask("the context", pairs), ask("the wrong context", wrong)
    table = pd.DataFrame({"class": first.names})
    if task == "image":
        table["difference"] = second.change(first)
    else:
        table["agreement"] = second.score(first)
    if known is not None:
        table[first.measure] = first.score(known)
        table[f"{first.measure}_wrong"] = second.score(known)
    return WrongContext(first.volumes, second.volumes, table)


def swap_labels(pairs: Sequence[ContextPair], structures: Mapping[int, int]) -> list[ContextPair]:
    """Return the pairs with label values exchanged: `{1: 2}` turns 1 into 2 and 2 into 1.

    The strong check: asked for one structure, the context shows another.

    Raises
    ------
    ContextError : no pairs, an image task, a value that no pair has, or one named twice.
    """
    check_pairs(pairs)
    if pairs[0].task == "image":
        raise ContextError("labels of an image task have no values to swap; use shuffle_labels")
    named = [*structures, *structures.values()]
    there = sorted({value for pair in pairs for value in pair.values})
    if not named or len(set(named)) < len(named) or not set(named) <= set(there):
        raise ContextError(
            f"structures={dict(structures)} must name label values of the pairs, each once; "
            f"there are {there}"
        )
    table = {**structures, **{other: value for value, other in structures.items()}}
    return [_with_values(pair, table) for pair in pairs]


def shuffle_labels(pairs: Sequence[ContextPair], *, seed: int = 0) -> list[ContextPair]:
    """Return the pairs with each image beside the label of another.

    The gentle check: where the subjects lie alike, a shuffled label is nearly right, and the
    mean label, which looks at no image, answers the same.

    Raises
    ------
    ContextError : fewer than two pairs, or two of one name.
    """
    check_pairs(pairs)
    if len(pairs) < 2:
        raise ContextError("shuffling labels needs two pairs or more; swap_labels works with one")
    by_name = sorted(pairs, key=lambda pair: pair.name)
    order = np.random.default_rng(seed).permutation(len(by_name))
    giver = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # none its own
    labels = {by_name[i].name: by_name[giver[i]].label for i in giver}
    # A label keeps its own grid: it is laid on the target as with its own image.
    return [replace(pair, label=labels[pair.name]) for pair in pairs]


def flip_labels(pairs: Sequence[ContextPair], axis: int = 0) -> list[ContextPair]:
    """Return the pairs with each label mirrored in its place, its image as it was.

    What a converter does that loses a label's orientation.

    Parameters
    ----------
    axis : of the file's voxels: 0, 1 or 2.

    Raises
    ------
    ContextError : no pairs, or two of one name.
    InputError : another axis.
    """
    check_pairs(pairs)
    if axis not in (0, 1, 2):
        raise InputError(f"axis={axis} must be 0, 1 or 2")
    return [
        replace(pair, label=pair.label.copy(data=np.flip(pair.label.data, axis))) for pair in pairs
    ]


def _with_values(pair: ContextPair, table: Mapping[int, int]) -> ContextPair:
    view = mapped(view_of(pair.label), partial(_exchange, table=dict(table)))
    data = view if isinstance(view, np.ndarray) else as_dask(view, LAZY_CHUNK)
    return replace(pair, label=with_data(pair.label, data, "label"))


def _exchange(labels: NDArray[Any], table: dict[int, int]) -> NDArray[Any]:
    result = labels.copy()
    for value, other in table.items():
        result[labels == value] = other
    return result
