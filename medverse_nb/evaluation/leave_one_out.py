"""How well labelled pairs are predicted from other labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..context import ContextPair
from ..geometry import Align
from ..inference.autoregressive import Settings, run
from ..model.network import ICLNetwork
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
        image = target.canonical_image
        images = np.stack([pair.place_image(image.grid, align) for pair in others])
        for values in wanted:
            truth = target.place_label(image.grid, align, values)
            if values is not None and not truth.any():
                continue
            labels = np.stack([pair.place_label(image.grid, align, values) for pair in others])
            answer = run(network, image.array, images, labels, settings)[-1].prediction
            scores.append(
                psnr(np.clip(answer, 0, 1), truth, 1.0)
                if values is None
                else dice(answer > 0.5, truth > 0.5)
            )
    return scores
