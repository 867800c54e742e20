"""Still pictures: three planes with an overlay, for notebooks, code hosts and reports."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..classes import ClassSpec
from ..intensity import quantile_scale
from ..placement import CanonicalVolume

PLANES = (("sagittal", 0, "P", "A"), ("coronal", 1, "L", "R"), ("axial", 2, "L", "R"))
OPACITY = 0.45
DPI = 80


def three_planes(
    image: xr.DataArray,
    mask: xr.DataArray | None = None,
    classes: Sequence[ClassSpec] = (),
    *,
    title: str = "",
) -> Figure:
    """Draw sagittal, coronal and axial planes in RAS order through the overlay's centre.

    Parameters
    ----------
    image : (x, y, z), any orientation; spacing sets the aspect.
    mask : integers on the same grid, coloured as `classes` say.
    """
    volume = CanonicalVolume.of(image)
    grey = quantile_scale(volume.array, 0.005, 0.995).apply(volume.array)
    labels = None if mask is None else CanonicalVolume.of(mask).array
    centre = _centre(labels, volume.grid.shape)
    figure = Figure(figsize=(9, 3.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, axis, left, right) in zip(figure.subplots(1, 3), PLANES, strict=True):
        colours = _blend(
            np.take(grey, centre[axis], axis),
            None if labels is None else np.take(labels, centre[axis], axis),
            classes,
        )
        across, up = (volume.grid.spacing_mm[a] for a in range(3) if a != axis)
        axes.imshow(np.swapaxes(colours, 0, 1), origin="lower", aspect=up / across)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([0, colours.shape[0] - 1], [left, right], fontsize=8)
        axes.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=10)
    _legend(figure, classes, labels)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's bytes."""
    buffer = bytes_io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _centre(labels: NDArray[Any] | None, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if labels is None or not labels.any():
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    places = []
    for axis in range(3):  # the plane with most foreground
        others = tuple(a for a in range(3) if a != axis)
        places.append(int(np.argmax((labels > 0).sum(axis=others))))
    return places[0], places[1], places[2]


def _blend(
    grey: NDArray[Any], labels: NDArray[Any] | None, classes: Sequence[ClassSpec]
) -> NDArray[np.float64]:
    colours = np.repeat(grey[..., None], 3, axis=-1).astype(np.float64)
    if labels is not None:
        for spec in classes:
            inside = labels == spec.number
            tint = np.array(_unit_colour(spec))
            colours[inside] = (1 - OPACITY) * colours[inside] + OPACITY * tint
    return colours


def _unit_colour(spec: ClassSpec) -> tuple[float, float, float]:
    red, green, blue = spec.colour
    return red / 255, green / 255, blue / 255


def _legend(figure: Figure, classes: Sequence[ClassSpec], labels: NDArray[Any] | None) -> None:
    if labels is None or not classes:
        return
    from matplotlib.patches import Patch

    handles = [Patch(color=_unit_colour(c), label=c.name) for c in classes[:8]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
