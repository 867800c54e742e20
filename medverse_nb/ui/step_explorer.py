"""Step explorer, the widget and its still picture: scrub through the scales, look into windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .static import DPI, WIDTH_INCHES, draw_plane, to_png
from .steps import StepsState
from .view import open_explorer
from .viewer import Explorer

if TYPE_CHECKING:
    from ..prediction import Prediction

AXIAL = 2
SECOND_MS = 1000  # a scale, while it plays


def explore_steps(prediction: Prediction, backend: str = "auto") -> StepExplorer:
    """Open the step explorer; one that the same cell opened before closes.

    Raises
    ------
    InputError : the run was not recorded, or another backend.
    """
    return open_explorer(StepExplorer, lambda: StepsState(prediction), make_widget, backend)


class StepExplorer(Explorer):
    """Looks into the scales of a recorded run; `state` is what it shows."""

    state: StepsState

    def picture(self) -> bytes:
        """Return a PNG: a row for each scale, the plane through the cursor."""
        return to_png(draw_steps(self.state))

    def __repr__(self) -> str:
        return f"<StepExplorer of {self.state.prediction.target.name}: {self.state.caption}>"


def draw_steps(state: StepsState, axis: int = AXIAL) -> Figure:
    """Draw one plane of every scale: what came in, the answer, its change, its error."""
    scenes = {
        scale: state.scene_of(state.class_name, scale) for scale in range(1, state.scales + 1)
    }
    titles = [panel.title for panel in scenes[state.scales].panels]
    cell = WIDTH_INCHES / max(len(titles), 3)
    height = len(scenes) * (cell + 0.2)
    figure = Figure(figsize=(cell * len(titles), height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(scenes), len(titles), squeeze=False)
    for (scale, scene), row in zip(scenes.items(), grid, strict=True):
        cursor, panels = state.cursor_at(scale), {panel.title: panel for panel in scene.panels}
        for title, axes in zip(titles, row, strict=True):
            axes.set_axis_off()
            if (panel := panels.get(title)) is None:
                continue  # the first scale changes nothing
            draw_plane(axes, scene, panel, axis, cursor, state.slices.opacity)
            sides = "×".join(map(str, scene.display.shape))
            axes.set_title(f"scale {scale}, {sides}" if title == titles[0] else title, fontsize=8)
    return figure


def make_widget(state: StepsState) -> Any:
    """Return the controls and the planes; the window's planes appear once one is selected."""
    import ipywidgets as w
    import traitlets

    from .canvas import SliceCanvas

    scale = w.IntSlider(state.scale, 1, state.scales, description="scale", continuous_update=True)
    play = w.Play(value=1, min=1, max=state.scales, interval=SECOND_MS, description="play")
    chosen = w.Dropdown(options=state.class_names, value=state.class_name, description="class")
    windows = w.ToggleButton(value=state.show_windows, description="windows", icon="th")
    caption = w.HTML(state.caption)
    planes, below = SliceCanvas(state.slices), w.VBox()
    traitlets.link((state, "scale"), (scale, "value"))
    traitlets.link((state, "show_windows"), (windows, "value"))
    traitlets.link((state, "class_name"), (chosen, "value"))
    play.observe(lambda change: setattr(state, "scale", change["new"]), "value")

    def tell(_change: Any) -> None:
        caption.value = state.caption

    def open_window(_change: Any) -> None:
        for child in below.children:
            child.close()
        shown = [] if state.window is None else [w.HTML(state.window_caption)]
        below.children = shown + ([SliceCanvas(state.window)] if state.window else [])

    state.observe(tell, ["scale", "class_name"])
    state.observe(open_window, "window")
    controls = [play, scale] + ([chosen] if len(state.class_names) > 1 else [])
    return w.VBox([w.HBox([*controls, windows]), caption, planes, below])
