"""`view` and its viewers, without a browser: what is chosen, sent, taken in and closed."""

import base64
import json
import subprocess
import sys
import types

import nibabel as nib
import numpy as np
import pytest
from test_display import AXIS_ALIGNED, DIRECTIONS, numbered

import medverse_nb as mv
from medverse_nb.classes import PALETTE, ClassSpec
from medverse_nb.errors import GeometryError, InputError
from medverse_nb.prediction import Prediction
from medverse_nb.ui import front_end
from medverse_nb.ui import view as view_file
from medverse_nb.ui.display import Display
from medverse_nb.ui.editing import MaskEditor
from medverse_nb.ui.layers import grey_layer, heat_layer, label_layer, signed_layer
from medverse_nb.ui.scene import Box, Panel, Scene
from medverse_nb.ui.slices import SliceState
from medverse_nb.ui.view import choose_backend, open_viewer, view
from medverse_nb.volume import affine_of, grid_of, make_volume, with_data

SHAPE = (6, 7, 8)
CLASSES = (ClassSpec(1, "one", (1,), PALETTE[0]), ClassSpec(2, "two", (2,), PALETTE[1]))
PNG = b"\x89PNG"


def make_case(directions=AXIS_ALIGNED[13]):
    """Return a scan of numbered voxels and a mask with three voxels of 1 and one of 2."""
    scan = numbered(directions, SHAPE, name="scan")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3:6], mask[5, 6, 0] = 1, 2
    return scan, with_data(scan, mask, "mask")


def make_state(*, edit=False, panels=1, directions=AXIS_ALIGNED[13]) -> SliceState:
    scan, mask = make_case(directions)
    display = Display.of(grid_of(scan))
    grey = grey_layer(display, scan)
    editor = MaskEditor(mask, CLASSES, display, image=scan) if edit else None
    over = editor.layer if editor else label_layer(display, mask, CLASSES)
    shown = tuple(Panel(f"panel {n}", (grey, over)) for n in range(panels))
    return SliceState(Scene(display, shown), editor=editor)


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    for viewer in list(view_file._open.values()):
        viewer.close()
    view_file._open.clear()


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(view_file, "in_notebook", lambda: True)


def lacking(monkeypatch, *packages: str) -> None:
    there = front_end.installed
    monkeypatch.setattr(view_file, "installed", lambda name: name not in packages and there(name))


# --- which viewer ---------------------------------------------------------------------------------


def test_outside_a_notebook_it_is_a_picture():
    scan, mask = make_case()
    viewer = mv.view(scan, mask)
    assert viewer.backend == "static"
    assert viewer.widget is None
    assert viewer.picture().startswith(PNG)
    data, _ = viewer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert data["text/plain"] == "<Viewer of scan: static>"
    viewer.close()
    viewer.close()


def test_a_notebook_gets_the_best_there_is(notebook, monkeypatch):
    pytest.importorskip("anywidget")
    pytest.importorskip("ipyniivue")
    assert choose_backend("auto") == "niivue"
    assert choose_backend("auto", edit=True) == "canvas"
    assert choose_backend("auto", panels=2) == "canvas"
    lacking(monkeypatch, "ipyniivue")
    assert choose_backend("auto") == "canvas"
    lacking(monkeypatch, "anywidget", "ipyniivue")
    assert choose_backend("auto") == "static"
    assert choose_backend("auto", edit=True) == "static"


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [("niivue", "ipyniivue", "jupyter"), ("canvas", "anywidget", "jupyter"),
     ("itk", "itkwidgets", "itk")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(monkeypatch, backend, package, extra):
    lacking(monkeypatch, package)
    with pytest.raises(InputError) as caught:
        view(*make_case(), backend=backend)
    assert str(caught.value) == (
        f'backend="{backend}" needs {package}: {sys.executable} -m pip install "medverse_nb[{extra}]"'
    )


def test_an_unknown_viewer_is_refused():
    with pytest.raises(InputError, match="backend='vtk' is not one of"):
        view(*make_case(), backend="vtk")


def test_a_picture_needs_no_widget_package():
    """In a process of its own: importing and viewing load none."""
    code = """
import sys
for name in ("anywidget", "ipywidgets", "ipyniivue", "itkwidgets"):
    sys.modules[name] = None
import medverse_nb as mv, numpy as np
assert "traitlets" not in sys.modules and "matplotlib" not in sys.modules
viewer = mv.view(mv.read_volume(np.zeros((5, 6, 7)), np.eye(4)), np.ones((5, 6, 7), int), edit=True)
assert viewer.picture().startswith(b"\\x89PNG") and int(viewer.mask.sum()) == 210
print(viewer.backend)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "static\n", done.stderr


# --- what is shown -----------------------------------------------------------------------------------


def test_numbers_are_classes_unless_told_otherwise():
    scan, mask = make_case()
    names = [key.name for key in view(scan, mask).state.scene.legend]
    assert names == ["class 1", "class 2"]
    names = [key.name for key in view(scan, mask, classes=CLASSES[:1]).state.scene.legend]
    assert names == ["one"]
    as_float = view(scan, mask.astype(np.float64)).state
    assert as_float.values() == view(scan, mask.values).state.values()
    assert as_float.values()["scan"]["labels"] == "class 1"


def test_fractions_are_heat():
    scan, mask = make_case()
    probability = (mask * 0.3).rename("probability")
    (key,) = view(scan, probability).state.scene.legend
    assert (key.name, key.ends) == ("probability", ("0", "1"))
    with pytest.raises(InputError, match=r"fractional values from 0 to 2\.5"):
        view(scan, mask * 1.25)


def test_limits_of_heat():
    scan, mask = make_case()
    spread = (mask * 0.25).rename("uncertainty")
    usual, scaled = (view(scan, spread, limits=ends).state for ends in (None, (0, 0.5)))
    assert scaled.scene.legend[0].ends == ("0", "0.5")
    codes = [state.scene.panels[0].layers[1].codes.max() for state in (usual, scaled)]
    assert codes == [128, 255]  # the largest is 0.5
    assert view(scan, mask, limits=(0, 2)).state.scene.legend[0].ends == ("0", "2")  # whole numbers
    with pytest.raises(InputError, match="a lower and a higher"):
        view(scan, spread, limits=(0.5, 0.5))
    for asked in ({"edit": True}, {"classes": [1]}):
        with pytest.raises(InputError, match="no classes and is not edited"):
            view(scan, mask, limits=(0, 1), **asked)


@pytest.mark.parametrize("directions", DIRECTIONS[::5])
def test_an_overlay_in_another_order_is_turned(directions):
    """The same voxels, stored along other axes."""
    scan, mask = make_case(directions)
    other = mask.transpose("z", "x", "y")[::-1, :, ::-1]
    state = view(scan, other, edit=True).state
    straight = view(scan, mask).state
    assert np.array_equal(state.planes()[0][0][1], straight.planes()[0][0][1])
    assert state.values() == straight.values()
    assert np.array_equal(state.editor.mask.values, mask.values)
    assert state.editor.mask.dims == scan.dims


def test_an_overlay_of_another_grid_is_refused():
    scan, mask = make_case()
    with pytest.raises(GeometryError, match=r"the overlay has the shape \(5, 7, 8\)"):
        view(scan, mask[1:])
    with pytest.raises(GeometryError, match=r"shape \(5, 7, 8\).*as the volume's own"):
        view(scan, mask.values[1:])
    moved = affine_of(mask)
    moved[0, 3] += 5
    with pytest.raises(GeometryError, match=r"5\.0 mm apart"):
        view(scan, make_volume(mask.values, moved))
    lead = {"class": ["a"]}
    with pytest.raises(InputError, match="choose one of the others"):
        view(scan, make_volume(mask.values[None] * 1.0, affine_of(mask), leading=lead))
    with pytest.raises(InputError, match="no number"):
        view(scan, with_data(scan, mask.values.astype(complex), "complex"))


def test_too_many_numbers_are_no_classes():
    scan, _ = make_case()
    with pytest.raises(InputError, match="335 different numbers"):
        view(scan, scan)


def test_files_and_images_can_be_viewed(tmp_path):
    scan, mask = make_case()
    mv.write_volume(scan.astype(np.int16), tmp_path / "scan.nii.gz")
    mv.write_volume(mask, tmp_path / "mask.nii.gz")
    viewer = view(tmp_path / "scan.nii.gz", nib.load(tmp_path / "mask.nii.gz"))
    assert viewer.state.values() == view(scan, mask).state.values()
    assert "scan" in repr(viewer)


def test_a_roi_is_shown_and_counted_in_the_whole():
    scan, mask = make_case()
    viewer = view(scan, mask, roi=np.s_[:3, 1:4, 2:])
    assert sorted(viewer.state.scene.display.shape) == [3, 3, 6]
    assert viewer.state.voxel in {(1, 2, 3), (1, 2, 4), (1, 2, 5)}


def test_a_mask_can_be_drawn_from_nothing():
    scan, _ = make_case()
    viewer = view(scan, classes=CLASSES, edit=True)
    viewer.state.paint([viewer.state.cursor], 0, 2, radius_vox=0)
    assert viewer.mask.values[viewer.state.voxel] == 2
    assert viewer.mask.values.sum() == 2
    with pytest.raises(InputError, match="nothing to draw"):
        view(scan, edit=True)
    with pytest.raises(InputError, match="open it with edit=True"):
        _ = view(scan).mask


def test_a_prediction_shows_its_answer(monkeypatch):
    scan, mask = make_case()
    chances = np.stack([mask.values == 1, mask.values == 2]).astype(np.float32)
    lead = {"class": ["one", "two"]}
    probability = with_data(scan, chances, "probability", lead)
    prediction = Prediction(scan, CLASSES, probability, None, {})
    viewer = prediction.view()
    assert viewer.backend == "static"
    assert viewer.state.values()["scan"]["labels"] == "one"
    viewer = prediction.view("static", edit=True)
    assert np.array_equal(viewer.mask.values, mask.values)
    image = Prediction(scan, (), None, scan * 0.5, {})
    assert image.view().state.values() == {
        "scan": {"scan": image.view().state.values()["scan"]["scan"]}
    }
    with pytest.raises(InputError, match="an image task has no mask"):
        image.view(edit=True)


# --- the canvas -----------------------------------------------------------------------------------------


class Browser:
    """Stands for the other side of a canvas: keeps what it is sent."""

    def __init__(self, state: SliceState) -> None:
        canvas_file = pytest.importorskip("medverse_nb.ui.canvas", reason="needs anywidget")
        self.canvas = canvas_file.SliceCanvas(state)
        self.heard: list[tuple[dict, list]] = []
        self.canvas.send = lambda content, buffers=None: self.heard.append(
            (
                json.loads(json.dumps(content)),
                [bytes(memoryview(b).cast("B")) for b in buffers or ()],
            )
        )

    def say(self, **message) -> list[tuple[dict, list]]:
        self.heard.clear()
        self.canvas._handle_custom_msg(message, [])
        return list(self.heard)


def test_a_canvas_sends_nothing_until_someone_looks():
    state = make_state()
    browser = Browser(state)
    state.cursor = (0, 0, 0)
    state.opacity = 1
    assert browser.heard == []


def test_who_looks_is_sent_the_scene_and_its_planes():
    state = make_state(panels=2)
    (scene, tables), (planes, codes) = Browser(state).say(type="ready")
    assert scene["type"] == "scene"
    assert tuple(scene["shape"]) == state.scene.display.shape
    assert scene["spacing"] == pytest.approx(state.scene.display.grid.spacing_mm)
    assert [panel["title"] for panel in scene["panels"]] == ["panel 0", "panel 1"]
    assert [key["name"] for key in scene["legend"]] == ["one", "two"]
    assert scene["drawing"] is None
    assert tables == [layer.table.tobytes() for layer in state.scene.panels[0].layers] * 2
    assert planes["axes"] == [0, 1, 2]
    assert tuple(planes["cursor"]) == state.cursor
    expected = [p.tobytes() for panel in state.planes() for axis in panel for p in axis]
    assert codes == expected
    i, j, k = state.voxel
    assert planes["place"].startswith(f"voxel [{i}, {j}, {k}] at (")
    assert planes["values"][0].endswith("labels: one")
    assert planes["boxes"] == []


def test_only_planes_that_changed_are_sent():
    state = make_state()
    browser = Browser(state)
    browser.say(type="ready")
    i, j, k = state.cursor
    ((message, buffers),) = browser.say(type="cursor", cursor=[i, j, k + 1])
    assert message["axes"] == [2]
    assert buffers == [plane.tobytes() for plane in state.planes()[0][2]]
    assert "boxes" not in message
    ((message, buffers),) = browser.say(type="cursor", cursor=[i, j, k + 1])
    assert message["axes"] == buffers == []  # answered all the same
    ((message, buffers),) = browser.say(type="cursor", cursor=[-5, 99, 0])
    assert message["cursor"] == list(state.cursor) == [0, state.scene.display.shape[1] - 1, 0]
    ((message, buffers),) = browser.say(type="opacity", opacity=0.25)
    assert state.opacity == message["opacity"] == 0.25
    assert buffers == []


def test_a_change_in_python_is_shown_to_all_who_look():
    state = make_state()
    browsers = [Browser(state), Browser(state)]
    for browser in browsers:
        browser.say(type="ready")
        browser.heard.clear()
    state.cursor = (0, 0, 0)
    state.boxes = (Box((0, 0, 0), (2, 2, 2), "window"),)
    browsers[0].say(type="box", box=0)
    assert state.selected == 0
    for browser in browsers[1:]:
        assert [message["type"] for message, _ in browser.heard] == ["planes"] * 3
        assert browser.heard[1][0]["boxes"][0]["name"] == "window"
        assert browser.heard[2][0]["selected"] == 0
    browsers[1].heard.clear()
    state.scene = make_state(panels=3).scene
    (scene, _), (planes, codes), *_ = browsers[1].heard
    assert (scene["type"], planes["axes"]) == ("scene", [0, 1, 2])
    assert len(codes) == 3 * 3 * 2


def test_strokes_come_from_the_browser_and_go_back():
    state = make_state(edit=True)
    browser = Browser(state)
    (scene, _), (planes, _) = browser.say(type="ready")
    assert [one["name"] for one in scene["drawing"]["classes"]] == ["one", "two"]
    assert scene["drawing"]["limits"] == list(state.scene.panels[0].layers[0].limits)
    assert not planes["undo"]
    stroke = {"axis": 2, "number": 2, "radius": 0, "mode": "brush", "limits": None}
    i, j, k = 3, 3, 3
    ((message, buffers),) = browser.say(type="stroke", path=[[i, j, k]], **stroke)
    assert message["axes"] == [0, 1, 2]
    assert buffers == [p.tobytes() for axis in state.planes()[0] for p in axis]
    assert (message["undo"], message["redo"]) == (True, False)
    assert state.editor.mask.values[state.scene.display.voxel_of((i, j, k))] == 2
    ((message, _),) = browser.say(type="undo")
    assert (message["undo"], message["redo"]) == (False, True)
    assert state.editor.mask.values[state.scene.display.voxel_of((i, j, k))] == 0
    browser.say(type="redo")
    assert state.editor.can_undo


def test_what_cannot_be_done_is_told_in_the_browser():
    state = make_state(edit=True)
    browser = Browser(state)
    browser.say(type="ready")
    for message, text in [
        ({"type": "fill", "axis": 0, "number": 1}, "two slices or more"),
        ({"type": "stroke", "path": [[0, 0, 0]]}, "not understood"),
        ({"type": "cursor", "cursor": ["a", 1, 2]}, "three whole numbers"),
        ({"type": "cursor", "cursor": 7}, "not understood"),
        ({"type": "box", "box": 3}, "box 3 of 0"),
        ({"type": "dance"}, "not understood"),
        ({}, "not understood"),
    ]:
        (problem, _), (planes, _) = browser.say(**message)
        assert problem["type"] == "problem"
        assert text in problem["text"]
        assert planes["type"] == "planes"  # the browser waits for it


def test_a_closed_canvas_is_silent():
    state = make_state()
    browser = Browser(state)
    browser.say(type="ready")
    browser.canvas.close()
    browser.canvas.close()
    browser.heard.clear()
    state.cursor = (0, 0, 0)
    assert browser.say(type="ready") == []


def test_a_saved_notebook_holds_no_voxel():
    state = make_state()
    browser = Browser(state)
    browser.say(type="ready")
    saved = browser.canvas.get_state()
    assert len(json.dumps(saved, default=str)) < 60_000
    assert set(saved) <= set(browser.canvas.keys)
    assert saved["_esm"].startswith("// Three planes")


def test_the_script_asks_nobody_outside():
    canvas_file = pytest.importorskip("medverse_nb.ui.canvas", reason="needs anywidget")
    script = (canvas_file.HERE / "canvas.js").read_text(encoding="utf-8")
    style = (canvas_file.HERE / "canvas.css").read_text(encoding="utf-8")
    for word in ("http", "fetch(", "import(", "import ", "@import", "url("):
        found = [line for line in (script + style).splitlines() if word in line]
        assert [line for line in found if "www.w3.org/2000/svg" not in line] == []


# --- NiiVue ------------------------------------------------------------------------------------------


@pytest.fixture
def niivue():
    return pytest.importorskip("medverse_nb.ui.niivue", reason="needs ipyniivue")


def shown_by(volume) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(bytes(volume.data))


def load(viewer) -> None:
    """Say, as the browser would, that all volumes have arrived."""
    for volume in viewer.nv.volumes:
        viewer._on_loaded(volume)


@pytest.mark.parametrize("directions", DIRECTIONS[::5])
def test_niivue_has_nothing_to_turn(niivue, directions):
    state = make_state(directions=directions)
    viewer = niivue.NiivueViewer(state)
    for layer, volume in zip(state.scene.panels[0].layers, viewer.nv.volumes, strict=True):
        image = shown_by(volume)
        assert np.array_equal(np.asarray(image.dataobj), layer.codes)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.allclose(image.header.get_zooms(), state.scene.display.grid.spacing_mm)


@pytest.mark.parametrize("directions", DIRECTIONS[::5])
def test_a_crosshair_event_reaches_the_voxel_of_the_array(niivue, directions):
    state = make_state(directions=directions)
    viewer = niivue.NiivueViewer(state)
    told = []
    state.observe(told.append, "cursor")
    for voxel in ((5, 6, 0), (0, 3, 7)):
        shown = state.scene.display.shown_of(voxel)
        event = {"event": "location_change", "data": {"vox": list(shown), "mm": [0, 0, 0]}}
        for _ in range(5):  # they come by the dozen
            viewer.nv._handle_custom_msg(event, [])
        assert state.voxel == voxel
    assert len(told) == 2
    state.cursor = (0, 0, 0)
    half = [0.5 / side for side in state.scene.display.shape]
    assert viewer.nv.scene.crosshair_pos == pytest.approx(half)


def test_classes_keep_their_colours_in_niivue(niivue):
    """NiiVue looks codes up at (code - min + 0.5) / length, but never in the first 1/128."""
    state = make_state()
    colours = niivue.NiivueViewer(state).nv.volumes[1].colormap_label
    table = np.array(colours.lut).reshape(-1, 4)
    assert len(table) == colours.max - colours.min + 1
    for code in (0, 1, 2, 255):
        place = (code - colours.min + 0.5) / len(table)
        assert place > 2 / 256
        found = table[int(place * len(table))]
        assert found.tolist() == state.scene.panels[0].layers[1].table[code].tolist()


def test_scales_in_niivue(niivue):
    scan, _ = make_case()
    display = Display.of(grid_of(scan))
    grey, heat = grey_layer(display, scan), heat_layer(display, scan / 400)
    signed = signed_layer(display, scan - 200)
    scene = Scene(display, (Panel("a", (grey, heat, signed)),))
    base, warm, change = niivue.NiivueViewer(SliceState(scene)).nv.volumes
    assert (base.colormap, base.cal_min, base.cal_max) == ("gray", 0, 255)
    assert (warm.colormap, warm.colormap_label) == ("inferno", None)
    alpha = np.array(change.colormap_label.lut).reshape(-1, 4)[4:, 3]
    assert set(alpha) == {0, 255}
    assert (alpha[120:136] == 0).all()
    assert alpha[0] == alpha[255] == 255


def test_opacity_reaches_the_overlay(niivue):
    state = make_state()
    viewer = niivue.NiivueViewer(state)
    state.opacity = 0.9
    assert [volume.opacity for volume in viewer.nv.volumes] == [1, 0.9]


def test_niivue_shows_one_panel(niivue):
    with pytest.raises(InputError, match='panel 0, panel 1; use backend="canvas"'):
        niivue.NiivueViewer(make_state(panels=2))


@pytest.mark.parametrize("directions", DIRECTIONS[::5])
def test_a_drawing_lands_on_the_voxels_of_the_array(niivue, directions):
    state = make_state(edit=True, directions=directions)
    viewer = niivue.NiivueViewer(state)
    load(viewer)
    viewer.start_drawing(2)
    sent = []
    viewer.nv.send = lambda content, buffers=None: sent.append((content, buffers))
    flat = state.editor.codes.ravel(order="F")
    viewer.nv.draw_bitmap = np.zeros_like(flat)  # the answer to "start": not wanted
    assert state.edits == 0
    viewer.fetch_drawing()
    assert ({"type": "set_drawing_enabled", "data": [True]}, None) in sent
    drawing = state.editor.codes.copy()
    voxel = (4, 5, 6)
    drawing[state.scene.display.shown_of(voxel)] = 2
    viewer.nv.draw_bitmap = drawing.ravel(order="F")
    assert state.edits == 1
    expected = make_case(directions)[1].values.copy()
    expected[voxel] = 2
    assert np.array_equal(viewer.mask.values, expected)
    viewer.nv.draw_bitmap = np.zeros_like(flat)  # nobody asked
    assert np.array_equal(viewer.mask.values, expected)


def test_the_mask_is_put_into_the_drawing_and_undone_there(niivue):
    state = make_state(edit=True)
    viewer = niivue.NiivueViewer(state)
    sent = []
    viewer.nv.send = lambda content, buffers=None: sent.append((content["type"], buffers))
    viewer.start_drawing(1)
    assert "set_drawing_enabled" not in [kind for kind, _ in sent]  # nothing is there to draw on
    assert viewer.nv.volumes[1].opacity == 0  # the drawing stands for it
    load(viewer)
    kinds = [kind for kind, _ in sent]
    assert kinds.index("set_drawing_enabled") < kinds.index("buffer_change")
    assert sent[kinds.index("buffer_change")][1] == [state.editor.codes.tobytes(order="F")]
    state.paint([state.cursor], 0, 2, radius_vox=1)
    state.undo()
    sent.clear()
    viewer.push_drawing()
    assert sent == [("buffer_change", [state.editor.codes.tobytes(order="F")])]


def test_a_drawing_that_ends_is_shown_as_the_mask(niivue):
    state = make_state(edit=True)
    viewer = niivue.NiivueViewer(state)
    load(viewer)
    viewer.start_drawing(1)
    viewer.nv.draw_bitmap = state.editor.codes.ravel(order="F")
    viewer.stop_drawing()
    drawing = state.editor.codes.copy()
    drawing[0, 0, 0] = 1
    viewer.nv.draw_bitmap = drawing.ravel(order="F")
    assert not viewer.drawing
    overlay = viewer.nv.volumes[1]
    assert np.array_equal(np.asarray(shown_by(overlay).dataobj), drawing)
    assert overlay.opacity == state.opacity
    with pytest.raises(InputError, match="nothing is being drawn"):
        viewer.fetch_drawing()


def test_an_edit_elsewhere_is_shown_in_niivue(niivue):
    state = make_state(edit=True)
    viewer = niivue.NiivueViewer(state)
    state.paint([[1, 1, 1]], 0, 2, radius_vox=0)
    assert np.asarray(shown_by(viewer.nv.volumes[1]).dataobj)[1, 1, 1] == 2
    state.scene = make_state(directions=np.eye(3)).scene
    assert np.asarray(shown_by(viewer.nv.volumes[0]).dataobj).shape == SHAPE


def test_only_a_class_can_be_drawn_in_niivue(niivue):
    with pytest.raises(InputError, match="open it with edit=True"):
        niivue.NiivueViewer(make_state()).start_drawing(1)
    with pytest.raises(InputError, match=r"4 cannot be drawn; the classes are \[1, 2\]"):
        niivue.NiivueViewer(make_state(edit=True)).start_drawing(4)


# --- open and closed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["canvas", "niivue", "static"])
def test_a_viewer_shows_widget_and_picture_until_closed(backend):
    pytest.importorskip("ipyniivue")
    viewer = open_viewer(make_state(), backend)
    data, _ = viewer._repr_mimebundle_()
    widget = "application/vnd.jupyter.widget-view+json"
    assert (widget in data) == (backend != "static")
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert data["text/plain"] == f"<Viewer of panel 0: {backend}>"
    viewer.close()
    viewer.close()
    data, _ = viewer._repr_mimebundle_()
    assert widget not in data
    viewer.state.cursor = (0, 0, 0)  # reaches nobody


def test_the_same_key_takes_the_place(niivue):
    first = open_viewer(make_state(), "niivue", key="steps")
    other = open_viewer(make_state(), "niivue", key="other")
    second = open_viewer(make_state(), "niivue", key="steps")
    assert (first.closed, other.closed, second.closed) == (True, False, False)


def test_a_cell_that_runs_again_closes_what_it_opened(monkeypatch):
    pytest.importorskip("anywidget")

    def run(cell: str, number: int, count: int) -> list:
        monkeypatch.setattr(view_file, "running_cell", lambda: (cell, number))
        return [open_viewer(make_state(), "canvas") for _ in range(count)]

    first = run("a", 1, 3)
    other = run("b", 2, 1)
    second = run("a", 3, 2)
    assert [viewer.closed for viewer in first] == [True] * 3
    assert [viewer.closed for viewer in other + second] == [False] * 3


def test_webgl_contexts_are_bounded(niivue, monkeypatch):
    monkeypatch.setattr(view_file, "MOST_WEBGL", 2)
    canvas = open_viewer(make_state(), "canvas")
    viewers = [open_viewer(make_state(), "niivue") for _ in range(4)]
    assert [viewer.closed for viewer in viewers] == [True, True, False, False]
    assert not canvas.closed


def test_the_running_cell_is_what_the_front_end_says(monkeypatch):
    assert front_end.running_cell() is None
    parent = {"metadata": {"cellId": "abc"}}
    shell = types.SimpleNamespace(parent_header=parent, execution_count=7, kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert front_end.running_cell() == ("abc", 7)
    assert front_end.in_notebook()


# --- itkwidgets ---------------------------------------------------------------------------------------


@pytest.fixture
def itkwidgets(monkeypatch):
    """Stand-ins for the extra's packages, outside any test run."""
    shown = []
    viewer = types.SimpleNamespace(view=lambda **images: shown.append(images) or "the viewer")
    monkeypatch.setitem(sys.modules, "itkwidgets", viewer)
    to_image = lambda data, dims, scale: (data, dims, scale)  # noqa: E731
    monkeypatch.setitem(sys.modules, "ngff_zarr", types.SimpleNamespace(to_ngff_image=to_image))
    monkeypatch.setattr(view_file, "installed", lambda _: True)
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
    return shown


def test_itk_is_refused_where_it_would_never_finish(itkwidgets, monkeypatch):
    monkeypatch.setenv("VOILA_BASE_URL", "/")
    with pytest.raises(InputError, match="would hold up Voila"):
        open_viewer(make_state(), "itk")
    monkeypatch.setenv("PYTEST_VERSION", "9")
    with pytest.raises(InputError, match="would hold up a test run"):
        open_viewer(make_state(), "itk")
    assert itkwidgets == []


def test_itk_warns_and_gets_the_voxels_in_its_own_order(itkwidgets):
    state = make_state()
    with pytest.warns(UserWarning, match="from the internet.*may wait"):
        viewer = open_viewer(state, "itk")
    (images,) = itkwidgets
    grey, labels = state.scene.panels[0].layers
    for layer, (data, dims, scale) in ((grey, images["image"]), (labels, images["label_image"])):
        assert dims == ("z", "y", "x")
        assert np.array_equal(data.transpose()[::-1, ::-1], layer.codes)
        assert list(scale.values()) == pytest.approx(state.scene.display.grid.spacing_mm)
    assert viewer.shown == "the viewer"
    assert viewer.picture().startswith(PNG)
    with pytest.raises(InputError, match='one scan with labels; use backend="canvas"'):
        open_viewer(make_state(panels=2), "itk")
