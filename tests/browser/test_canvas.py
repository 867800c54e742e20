"""The canvas in a real browser: its script on an empty page, with a model that talks to Python."""

import base64

import numpy as np
import pytest

from medverse_nb.classes import PALETTE, ClassSpec
from medverse_nb.ui.display import Display
from medverse_nb.ui.editing import MaskEditor
from medverse_nb.ui.layers import grey_layer, heat_layer
from medverse_nb.ui.scene import Box, Panel, Scene, blend
from medverse_nb.ui.slices import SliceState
from medverse_nb.volume import grid_of, make_volume

canvas_file = pytest.importorskip("medverse_nb.ui.canvas", reason="needs anywidget")

HOST = "http://canvas.test/"
PAGE = """
<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="canvas.css">
<body style="width: 900px; margin: 8px"><div id="here"></div>
<script type="module">
import widget from "./canvas.js";
const listeners = [];
window.sent = [];
const model = {
  get: () => "rows",
  send: (message) => window.sent.push(message),
  on: (name, listener) => listeners.push(listener),
  off: () => {},
};
window.deliver = (message, buffers) => {
  const views = buffers.map((text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new DataView(bytes.buffer);
  });
  for (const listener of listeners) listener(message, views);
};
widget.render({ model, el: document.getElementById("here") });
window.ready = true;
</script>
"""
CLASSES = (ClassSpec(1, "ball", (1,), PALETTE[0]), ClassSpec(2, "rod", (2,), PALETTE[1]))
SHAPE = (40, 30, 20)  # in the file
AFFINE = np.array([[0, 0, -3.0, 0], [-1.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])


class Talk:
    """A canvas and a page; `pump` carries messages between them until both are silent."""

    def __init__(self, browser, state: SliceState) -> None:
        self.state = state
        self.page = browser.new_page(viewport={"width": 940, "height": 700})
        self.trouble: list[str] = []
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.route("**/*", self._serve)
        self.canvas = canvas_file.SliceCanvas(state)
        self.out: list[tuple[dict, list[str]]] = []
        self.canvas.send = lambda message, buffers=None: self.out.append(
            (message, [base64.b64encode(b).decode() for b in buffers or []])
        )
        self.page.goto(HOST)
        self.page.wait_for_function("window.ready")
        self.pump()

    def _serve(self, route) -> None:
        name = route.request.url.removeprefix(HOST)
        if name == "":
            route.fulfill(body=PAGE, content_type="text/html")
        elif name in ("canvas.js", "canvas.css"):
            kind = "text/javascript" if name.endswith("js") else "text/css"
            text = (canvas_file.HERE / name).read_text(encoding="utf-8")
            route.fulfill(body=text, content_type=kind)
        else:
            if not name.endswith("favicon.ico"):
                self.trouble.append(f"asked for {route.request.url}")
            route.abort()

    def pump(self) -> list[dict]:
        heard = []
        while True:
            said = self.page.evaluate("window.sent.splice(0)")
            for message in said:
                self.canvas._on_message(self.canvas, message, [])
            for message, buffers in self.out:
                self.page.evaluate("([m, b]) => window.deliver(m, b)", [message, buffers])
            if not said and not self.out:
                assert self.trouble == []
                return heard
            heard += said
            self.out.clear()

    def plane(self, axis: int, panel: int = 0):
        return self.page.locator(".mv-plane").nth(3 * panel + axis)

    def point(self, axis: int, right: float, up: float) -> tuple[float, float]:
        """Where a shown voxel's middle is on the page."""
        box = self.plane(axis).bounding_box()
        across, above = (n for a, n in enumerate(self.state.scene.display.shape) if a != axis)
        x = box["x"] + (right + 0.5) / across * box["width"]
        return x, box["y"] + (1 - (up + 0.5) / above) * box["height"]

    def pixels(self, axis: int, panel: int = 0) -> np.ndarray:
        """The colours (right, up, 3) that stand in a plane's canvas."""
        data = (
            self.plane(axis, panel)
            .locator("canvas")
            .evaluate(
                """c => [c.width, c.height,
                     Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data)]"""
            )
        )
        width, height, values = data
        picture = np.array(values, np.uint8).reshape(height, width, 4)[::-1, :, :3]
        return picture.swapaxes(0, 1)

    def drag(self, axis: int, *path: tuple[float, float]) -> None:
        self.page.mouse.move(*self.point(axis, *path[0]))
        self.page.mouse.down()
        for place in path[1:]:
            self.page.mouse.move(*self.point(axis, *place), steps=4)
        self.page.mouse.up()


def make_state(*, drawing: bool = True) -> SliceState:
    """A scan in the axis order S, -A, ... of `AFFINE`, with a ball and a rod, and a heat panel."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    mask = np.zeros(SHAPE, np.uint8)
    mask[(x - 20) ** 2 + (y - 12) ** 2 + (2 * (z - 9)) ** 2 < 64] = 1
    mask[30:34, :, 4:6] = 2
    scan = (x + 2 * y + 40 * (mask == 1) + np.zeros(SHAPE)).astype(np.float32)
    volume, labels = make_volume(scan, AFFINE, name="scan"), make_volume(mask, AFFINE, name="mask")
    display = Display.of(grid_of(volume))
    grey = grey_layer(display, volume)
    editor = MaskEditor(labels, CLASSES, display, image=volume)
    heat = heat_layer(display, volume / float(volume.max()), name="heat")
    scene = Scene(
        display, (Panel("answer", (grey, editor.layer)), Panel("attention", (grey, heat)))
    )
    return SliceState(scene, editor=editor if drawing else None)


@pytest.fixture
def talk(browser):
    talk = Talk(browser, make_state())
    yield talk
    talk.page.close()


def test_the_picture_is_the_one_that_python_blends(talk):
    for opacity in (0.45, 1.0, 0.3):
        talk.state.opacity = opacity
        talk.pump()
        for number, panel in enumerate(talk.state.scene.panels):
            for axis, layers in enumerate(talk.state.planes()[number]):
                expected = blend(layers, [layer.table for layer in panel.layers], opacity)
                assert np.array_equal(talk.pixels(axis, number), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_click_reaches_the_voxel_of_the_array(talk, axis):
    shape = talk.state.scene.display.shape
    corner, inner = (0, 0), (7, 11)
    for right, up in (corner, inner, tuple(n - 1 for a, n in enumerate(shape) if a != axis)):
        expected = [right, up]
        expected.insert(axis, talk.state.cursor[axis])
        talk.page.mouse.click(*talk.point(axis, right, up))
        talk.pump()
        assert talk.state.cursor == tuple(expected)
        i, j, k = talk.state.voxel
        assert f"voxel [{i}, {j}, {k}]" in talk.page.locator(".mv-place").inner_text()
        value = i + 2 * j + 40 * (talk.state.editor.mask.values[i, j, k] == 1)
        assert f"scan: {value:.4g}" in talk.page.locator(".mv-values").first.inner_text()


def test_a_picture_follows_the_pointer_that_is_dragged(talk):
    talk.drag(2, (3, 4), (20, 15))
    said = talk.pump()
    assert talk.state.cursor[:2] == (
        min(20, talk.state.scene.display.shape[0] - 1), 15
    )  # fmt: skip
    assert 1 <= len([m for m in said if m["type"] == "cursor"]) <= 2  # one, and the latest


def test_wheel_and_keys_move_the_cursor(talk):
    talk.state.cursor = (10, 10, 10)
    talk.pump()
    talk.page.mouse.move(*talk.point(1, 5, 5))
    talk.page.mouse.wheel(0, -100)
    talk.page.wait_for_function("window.sent.length > 0")
    talk.pump()
    assert talk.state.cursor == (10, 12, 10)
    talk.plane(1).focus()
    for key, cursor in [
        ("ArrowRight", (11, 12, 10)), ("ArrowUp", (11, 12, 11)), ("ArrowLeft", (10, 12, 11)),
        ("ArrowDown", (10, 12, 10)), ("PageDown", (10, 11, 10)), ("PageUp", (10, 12, 10)),
    ]:  # fmt: skip
        talk.page.keyboard.press(key)
        talk.pump()
        assert talk.state.cursor == cursor
    talk.page.keyboard.press("ArrowUp")  # two before an answer: both count
    talk.page.keyboard.press("ArrowUp")
    talk.pump()
    assert talk.state.cursor == (10, 12, 12)
    label = talk.plane(1).get_attribute("aria-label")
    assert label.startswith("answer coronal, slice 13 of 40.")


def test_opacity_is_seen_at_once(talk):
    before = talk.pixels(2)
    talk.page.get_by_label("Opacity of the overlay").fill("1")
    assert not np.array_equal(talk.pixels(2), before)  # before Python knows
    talk.pump()
    assert talk.state.opacity == 1


def test_boxes_are_drawn_and_picked(talk):
    talk.state.boxes = (Box((2, 3, 4), (12, 13, 14), "window 1", (255, 255, 0)),)
    talk.state.cursor = (5, 6, 7)
    talk.pump()
    assert talk.page.locator(".mv-box").count() == 6
    talk.page.mouse.click(*talk.point(2, 1.5, 8))  # its left edge
    talk.pump()
    assert talk.state.selected == 0
    assert talk.state.cursor == (5, 6, 7)
    talk.plane(0).focus()
    talk.page.keyboard.press("b")
    talk.pump()
    assert talk.state.selected is None
    talk.state.cursor = (15, 6, 7)
    talk.pump()
    assert talk.page.locator(".mv-box").count() == 4  # the sagittal planes pass it by


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stroke_takes_the_voxels_under_it(talk, axis):
    """Voxel for voxel what Python draws along the same path."""
    talk.page.get_by_role("button", name="Brush", exact=True).click()
    talk.page.get_by_label("Class to draw").select_option("rod")
    talk.page.get_by_label("Brush radius in voxels").fill("1.5")
    before = talk.state.editor.mask.values.copy()
    talk.drag(axis, (3, 3), (8, 3))
    (stroke,) = [message for message in talk.pump() if message["type"] == "stroke"]
    path = np.array(stroke["path"])
    ends = np.delete(path, axis, 1)[[0, -1]]
    assert np.allclose(ends, [[3, 3], [8, 3]], atol=0.3)
    assert (path[:, axis] == talk.state.cursor[axis]).all()
    changed = np.argwhere(talk.state.editor.mask.values != before)
    shown = np.array([talk.state.scene.display.shown_of(tuple(at)) for at in changed])
    assert set(shown[:, axis]) == {talk.state.cursor[axis]}
    right, up = np.delete(shown, axis, 1).T
    assert (right.min() <= 3) & (right.max() >= 8)
    assert {3} <= set(up)
    layers = talk.state.planes()[0][axis]
    tables = [layer.table for layer in talk.state.scene.panels[0].layers]
    assert np.array_equal(talk.pixels(axis), blend(layers, tables, talk.state.opacity))
    talk.page.keyboard.press("Control+z")
    talk.pump()
    assert np.array_equal(talk.state.editor.mask.values, before)
    talk.page.get_by_role("button", name="Redo").click()
    talk.pump()
    assert len(np.argwhere(talk.state.editor.mask.values != before)) == len(changed)


def test_eraser_threshold_and_filling(talk):
    mask = talk.state.editor.mask.values
    talk.page.get_by_role("button", name="Eraser").click()
    i, j, _ = talk.state.cursor
    talk.drag(2, (i, j), (i, j))
    talk.pump()
    assert talk.state.editor.mask.values[talk.state.voxel] == 0
    talk.page.get_by_role("button", name="Undo").click()
    talk.pump()
    assert np.array_equal(talk.state.editor.mask.values, mask)
    assert not talk.page.get_by_label("Threshold from").is_visible()
    talk.page.get_by_role("button", name="Threshold brush").click()
    talk.page.get_by_label("Threshold from").fill("1e6")
    talk.page.get_by_label("Threshold to").fill("2e6")
    talk.drag(2, (2, 2), (9, 9))
    talk.pump()
    assert np.array_equal(talk.state.editor.mask.values, mask)  # no voxel is that bright
    talk.page.get_by_role("button", name="Fill between slices").click()
    talk.pump()
    assert "two slices or more" in talk.page.locator(".mv-problem").inner_text()


def test_a_view_that_is_only_looked_at_has_no_brushes(browser):
    talk = Talk(browser, make_state(drawing=False))
    assert talk.page.locator(".mv-tools").count() == 0
    names = [text.strip() for text in talk.page.locator(".mv-key").all_inner_texts()]
    assert names[:2] == ["ball", "rod"]
    letters = [plane.inner_text().split()[-4:] for plane in (talk.plane(0), talk.plane(2))]
    assert letters == [["P", "A", "I", "S"], ["L", "R", "P", "A"]]
    box = talk.plane(0).bounding_box()
    mm = talk.state.scene.display.grid.extent_mm
    assert box["width"] / box["height"] == pytest.approx(mm[1] / mm[2], rel=0.02)
    talk.page.close()


def test_another_scene_takes_the_place(talk):
    volume = make_volume(np.zeros((5, 6, 7)), np.eye(4))
    display = Display.of(grid_of(volume))
    talk.state.editor = None
    talk.state.scene = Scene(display, (Panel("", (grey_layer(display, volume),)),))
    talk.pump()
    assert talk.page.locator(".mv-plane").count() == 3
    assert talk.pixels(0).shape == (6, 7, 3)
    assert talk.page.locator(".mv-tools").count() == 0
