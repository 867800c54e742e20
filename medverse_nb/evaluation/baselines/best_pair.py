"""Copying: the label of the pair whose image is most alike to the target."""

from __future__ import annotations

from ...regions import read
from ..similarity import choose
from .protocol import Outcome, Trial


class BestPair:
    """The label of the single most similar pair, placed on the target.

    Similar by correlation of the images as they are placed; see `similarity`. Where it wins
    over a model, the model adds nothing to retrieval.
    """

    name = "best pair"

    def predict(self, trial: Trial) -> Outcome:
        (best,) = choose(trial.target, trial.pairs, 1, align=trial.align)
        grid = trial.canonical.grid
        labels = [read(best.label_on(grid, trial.align, spec.values)) for spec in trial.classes]
        return Outcome(trial.mask(labels), f"copied from {best.name}")
