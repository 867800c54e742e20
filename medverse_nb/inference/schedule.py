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


def scale_shape(shape: Shape, scale: int, scales: int) -> Shape:
    """Return the volume's shape at `scale` of 1..`scales`. Source: Medverse Eq. 4."""
    if not 1 <= scale <= scales:
        raise InputError(f"scale must be in 1..{scales}, got {scale}")
    divisor = 2 ** (scales - scale)
    x, y, z = (math.ceil(side / divisor) for side in shape)
    return x, y, z
