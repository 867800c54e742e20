"""What any model has to beat: the mean of the context labels, placed the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...geometry import Align, Grid
from ...pair import ContextPair
from ...regions import read
from ...resampling import FloatArray
from .protocol import Outcome, Trial


def mean_label(
    pairs: Sequence[ContextPair], target: Grid, align: Align, values: Sequence[int] | None
) -> FloatArray:
    """Return the mean of the placed labels on the target's canonical grid.

    For a class: the share of pairs that have it at each voxel, a mask above 0.5. For an
    image task (`values` None): the mean scaled label.
    """
    total = np.zeros(target.shape, np.float32)
    for pair in pairs:
        total += read(pair.label_on(target, align, values))
    mean: FloatArray = total / np.float32(len(pairs))
    return mean


class MeanLabel:
    """The mean label, as a baseline: it looks at no image."""

    name = "mean label"

    def predict(self, trial: Trial) -> Outcome:
        grid = trial.canonical.grid
        means = [mean_label(trial.pairs, grid, trial.align, s.values) for s in trial.classes]
        return Outcome(trial.mask(means))
