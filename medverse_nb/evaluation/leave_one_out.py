"""How well labelled pairs are predicted from other labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..geometry import Align
from ..inference.autoregressive import run
from ..inference.inputs import PairInputs
from ..inference.recipe import Settings
from ..model.network import ICLNetwork
from ..pair import ContextPair
from ..regions import read
from .metrics import dice, psnr


def score_pairs(
    network: ICLNetwork,
    targets: Sequence[ContextPair],
    context: Sequence[ContextPair],
    wanted: Sequence[tuple[int, ...] | None],
    align: Align,
    settings: Settings,
) -> list[float]:
    """Predict each target from the context pairs (never from itself) and score the answer.

    Parameters
    ----------
    wanted : label values of each class, or `[None]` for an image task.

    Returns
    -------
    Dice of each target and class, targets first (PSNR in dB of the scaled image for an image
    task); a class that the target does not have is passed over.
    """
    scores = []
    for target in targets:
        others = [pair for pair in context if pair is not target]
        scan = target.canonical_image
        asked = [
            (values, truth)
            for values in wanted
            if (truth := read(target.label_on(scan.grid, align, values))).any() or values is None
        ]
        inputs = PairInputs(scan.view, scan.grid, others, align, [values for values, _ in asked])
        answers = run(network, inputs, settings)[-1].predictions if asked else ()
        for (values, truth), view in zip(asked, answers, strict=True):
            answer = read(view)
            scores.append(
                psnr(np.clip(answer, 0, 1), truth, 1.0)
                if values is None
                else dice(answer > 0.5, truth > 0.5)
            )
    return scores
