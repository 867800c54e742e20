"""From the network's answers on the canonical grid to volumes on the target's own.

A large answer stays where the run left it: its `DataArray` holds a dask array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from .geometry import Reorientation
from .intensity import IntensityScale
from .regions import View, read
from .stored import LAZY_CHUNK, is_large
from .views import Mapped, Turned, as_dask, clipped
from .volume import with_data


def make_probability(
    answers: Sequence[View], names: Sequence[str], target: xr.DataArray, turn: Reorientation
) -> xr.DataArray:
    """Return one probability a class (class, x, y, z), in [0, 1].

    Parameters
    ----------
    answers : one volume a class, in canonical axis order.
    turn : from the target's axis order to the canonical one.
    """
    views = [Turned(clipped(view), turn.inverse) for view in answers]
    if is_large((len(views), *target.shape)):
        data: Any = da.stack([as_dask(view, LAZY_CHUNK) for view in views])
    else:
        data = np.stack([read(view) for view in views])
    return with_data(target, data, "probability", {"class": list(names)})


def make_image(
    answer: View, scale: IntensityScale, target: xr.DataArray, turn: Reorientation
) -> xr.DataArray:
    """Return the answer of an image task (x, y, z), in the units of the context's labels.

    Parameters
    ----------
    scale : of the labels; it turns [0, 1] into units.
    """
    view = Mapped(Turned(clipped(answer), turn.inverse), scale.invert)
    data = as_dask(view, LAZY_CHUNK) if is_large(target.shape) else read(view)
    return with_data(target, data, "image")
