"""Scores against a known truth, by MONAI. Public as `mv.metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


def dice(prediction: Any, truth: Any) -> float:
    """Return the Dice coefficient of two masks of one shape.

    Both empty gives 1, one of them empty gives 0.

    Raises
    ------
    InputError : different shapes.
    """
    from monai.metrics.meandice import compute_dice

    a, b = _pair(prediction, truth)
    score = compute_dice(_batch(a > 0), _batch(b > 0), include_background=True, ignore_empty=False)
    return float(score.item())


def psnr(prediction: Any, truth: Any, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB.

    Parameters
    ----------
    data_range : of the truth; its maximum minus its minimum by default.

    Raises
    ------
    InputError : different shapes, or a constant truth without `data_range`.
    """
    from monai.metrics.regression import PSNRMetric

    a, b = _pair(prediction, truth)
    peak = float(b.max() - b.min()) if data_range is None else data_range
    if peak <= 0:
        raise InputError("psnr needs data_range: the truth is constant")
    noise: Any = PSNRMetric(max_val=peak)(_batch(a), _batch(b))
    return float(noise.item())


def _pair(prediction: Any, truth: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = np.asarray(prediction, np.float32), np.asarray(truth, np.float32)
    if a.shape != b.shape:
        raise InputError(f"prediction has shape {a.shape}, truth {b.shape}; they must agree")
    return a, b


def _batch(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
