"""The papers' protocol: which cases are context, which are predicted, in which sizes and draws.

Source: Neuroverse3D 4.1 (a meta-context set and a test set, 8:2; Medverse has 5:5), C.2 (ten
contexts of each setting, mean and standard deviation); Medverse Figure 6 (1 to 16 pairs).
Deviation: within a draw a larger context only adds pairs; the papers do not say how theirs relate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import ContextError, InputError

SIZES = (1, 2, 4, 8, 16)
DRAWS = 10


class Split(NamedTuple):
    """Names of the cases contexts are drawn from, and of those that are predicted; both sorted."""

    meta_context: tuple[str, ...]
    test: tuple[str, ...]


class Context(NamedTuple):
    """One context: the first `size` names of the order that its draw gave the meta-context."""

    size: int
    draw: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Draws:
    """Orders of the meta-context, and how many pairs of each are used: sizes are nested."""

    orders: tuple[tuple[str, ...], ...]
    sizes: tuple[int, ...]

    def context(self, draw: int, size: int) -> Context:
        """Return the first pairs of a draw's order."""
        return Context(size, draw, self.orders[draw][:size])


def split_cohort(names: Sequence[str], test: float = 0.2, *, seed: int = 0) -> Split:
    """Split a cohort by seed; a case is never its own context.

    The order of `names` changes nothing.

    Parameters
    ----------
    test : number of cases to predict; below 1, their share of the cohort (at least one).

    Raises
    ------
    ContextError : two cases of one name, or a split that leaves no case on one side.
    InputError : a number that is neither a share nor whole.
    """
    ordered = sorted(names)
    if twice := sorted({name for name in ordered if ordered.count(name) > 1}):
        raise ContextError(f"cases need names of their own; taken twice: {twice[0]!r}")
    if not test > 0 or (test >= 1 and test != int(test)):
        raise InputError(f"test={test} must be a share below 1, or a whole number of cases")
    count = int(test) if test >= 1 else max(1, round(test * len(ordered)))
    if count >= len(ordered):
        raise ContextError(
            f"{count} of {len(ordered)} cases to predict leave none as context; ask for fewer"
        )
    chosen = set(np.random.default_rng(seed).permutation(ordered)[:count].tolist())
    meta_context = tuple(name for name in ordered if name not in chosen)
    return Split(meta_context, tuple(sorted(chosen)))


def draw_orders(
    meta_context: Sequence[str],
    *,
    sizes: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Draws:
    """Draw random orders of the meta-context; more draws begin with the same ones.

    Parameters
    ----------
    sizes : numbers of pairs; None for those of `SIZES` that the meta-context has.

    Raises
    ------
    ContextError : no pair, or a size that is not in 1..L.
    InputError : no draw, or no size.
    """
    most = len(meta_context)
    if not most:
        raise ContextError("no pair is left that can serve as context")
    if draws < 1:
        raise InputError(f"draws={draws} must be 1 or more")
    wanted = [size for size in SIZES if size <= most] if sizes is None else sorted({*sizes})
    if not wanted:
        raise InputError("give at least one context size")
    if wrong := [size for size in wanted if not 1 <= size <= most]:
        raise ContextError(f"sizes {wrong} must lie in 1..{most}, the pairs to draw from")
    generator, ordered = np.random.default_rng(seed), sorted(meta_context)
    orders = tuple(tuple(generator.permutation(ordered).tolist()) for _ in range(draws))
    return Draws(orders, tuple(wanted))
