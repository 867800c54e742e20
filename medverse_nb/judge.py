"""The trust score of a session's answers: signals, calibration and the map on the scan's grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, get_args

from .answer import make_probability
from .errors import InputError
from .evaluation.trust.calibration import Calibration
from .evaluation.trust.coarse import Asker
from .evaluation.trust.context_signals import ContextSignals
from .evaluation.trust.measuring import Level, count_runs, measure
from .evaluation.trust.score import Trust, make_trust
from .inference.autoregressive import Step
from .inference.recipe import Settings
from .model.network import ICLNetwork
from .progress import Progress, counting
from .question import Question
from .views import resized

TrustLevel = Literal["off", "fast", "full"]


def check_level(level: str, task: str) -> None:
    """Raise an `InputError` for an unknown level, or for one that the task has not."""
    if level not in get_args(TrustLevel):
        raise InputError(f"trust={level!r} is not one of {get_args(TrustLevel)}")
    if level != "off" and task == "image":
        raise InputError('trust= is for task="segmentation"; this session transforms images')


@dataclass
class Judge:
    """Scores answers; what it found of the last context is kept for the next target.

    calibration : of the session's weights, None where there is none.
    """

    calibration: Calibration | None
    known: tuple[tuple[Any, ...], ContextSignals] | None = field(default=None, repr=False)

    def score(
        self,
        question: Question,
        steps: Sequence[Step],
        network: ICLNetwork,
        settings: Settings,
        level: Level,
        on_progress: Progress | None,
        cancel: Event | None,
    ) -> Trust:
        """Return the trust score of an answer.

        Parameters
        ----------
        steps : of the run that answered.
        settings : of the network's runs, which take one window each.

        Raises
        ------
        Cancelled : by `cancel`, before the next run.
        """
        started = time.perf_counter()
        pairs = question.context.pairs
        wanted = [spec.values for spec in question.classes]
        key = (network, level, question.align, tuple(wanted), *(pair.hash for pair in pairs))
        known = self.known[1] if self.known and self.known[0] == key else None
        count = count_runs(level, len(pairs), context_known=known is not None)
        before = counting("trust score", count, on_progress, cancel)
        ask = Asker(network, wanted, question.align, settings, before)
        answers = [step.predictions for step in steps]
        measured = measure(ask, question.scaled, answers, pairs, level, known)
        self.known = key, measured.context
        uncertainty = None
        if measured.uncertainty is not None:
            views = [resized(one, question.canonical.grid.shape) for one in measured.uncertainty]
            turn = question.canonical.reorientation
            uncertainty = make_probability(views, question.names, question.target, turn)
            uncertainty.name = "uncertainty"
        seconds = time.perf_counter() - started
        names = question.names
        return make_trust(measured, level, names, self.calibration, uncertainty, seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is known of a context, and with it a network."""
        return {"calibration": self.calibration, "known": None}
