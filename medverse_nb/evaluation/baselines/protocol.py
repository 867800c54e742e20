"""What every baseline is given, and what it gives back: one target, the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...classes import ClassSpec, likeliest
from ...errors import Cancelled
from ...geometry import Align
from ...pair import ContextPair
from ...placement import CanonicalVolume
from ...resampling import FloatArray


@dataclass(frozen=True, eq=False)
class Trial:
    """One target to segment, and all there is to learn it from.

    Parameters
    ----------
    target : (x, y, z) as it was read.
    classes : what is wanted, one or more.
    align : how a pair is placed on the target; the same for every method.
    seconds : for methods that train or search. Others take what they take.
    cancel : once set, the method ends with `Cancelled` at its next `check`.
    """

    target: xr.DataArray
    pairs: Sequence[ContextPair]
    classes: tuple[ClassSpec, ...]
    align: Align = "box"
    seconds: float = 60
    seed: int = 0
    cancel: Event | None = None

    @cached_property
    def canonical(self) -> CanonicalVolume:
        """The target in canonical axis order, scaled to [0, 1] as a run scales it."""
        return CanonicalVolume.of(self.target).scaled()

    def check(self) -> None:
        """Raise `Cancelled` where that was asked for; long methods call it often."""
        if self.cancel and self.cancel.is_set():
            raise Cancelled("cancelled while methods were compared")

    def mask(self, probabilities: Sequence[FloatArray] | FloatArray) -> NDArray[Any]:
        """Return class numbers in the target's own axis order.

        The highest probability wins, background where none exceeds 0.5: the rule of `predict`.

        probabilities : one (X, Y, Z) a class, on the target's canonical grid.
        """
        numbers = np.array([spec.number for spec in self.classes])
        small = numbers.astype(np.min_scalar_type(int(numbers.max())))
        return self.canonical.reorientation.undo(likeliest(np.asarray(probabilities), small))

    def numbers(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return class numbers for label values; 0 for values of no class."""
        found = np.zeros(labels.shape, np.int32)
        for spec in self.classes:
            found[np.isin(labels, spec.values)] = spec.number
        return found


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method answered.

    mask : class numbers on the target's own grid and in its axis order.
    note : what a reader of the score should know, such as a budget that ran out.
    """

    mask: NDArray[Any]
    note: str = ""


class Baseline(Protocol):
    """A method that answers from the same pairs as the model it is compared with."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def predict(self, trial: Trial) -> Outcome:
        """Segment the target; whatever is raised is told in the table, `Cancelled` ends all."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A method that learns from the pairs once and then answers any number of targets."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def fit(
        self,
        pairs: Sequence[ContextPair],
        classes: tuple[ClassSpec, ...],
        seconds: float,
        *,
        seed: int = 0,
        check: Callable[[], None] | None = None,
    ) -> Baseline:
        """Learn for about so many seconds.

        Parameters
        ----------
        check : called often; may raise to end it.

        Returns
        -------
        What answers trials of these classes, without looking at their pairs.
        """
        ...
