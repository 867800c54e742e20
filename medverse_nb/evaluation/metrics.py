"""Scores against a known truth, by MONAI. Public as `mv.metrics`.

All take two arrays of one shape and refuse NaN and infinity. A mask is what exceeds 0. What a
score is where a mask is empty is stated with it; MONAI's own NaN never comes out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

NO_SPACING = (1.0, 1.0, 1.0)
SSIM_WINDOW = 11  # voxels


def dice(prediction: Any, truth: Any) -> float:
    """Return the Dice coefficient of two masks of one shape.

    Both empty gives 1, one of them empty gives 0.

    Raises
    ------
    InputError : different shapes, or values that are not finite.
    """
    from monai.metrics.meandice import compute_dice

    a, b = _pair(prediction, truth)
    score = compute_dice(_batch(a > 0), _batch(b > 0), include_background=True, ignore_empty=False)
    return float(score.item())


def surface_dice(
    prediction: Any,
    truth: Any,
    *,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = NO_SPACING,
) -> float:
    """Return the normalised surface Dice: the share of both surfaces that lies within a tolerance.

    A mask's surface are its voxels with a face neighbour outside; each counts once, whatever
    its area. Both empty gives 1, one of them empty gives 0.

    Parameters
    ----------
    prediction, truth : (X, Y, Z).
    tolerance_mm : largest distance, itself included, from a surface voxel to the other surface.
    spacing_mm : of the voxels along x, y, z.

    Raises
    ------
    InputError : different shapes, not 3D, values that are not finite, a negative tolerance, or a
        spacing that is not three positive numbers.

    Source: Seidlitz et al. 2022, robust deep learning-based semantic organ segmentation.
    """
    from monai.metrics.surface_dice import compute_surface_dice

    a, b, spacing = _masks(prediction, truth, spacing_mm)
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
    if not (a.any() and b.any()):
        return float(a.any() == b.any())
    with _without_monais_own_news():
        score = compute_surface_dice(
            _batch(a), _batch(b), [float(tolerance_mm)], include_background=True, spacing=spacing
        )
    return float(score.item())


def hd95(prediction: Any, truth: Any, *, spacing_mm: Sequence[float] = NO_SPACING) -> float:
    """Return the 95th percentile Hausdorff distance in mm: the worse of both directions.

    Distances go from the surface voxels of one mask to the nearest of the other. Both empty
    gives 0, one of them empty gives infinity.

    Parameters
    ----------
    prediction, truth, spacing_mm : as in `surface_dice`.

    Raises
    ------
    InputError : different shapes, not 3D, values that are not finite, or a spacing that is not
        three positive numbers.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    a, b, spacing = _masks(prediction, truth, spacing_mm)
    if not (a.any() and b.any()):
        return 0.0 if a.any() == b.any() else math.inf
    with _without_monais_own_news():
        distance = compute_hausdorff_distance(
            _batch(a), _batch(b), include_background=True, percentile=95, spacing=spacing
        )
    return float(distance.item())


def psnr(prediction: Any, truth: Any, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB; infinity for a perfect answer.

    Parameters
    ----------
    data_range : of the truth; its maximum minus its minimum by default.

    Raises
    ------
    InputError : different shapes, values that are not finite, or a constant truth without
        `data_range`.
    """
    from monai.metrics.regression import PSNRMetric

    a, b = _pair(prediction, truth)
    noise: Any = PSNRMetric(max_val=_peak(b, data_range, "psnr"))(_batch(a), _batch(b))
    return float(noise.item())


def ssim(
    prediction: Any, truth: Any, data_range: float | None = None, *, window: int = SSIM_WINDOW
) -> float:
    """Return the structural similarity of two images, in [-1, 1]; 1 for a perfect answer.

    The mean over the places where the whole Gaussian window (sigma 1.5 voxels) lies inside.

    Parameters
    ----------
    prediction, truth : (X, Y, Z).
    data_range : of the truth; its maximum minus its minimum by default.
    window : odd number of voxels, no more than the shortest side.

    Raises
    ------
    InputError : different shapes, not 3D, values that are not finite, a constant truth without
        `data_range`, or a window that is even or too large.

    Source: Wang et al. 2004, image quality assessment; its constants.
    """
    from monai.metrics.regression import SSIMMetric

    a, b = _pair(prediction, truth)
    _check_volume(a)
    peak = _peak(b, data_range, "ssim")
    if window < 1 or window % 2 == 0 or window > min(a.shape):
        raise InputError(
            f"ssim: window={window} must be odd and no more than the shortest side of {a.shape}"
        )
    # Scaling both by the range changes nothing in exact numbers and keeps float32 precise.
    likeness: Any = SSIMMetric(spatial_dims=3, win_size=window)(_batch(a / peak), _batch(b / peak))
    return float(likeness.item())


@contextmanager
def _without_monais_own_news() -> Iterator[None]:
    """Keep from the user that MONAI 1.5 passes itself an argument that it has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        yield


def _pair(prediction: Any, truth: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = np.asarray(prediction, np.float32), np.asarray(truth, np.float32)
    if a.shape != b.shape:
        raise InputError(f"prediction has shape {a.shape}, truth {b.shape}; they must agree")
    for name, array in (("prediction", a), ("truth", b)):
        if bad := array.size - int(np.count_nonzero(np.isfinite(array))):
            raise InputError(f"{name} has {bad} values that are not finite; fill them first")
    return a, b


def _masks(
    prediction: Any, truth: Any, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[float]]:
    a, b = _pair(prediction, truth)
    _check_volume(a)
    spacing = [float(side) for side in spacing_mm]
    if len(spacing) != 3 or not all(math.isfinite(side) and side > 0 for side in spacing):
        raise InputError(f"spacing_mm must be three positive numbers, got {tuple(spacing)}")
    return a > 0, b > 0, spacing


def _check_volume(array: NDArray[Any]) -> None:
    if array.ndim != 3:
        raise InputError(f"a volume (X, Y, Z) is needed, got shape {array.shape}")


def _peak(truth: NDArray[np.float32], data_range: float | None, name: str) -> float:
    peak = float(truth.max() - truth.min()) if data_range is None else data_range
    if not (math.isfinite(peak) and peak > 0):
        told = "the truth is constant" if data_range is None else f"{data_range} is not positive"
        raise InputError(f"{name} needs data_range: {told}")
    return peak


def _batch(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
