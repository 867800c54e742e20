"""Training: a MONAI network fitted to the pairs, one network a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...classes import ClassSpec
from ...errors import InputError
from ...model.device import choose_precision
from ...pair import ContextPair
from ...placement import CanonicalVolume
from ...regions import read
from ..few_shot import FewShotNetwork, Kind, train_few_shot
from .protocol import Outcome, Trial


@dataclass(frozen=True, eq=False)
class Fitted:
    """Networks that were trained once, one a class; a trial's pairs change nothing."""

    name: str
    classes: tuple[ClassSpec, ...]
    networks: tuple[FewShotNetwork, ...]

    def predict(self, trial: Trial) -> Outcome:
        """Segment the target.

        Raises
        ------
        InputError : other classes than it was trained for.
        """
        if trial.classes != self.classes:
            known, asked = ([spec.name for spec in c] for c in (self.classes, trial.classes))
            raise InputError(f"{self.name} was trained for {known}, asked for {asked}; fit it anew")
        canonical = trial.canonical
        target = CanonicalVolume(read(canonical.view), canonical.grid, canonical.reorientation)
        answers = [network.predict(target) for network in self.networks]
        steps = " + ".join(str(network.steps) for network in self.networks)
        return Outcome(trial.mask(answers), f"{steps} steps of training")


@dataclass(frozen=True)
class Trained:
    """A network of `few_shot`, trained for the seconds, which the classes share.

    Answering comes on top of them, and so does the step that is under way at the end. For many
    targets, `fit` once.
    """

    name: str
    kind: Kind

    def fit(
        self,
        pairs: Sequence[ContextPair],
        classes: tuple[ClassSpec, ...],
        seconds: float,
        *,
        seed: int = 0,
        check: Callable[[], None] | None = None,
    ) -> Fitted:
        """Train a network a class; see `Learner`.

        Raises
        ------
        ContextError : a class that no pair has.
        """
        precision = choose_precision("auto", torch.device("cpu"))
        if self.kind == "swin_unetr":
            # no slower there, and PyTorch 2.13 gave NaN gradients of its 2^3 voxels in bfloat16
            precision = "float32"
        networks = [
            train_few_shot(
                pairs,
                spec.values,
                seconds / len(classes),
                kind=self.kind,
                precision=precision,
                seed=seed,
                on_step=check,
            )
            for spec in classes
        ]
        return Fitted(self.name, classes, tuple(networks))

    def predict(self, trial: Trial) -> Outcome:
        """Train on the trial's pairs and answer its target."""
        fitted = self.fit(
            trial.pairs, trial.classes, trial.seconds, seed=trial.seed, check=trial.check
        )
        return fitted.predict(trial)
