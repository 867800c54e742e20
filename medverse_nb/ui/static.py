"""Still pictures of a scene, for notebooks, code hosts and reports: PNG, no widget needed."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Mapping, Sequence

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..classes import ClassSpec, Colour
from ..volume import grid_of
from .display import Display, Voxel
from .layers import grey_layer, label_layer
from .scene import AXES, ENDS, OPACITY, PLANES, Box, Key, Panel, Scene, blend, in_plane, plane_of

DPI = 80
WIDTH_INCHES = 9.0
ROW_INCHES = (1.6, 5.0)  # at least and at most
MOST_KEYS = 8


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
    display = Display.of(grid_of(image))
    layers = [grey_layer(display, image)]
    if mask is not None:
        layers.append(label_layer(display, mask, classes))
    return draw_scene(Scene(display, (Panel(title, tuple(layers)),)))


def side_by_side(
    image: xr.DataArray, masks: Mapping[str, xr.DataArray], classes: Sequence[ClassSpec]
) -> Figure:
    """Draw three planes of a scan under each mask, a row a mask, through the first one's centre.

    Parameters
    ----------
    image : (x, y, z), any orientation.
    masks : class numbers on the same grid, by title.
    """
    display = Display.of(grid_of(image))
    grey = grey_layer(display, image)
    panels = [
        Panel(title, (grey, label_layer(display, mask, classes))) for title, mask in masks.items()
    ]
    return draw_scene(Scene(display, tuple(panels)))


def draw_scene(
    scene: Scene,
    cursor: Voxel | None = None,
    *,
    opacity: float = OPACITY,
    boxes: Sequence[Box] = (),
    selected: int | None = None,
    crosshair: bool = False,
) -> Figure:
    """Draw three planes of each panel, a row a panel.

    Parameters
    ----------
    cursor : shown voxel that the planes go through; None for where the scene is busiest.
    selected : the place of the box that is drawn thicker.
    """
    cursor = scene.focus if cursor is None else cursor
    extent = scene.display.grid.extent_mm
    widths = [extent[in_plane(axis)[0]] for axis in AXES]
    tallest = max(extent[in_plane(axis)[1]] for axis in AXES)
    row = min(max(0.9 * WIDTH_INCHES * tallest / sum(widths), ROW_INCHES[0]), ROW_INCHES[1])
    height = len(scene.panels) * (row + 0.55) + 0.3 * bool(scene.legend)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    # Planes as wide as what they show: one millimetre is the same in all three, unless a
    # plane would be too thin to see.
    ratios = [max(width, 0.15 * max(widths)) for width in widths]
    grid = figure.subplots(len(scene.panels), 3, squeeze=False, width_ratios=ratios)
    for panel, row_of_axes in zip(scene.panels, grid, strict=True):
        for axis, axes in zip(AXES, row_of_axes, strict=True):
            draw_plane(axes, scene, panel, axis, cursor, opacity)
            across, up = in_plane(axis)
            axes.set_title(PLANES[axis], fontsize=9)
            _letter(axes, axis, scene.display.shape[across], scene.display.shape[up])
            if crosshair:
                axes.axvline(cursor[across], color="white", linewidth=0.5, alpha=0.7)
                axes.axhline(cursor[up], color="white", linewidth=0.5, alpha=0.7)
            for number, box in enumerate(boxes):
                draw_box(axes, box, axis, cursor[axis], thick=number == selected)
        if len(scene.panels) > 1:
            row_of_axes[0].set_ylabel(panel.title, fontsize=9)
    if len(scene.panels) == 1 and scene.panels[0].title:
        figure.suptitle(scene.panels[0].title, fontsize=10)
    draw_legend(figure, scene.legend)
    return figure


def draw_plane(
    axes: Axes, scene: Scene, panel: Panel, axis: int, cursor: Voxel, opacity: float = OPACITY
) -> None:
    """Draw one plane of one panel in millimetres' proportions."""
    planes = [plane_of(layer.codes, axis, cursor[axis]) for layer in panel.layers]
    colours = blend(planes, [layer.table for layer in panel.layers], opacity)
    across, up = (scene.display.grid.spacing_mm[a] for a in in_plane(axis))
    axes.imshow(colours.swapaxes(0, 1), origin="lower", aspect=up / across)


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's bytes."""
    buffer = bytes_io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _letter(axes: Axes, axis: int, across_size: int, up_size: int) -> None:
    """Put the letters of the patient's sides where the picture ends."""
    across, up = in_plane(axis)
    axes.set_xticks([0, across_size - 1], ENDS[across], fontsize=8)
    axes.set_yticks([0, up_size - 1], ENDS[up], fontsize=8)
    axes.tick_params(length=0)


def draw_box(axes: Axes, box: Box, axis: int, index: int, *, thick: bool = False) -> None:
    """Draw a box over a plane, if the plane cuts it."""
    if not (box.low[axis] < index + 1 and box.high[axis] > index):
        return  # the plane passes it by
    from matplotlib.patches import Rectangle

    across, up = in_plane(axis)
    corner = box.low[across] - 0.5, box.low[up] - 0.5  # pixel centres are whole numbers here
    size = box.high[across] - box.low[across], box.high[up] - box.low[up]
    axes.add_patch(
        Rectangle(
            corner, *size, fill=False, edgecolor=_unit(box.colour), linewidth=2.5 if thick else 1
        )
    )


def draw_legend(figure: Figure, keys: Sequence[Key], *, above: bool = False) -> None:
    """Put what the colours mean below a figure, or above it."""
    if not keys:
        return
    from matplotlib.patches import Patch

    handles = []
    for key in keys[:MOST_KEYS]:
        names = [f"{key.name} {key.ends[0]}", key.ends[-1]] if key.ends else [key.name]
        ends = (key.colours[0], key.colours[-1])[: len(names)]
        handles += [Patch(color=_unit(c), label=name) for c, name in zip(ends, names, strict=True)]
    if len(keys) > MOST_KEYS:
        handles.append(Patch(alpha=0, label=f"and {len(keys) - MOST_KEYS} more"))
    figure.legend(
        handles=handles,
        loc="outside upper center" if above else "outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
