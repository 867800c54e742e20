"""The scales of next-scale autoregressive inference.

Source: Medverse Eqs. 3-4.
"""

from __future__ import annotations

import math

from ..errors import InputError
from ..geometry import Shape


def scale_count(shape: Shape, window: int) -> int:
    """Return T: doublings from a volume that fits one window up to `shape`; at least 1.

    Source: Medverse Eq. 3.
    """
    return max(1, math.ceil(math.log2(max(shape) / window)) + 1)


def scale_shape(shape: Shape, scale: int, scales: int, window: int | None = None) -> Shape:
    """Return the volume's shape at `scale` of 1..`scales`.

    Each scale halves the next finer one, as in the paper, unless `window` is given: then the
    coarsest fills one window with its longest axis, and equal ratios, at most 2, lead up to
    full resolution. Halving alone could leave most of the first window empty: 50 voxels
    become 25 in a window of 32.

    Source: Medverse Eq. 4, without `window`.
    """
    if not 1 <= scale <= scales:
        raise InputError(f"scale must be in 1..{scales}, got {scale}")
    longest = max(shape)
    shrink = 2.0 ** (scales - 1)
    if window is not None and longest > window:
        shrink = min(shrink, longest / window)
    ratio = shrink ** -((scales - scale) / (scales - 1)) if scales > 1 else 1.0
    x, y, z = (max(1, math.ceil(side * ratio - 1e-9)) for side in shape)
    return x, y, z
