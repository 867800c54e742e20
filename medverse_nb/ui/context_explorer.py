"""Context workbench, the widget and its still picture: pairs, what each does, two choices."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Callable
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import image as pictures
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from ..classes import Classes
from ..errors import MedverseError
from ..evaluation.answers import MEANING
from ..io import Source
from .gallery import Card
from .job_bar import make_job_bar
from .static import DPI, WIDTH_INCHES, to_png
from .view import open_explorer
from .viewer import Explorer
from .workbench import Measured, WorkbenchState

if TYPE_CHECKING:
    from ..session import ICLSession

COLUMNS = 6  # of the gallery
CURVE_INCHES = 2.4
MEASURES = ("influence", "curve", "wrong", "a", "b")


def explore_context(
    session: ICLSession,
    target: Source | None,
    truth: Source | None,
    backend: str = "auto",
    classes: Classes = None,
) -> ContextExplorer:
    """Open the context workbench; one that the same cell opened before closes.

    Raises
    ------
    ContextError, InputError : as `WorkbenchState`; another backend.
    """
    return open_explorer(
        ContextExplorer,
        lambda: WorkbenchState(session, target, truth, classes),
        make_widget,
        backend,
    )


class ContextExplorer(Explorer):
    """Looks into a session's context; `state` is what it shows and what it can do."""

    state: WorkbenchState

    def close(self) -> None:
        """End the widget and the work that is under way; may be called twice."""
        self.state.job.cancel()
        super().close()

    def picture(self) -> bytes:
        """Return a PNG: the pairs with their numbers, and the how-many curve once measured."""
        return to_png(draw_workbench(self.state))

    def __repr__(self) -> str:
        return f"<ContextExplorer: {self.state.caption}>"


# --- the still picture ---------------------------------------------------------------------------


def draw_workbench(state: WorkbenchState) -> Figure:
    """Draw the gallery, and below it the how-many curve where it was measured."""
    rows = -(-len(state.gallery) // COLUMNS)
    cell = WIDTH_INCHES / COLUMNS
    heights = [rows * (cell + 0.55)] + [CURVE_INCHES] * (state.curve is not None)
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(state.caption, fontsize=10)
    parts: Any = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    _draw_gallery(parts[0, 0], state, rows)
    if state.curve is not None:
        draw_curve(parts[1, 0].subplots(), state.curve)
    return figure


def _draw_gallery(figure: SubFigure, state: WorkbenchState, rows: int) -> None:
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for card, axes in zip(state.gallery, grid, strict=False):
        axes.imshow(card.picture)
        used = card.name in state.used
        lines = [("[x] " if used else "[  ] ") + _short(card.name), *numbers_of(state, card)]
        axes.set_title("\n".join(lines), fontsize=8, color="black" if used else "gray")


def draw_curve(axes: Axes, curve: Measured) -> None:
    """Draw the mean and the range of the draws against the number of pairs, a line a class."""
    for name, rows in curve.table.groupby("class", sort=False):
        axes.plot(rows["size"], rows["mean"], marker="o", markersize=3, label=str(name))
        axes.fill_between(rows["size"], rows["min"], rows["max"], alpha=0.2)
    axes.set_xticks(sorted(curve.table["size"].unique()))
    axes.set_xlabel(f"pairs, of {len(curve.names)} ticked", fontsize=8)
    axes.set_ylabel(curve.table["measure"].iloc[0], fontsize=8)
    axes.set_title(MEANING[curve.table["measure"].iloc[0]], fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def numbers_of(state: WorkbenchState, card: Card) -> list[str]:
    """Say how alike a pair is to the target and what it does to the answer, where known."""
    said = []
    if card.name in state.similarity:
        said.append(f"{state.descriptor} {state.similarity[card.name]:.2f}")
    if card.name in state.influences:
        said.append(f"influence {state.influences[card.name]:.3f}")
    return said


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


# --- the widget ----------------------------------------------------------------------------------


def make_widget(state: WorkbenchState) -> Any:
    """Return the gallery, the actions, and what they found; pairs and answers in canvases."""
    import ipywidgets as w

    problem, caption, found = w.HTML(), w.HTML(), w.HTML()
    gallery, pair_view, compared = w.HBox(layout=w.Layout(flex_flow="row wrap")), w.VBox(), w.VBox()
    curve = w.Image(format="png", layout=w.Layout(display="none"))
    descriptor = w.Dropdown(
        options=state.descriptors, value=state.descriptor, description="similarity"
    )
    class_name = w.Dropdown(
        options=state.class_names, value=state.class_name, description="difference"
    )
    cards: dict[str, tuple[Any, Any]] = {}  # checkbox and numbers by name

    def attempt(action: Callable[[], object]) -> None:
        """Do what was asked; what cannot be done is told, and the controls show what holds."""
        problem.value = ""
        try:
            action()
        except MedverseError as error:
            problem.value = f"<b>Not done:</b> {escape(str(error))}"
        tell()

    def tell(_change: Any = None) -> None:
        caption.value = escape(state.caption)
        descriptor.value, class_name.value = state.descriptor, state.class_name
        for card in state.gallery:
            tick, numbers = cards[card.name]
            tick.value = card.name in state.used
            numbers.value = "<br>".join(map(escape, numbers_of(state, card)))

    def lay_out(_change: Any = None) -> None:
        for child in gallery.children:
            child.close()
        cards.clear()
        boxes = []
        for card in state.gallery:
            box, cards[card.name] = _make_card(w, card, attempt, state)
            boxes.append(box)
        gallery.children = boxes
        tell()

    def tell_found(_change: Any = None) -> None:
        found.value = found_html(state)
        curve.layout.display = "none" if state.curve is None else ""
        if state.curve is not None:
            curve.value = _curve_png(state.curve)
        tell()

    buttons = []
    for label, action in (
        ("run as A", partial(state.run, "A")),
        ("run as B", partial(state.run, "B")),
        ("influence", state.measure_influence),
        ("how many", state.measure_how_many),
        ("wrong context", state.check_wrong_context),
        ("keep ticked", state.keep),
        ("refresh", state.refresh),
    ):
        button = w.Button(description=label, layout=w.Layout(width="auto"))
        button.on_click(partial(_clicked, attempt, action))
        buttons.append(button)
    descriptor.observe(
        lambda change: attempt(partial(setattr, state, "descriptor", change["new"])), "value"
    )
    class_name.observe(
        lambda change: attempt(partial(setattr, state, "class_name", change["new"])), "value"
    )
    state.observe(lay_out, "gallery")
    state.observe(tell, ["used", "descriptor", "class_name"])
    state.observe(tell_found, MEASURES)
    state.observe(lambda _change: _show_planes(pair_view, state.pair), "pair")
    state.observe(lambda _change: _show_planes(compared, state.comparing, "columns"), "comparing")
    lay_out()
    tell_found()
    controls = [descriptor] + ([class_name] if len(state.class_names) > 1 else [])
    return w.VBox(
        [
            caption,
            gallery,
            w.HBox(buttons, layout=w.Layout(flex_flow="row wrap")),
            w.HBox(controls),
            make_job_bar(state.job),
            problem,
            found,
            curve,
            compared,
            pair_view,
        ]
    )


def _make_card(
    w: Any, card: Card, attempt: Callable[[Callable[[], object]], None], state: WorkbenchState
) -> tuple[Any, tuple[Any, Any]]:
    """Return a card's box, and of it what changes: checkbox and numbers."""
    picture = w.Image(value=array_png(card.picture), format="png")
    tick = w.Checkbox(card.name in state.used, description=card.name, indent=False)
    look = w.Button(description="look", icon="search", layout=w.Layout(width="auto"))
    numbers = w.HTML()

    def ticked(change: Any) -> None:
        if change["new"] != (card.name in state.used):
            attempt(partial(state.tick, card.name, change["new"]))

    tick.observe(ticked, "value")
    look.on_click(partial(_clicked, attempt, partial(setattr, state, "shown", card.name)))
    box = w.VBox([picture, tick, numbers, look], layout=w.Layout(width="11em", margin="4px"))
    return box, (tick, numbers)


def _clicked(
    attempt: Callable[[Callable[[], object]], None], action: Callable[[], object], _button: Any
) -> None:
    attempt(action)


def _show_planes(place: Any, planes: Any, panels: str = "rows") -> None:
    """Put a canvas in place of the one before, none for no planes."""
    from .canvas import SliceCanvas

    for child in place.children:
        child.close()
    place.children = [] if planes is None else [SliceCanvas(planes, panels=panels)]


def found_html(state: WorkbenchState) -> str:
    """Return what was measured as tables, each with the pairs it was measured with."""
    parts = []
    for title, measured in (
        ("influence", state.influence),
        ("wrong context", state.wrong),
    ):
        if measured is not None:
            parts.append(_heading(title, measured.names))
            parts.append(measured.table.to_html(index=False, float_format="{:.3f}".format))
    for side, choice in (("A", state.a), ("B", state.b)):
        if choice is not None:
            parts.append(_heading(f"choice {side}", choice.names))
    if len(state.scores.columns):
        parts.append(state.scores.to_html(float_format="{:.3f}".format))
    return "\n".join(parts)


def _heading(title: str, names: tuple[str, ...]) -> str:
    return f"<div><b>{title}</b>, {len(names)} pairs: {escape(', '.join(names))}</div>"


def array_png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (rows, columns, 3) as a PNG file's bytes."""
    buffer = bytes_io.BytesIO()
    pictures.imsave(buffer, picture, format="png")
    return buffer.getvalue()


def _curve_png(curve: Measured) -> bytes:
    figure = Figure(figsize=(WIDTH_INCHES * 0.6, CURVE_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw_curve(figure.subplots(), curve)
    return to_png(figure)
