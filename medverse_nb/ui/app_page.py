"""The app's page: controls over an `AppState`; it holds no more than they need."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from .app_state import AppState
from .job_bar import make_job_bar

WIDE = "34em"


def open_app(root: str, *, model: str = "medverse-tiny", device: str = "auto") -> Any:
    """Return the app over a folder.

    Raises
    ------
    InputError, WeightsError : as `AppState`.
    """
    return make_page(AppState(root, model=model, device=device))


def make_page(state: AppState) -> Any:
    """Return the page of a state."""
    import ipywidgets as w

    context, scan = _Context(w, state), _Scan(w, state)
    result = _result(w, state)
    refresh = _button(w, "look again for files", state.refresh)
    parts = [
        w.HTML("<h1>medverse_nb</h1><p>Label a handful, get the rest. Research use only.</p>"),
        w.HBox([w.HTML(f"<b>Folder:</b> {escape(str(state.root))}"), refresh]),
        w.HTML("<h2>1. Labelled scans</h2>"),
        context.box,
        w.HTML("<h2>2. A new scan</h2>"),
        scan.box,
        _messages(w, state),
        make_job_bar(state.job),
        _report(w, state),
        _planes(w, state),
        w.HTML("<h2>3. Keep it</h2>"),
        result,
    ]
    return w.VBox(parts, layout=w.Layout(padding="1em", max_width="64em"))


class _Context:
    """Pairs: where they come from, and which there are."""

    def __init__(self, w: Any, state: AppState) -> None:
        images, labels = _choice(w, "images", "imagesTr"), _choice(w, "labels", "labelsTr")
        image, label = _choice(w, "image"), _choice(w, "label")
        bank = _choice(w, "bank")
        names = w.Select(rows=6, description="pairs", layout=w.Layout(width=WIDE))
        kinds = w.Tab(
            [
                _rows(w, images, labels, _button(
                    w, "add folders", lambda: state.add_folder(images.value, labels.value))),
                _rows(w, image, label, _button(
                    w, "add pair", lambda: state.add_pair(image.value, label.value))),
                _rows(w, bank, _button(w, "open bank", lambda: state.open_bank(bank.value))),
            ],
            titles=("folders", "one pair", "bank"),
        )  # fmt: skip
        remove = _button(w, "remove", lambda: state.remove(names.value or ""))
        undo = _button(w, "undo", state.undo)
        check = _button(w, "check pairs", state.check)

        def tell(_change: Any = None) -> None:
            images.options = labels.options = state.folders
            image.options = label.options = state.scans
            bank.options = state.banks
            names.options = state.pairs

        state.observe(tell, ["folders", "scans", "banks", "pairs"])
        tell()
        self.box = w.VBox([kinds, names, w.HBox([remove, undo, check])])


class _Scan:
    """The scan to be predicted, or to be drawn on."""

    def __init__(self, w: Any, state: AppState) -> None:
        scan = _choice(w, "scan")
        values = w.SelectMultiple(
            rows=4, description="classes", layout=w.Layout(width=WIDE),
            tooltip="none chosen: all",
        )  # fmt: skip
        names = w.Text(
            placeholder="lesion, rim", description="to draw", layout=w.Layout(width=WIDE)
        )
        check = _button(w, "check", lambda: state.check(scan.value))
        predict = _button(w, "predict", lambda: state.predict(scan.value, tuple(values.value)))
        draw = _button(w, "draw a first mask", lambda: state.draw(scan.value, names.value))
        predict.button_style = "primary"

        def tell(_change: Any = None) -> None:
            scan.options = state.scans
            values.options = [(spec.name, spec.number) for spec in state.classes]

        state.observe(tell, ["scans", "pairs"])
        tell()
        self.box = w.VBox([scan, values, w.HBox([check, predict]), names, draw])


def _result(w: Any, state: AppState) -> Any:
    folder = w.Text("results", description="folder", layout=w.Layout(width=WIDE))
    name = w.Text(placeholder="as the scan", description="name", layout=w.Layout(width=WIDE))
    bank = w.Text("context.mvctx", description="bank", layout=w.Layout(width=WIDE))
    accept = _button(w, "accept as a pair", state.accept)
    save = _button(w, "save mask", lambda: state.save(folder.value, name.value))
    keep = _button(w, "save bank", lambda: state.save_bank(bank.value))
    return w.VBox([accept, folder, name, save, bank, keep])


def _messages(w: Any, state: AppState) -> Any:
    """Return what the last action did, or why it was not done."""
    message = w.HTML()
    message.add_class("mv-message")

    def tell(_change: Any = None) -> None:
        lines = [f"note: {escape(note)}" for note in state.notes]
        if state.problem:
            lines = [f"<b>Not done:</b> {escape(state.problem)}"]
        else:
            lines.insert(0, escape(state.said))
        message.value = "<br>".join(lines)

    state.observe(tell, ["problem", "said", "notes"])
    tell()
    return message


def _report(w: Any, state: AppState) -> Any:
    report = w.HTML()

    def tell(_change: Any = None) -> None:
        report.value = "" if state.report is None else state.report._repr_html_()

    state.observe(tell, "report")
    return report


def _planes(w: Any, state: AppState) -> Any:
    """Return the place of the canvas, with the numbers of an answer."""
    from .canvas import SliceCanvas

    place, numbers = w.VBox(), w.HTML()

    def show(_change: Any) -> None:
        for child in place.children:
            child.close()
        place.children = [] if state.planes is None else [SliceCanvas(state.planes)]

    def tell(_change: Any) -> None:
        answer = state.prediction
        parts = [] if answer is None else [answer.statistics.to_html(float_format="{:.4g}".format)]
        if answer is not None and answer.trust is not None:
            parts += [f"<p>{escape(line)}</p>" for line in repr(answer.trust).splitlines()]
        numbers.value = "".join(parts)

    state.observe(show, "planes")
    state.observe(tell, "prediction")
    return w.VBox([place, numbers])


def _choice(w: Any, what: str, value: str = "") -> Any:
    """Return a field that takes any text and offers what there is."""
    return w.Combobox(value=value, description=what, layout=w.Layout(width=WIDE))


def _button(w: Any, label: str, action: Callable[[], object]) -> Any:
    button = w.Button(description=label, layout=w.Layout(width="auto", align_self="flex-start"))
    button.on_click(lambda _button: action())
    return button


def _rows(w: Any, *children: Any) -> Any:
    return w.VBox(list(children))
