"""One prediction against its truth, with the mean label beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..classes import ClassSpec
from ..context import ContextSet
from ..geometry import Align
from ..placement import CanonicalVolume
from .baselines import mean_label
from .metrics import dice, psnr


def score_mask(
    mask: NDArray[Any],
    truth: NDArray[Any],
    specs: tuple[ClassSpec, ...],
    context: ContextSet,
    target: CanonicalVolume,
    align: Align,
) -> pd.DataFrame:
    """Return `dice` and `mean_label_dice`, one row a class.

    Parameters
    ----------
    mask : (X, Y, Z) class numbers, in the target file's axis order.
    truth : (X, Y, Z) label values, likewise.
    """
    rows = []
    for spec in specs:
        inside = np.isin(truth, spec.values)
        baseline = mean_label(context.pairs, target.grid, align, spec.values) > 0.5
        rows.append(
            {
                "class": spec.name,
                "dice": dice(mask == spec.number, inside),
                "mean_label_dice": dice(target.reorientation.undo(baseline), inside),
            }
        )
    return pd.DataFrame(rows).set_index("class")


def score_image(image: NDArray[Any], truth: NDArray[Any], target: NDArray[Any]) -> pd.DataFrame:
    """Return `psnr` in dB of the answer, and of the target as it came in."""
    row = {"class": "image", "psnr": psnr(image, truth), "target_psnr": psnr(target, truth)}
    return pd.DataFrame([row]).set_index("class")
