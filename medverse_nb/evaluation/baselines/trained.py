"""Training: a MONAI network fitted to the pairs, one network a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...model.device import choose_precision
from ...placement import CanonicalVolume
from ...regions import read
from ..few_shot import Kind, train_few_shot
from .protocol import Outcome, Trial


@dataclass(frozen=True)
class Trained:
    """A network of `few_shot`, trained for the seconds, which the classes share.

    Answering comes on top of them, and so does the step that is under way at the end.
    """

    name: str
    kind: Kind

    def predict(self, trial: Trial) -> Outcome:
        canonical = trial.canonical
        target = CanonicalVolume(read(canonical.view), canonical.grid, canonical.reorientation)
        precision = choose_precision("auto", torch.device("cpu"))
        answers, steps = [], []
        for spec in trial.classes:
            trained = train_few_shot(
                trial.pairs,
                spec.values,
                trial.seconds / len(trial.classes),
                kind=self.kind,
                precision=precision,
                seed=trial.seed,
                on_step=trial.check,
            )
            answers.append(trained.predict(target))
            steps.append(trained.steps)
        return Outcome(trial.mask(answers), f"{' + '.join(map(str, steps))} steps of training")
