"""Attention explorer, the widget and its still picture: click a place, see where it looked."""

from __future__ import annotations

import textwrap
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .attention import DIRECTIONS, NOTE, AttentionState
from .scene import AXES, PLANES, in_plane
from .static import DPI, WIDTH_INCHES, draw_box, draw_legend, draw_plane, to_png
from .view import open_explorer
from .viewer import Explorer

if TYPE_CHECKING:
    from ..prediction import Prediction

LINE = 130  # characters under the picture


def explore_attention(prediction: Prediction, backend: str = "auto") -> AttentionExplorer:
    """Open the attention explorer; one that the same cell opened before closes.

    Raises
    ------
    InputError : the run recorded no attention, or another backend.
    """
    return open_explorer(
        AttentionExplorer, lambda: AttentionState(prediction), make_widget, backend
    )


class AttentionExplorer(Explorer):
    """Shows where blocks of a recorded run looked; `state` is what it shows."""

    state: AttentionState

    def picture(self) -> bytes:
        """Return a PNG: the target, the block that asks and where it looks, a row a plane."""
        return to_png(draw_attention(self.state))

    def __repr__(self) -> str:
        return f"<AttentionExplorer of {self.state.prediction.target.name}: {self.state.caption}>"


def draw_attention(state: AttentionState) -> Figure:
    """Draw three planes of the target with the window, the block that asks and where it looks."""
    states = [state.slices] if state.maps is None else [state.slices, state.maps]
    columns = [(shown, panel) for shown in states for panel in shown.scene.panels]
    text = "\n".join(
        textwrap.fill(part, LINE) for part in (state.problem, state.caption, NOTE) if part
    )
    cell = WIDTH_INCHES / max(len(columns), 3)
    height = len(AXES) * (cell + 0.1) + 0.17 * text.count("\n") + 1.0
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(AXES), len(columns), squeeze=False)
    for (_, panel), axes in zip(columns, grid[0], strict=True):
        axes.set_title(textwrap.fill(panel.title, 28), fontsize=9)
    for axis, row in zip(reversed(AXES), grid, strict=True):
        row[0].set_ylabel(PLANES[axis], fontsize=9)
        for (shown, panel), axes in zip(columns, row, strict=True):
            draw_plane(axes, shown.scene, panel, axis, shown.cursor, shown.opacity)
            across, up = in_plane(axis)
            axes.axvline(shown.cursor[across], color="white", linewidth=0.5, alpha=0.7)
            axes.axhline(shown.cursor[up], color="white", linewidth=0.5, alpha=0.7)
            for box in shown.boxes:
                draw_box(axes, box, axis, shown.cursor[axis])
            axes.set_xticks([])
            axes.set_yticks([])
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8)
    draw_legend(figure, states[-1].scene.legend, above=True)
    return figure


def make_widget(state: AttentionState) -> Any:
    """Return the controls, the target to click in, and the maps of the window."""
    import ipywidgets as w
    import traitlets

    from .canvas import SliceCanvas

    scale = w.IntSlider(state.scale, 1, state.scales, description="scale")
    stage = w.IntSlider(state.stage, 0, state.stages - 1, description="stage")
    named = w.Dropdown(options=state.class_names, value=state.class_name, description="class")
    direction = w.Dropdown(options=DIRECTIONS, value=state.direction, description="direction")
    pair = w.Dropdown(options=state.pairs, value=state.pair, description="pair")
    strongest = w.Button(description="go where it looks most", layout=w.Layout(width="auto"))
    table = w.ToggleButton(False, description="table", icon="table")
    caption, below, numbers = w.HTML(), w.VBox(), w.HTML()
    for name, control in {
        "scale": scale,
        "stage": stage,
        "class_name": named,
        "direction": direction,
        "pair": pair,
    }.items():
        traitlets.link((state, name), (control, "value"))
    strongest.on_click(lambda _: state.look_at_strongest())

    def tell(_change: Any = None) -> None:
        problem = f"<b>{escape(state.problem)}</b><br>" if state.problem else ""
        caption.value = problem + escape(state.caption)

    def offer(_change: Any) -> None:
        kept = state.pair
        pair.options = state.pairs  # brings the first one up
        pair.value = kept

    def count(_change: Any) -> None:
        numbers.value = state.summary().to_html(float_format="{:.3f}".format) if table.value else ""

    def open_maps(_change: Any = None) -> None:
        for child in below.children:
            child.close()
        below.children = [] if state.maps is None else [SliceCanvas(state.maps)]

    state.observe(tell, ["caption", "problem"])
    state.observe(offer, "pairs")
    state.observe(count, ["scale", "class_name"])
    state.observe(open_maps, "maps")
    table.observe(count, "value")
    tell()
    open_maps()
    controls = [scale, stage] + ([named] if len(state.class_names) > 1 else [])
    return w.VBox(
        [
            w.HBox(controls),
            w.HBox([direction, pair, strongest, table]),
            SliceCanvas(state.slices),
            caption,
            below,
            w.HTML(f"<p>{escape(NOTE)}</p>"),
            numbers,
        ]
    )
