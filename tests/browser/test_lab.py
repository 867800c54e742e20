"""Viewers and explorers in JupyterLab, in a browser that reaches this machine only."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("jupyterlab", reason="needs jupyterlab")
pytest.importorskip("anywidget", reason="needs anywidget")
from lab import Lab
from screenshots import read_cells

SHAPE = (40, 30, 20)  # in the file
AFFINE = np.array([[0, 0, -3.0, 0], [-1.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
SHOWN = (20, 40, 30)  # as it is drawn: to the right, to the front, up
SCAN = f"""
import nibabel as nib
import numpy as np
import medverse_nb as mv
affine = np.array({AFFINE.tolist()})
i, j, k = np.ogrid[:40, :30, :20]
scan = nib.Nifti1Image((i + 2 * j + 5 * k).astype(np.float32), affine)
mask = nib.Nifti1Image(((i - 20) ** 2 + (j - 12) ** 2 + 4 * (k - 9) ** 2 < 64).astype(np.uint8), affine)
empty = nib.Nifti1Image(np.zeros({SHAPE}, np.uint8), affine)
"""
RUN = """
import medverse_nb as mv
session = mv.ICLSession({weights!r}, device="cpu", precision="float32")
session.add_context_folder({images!r}, {labels!r})
prediction = session.predict({scan!r}, record=True)
"""


def voxel_of(shown: tuple[int, ...]) -> tuple[int, ...]:
    """The file's voxel at a voxel of the picture, by nibabel alone."""
    upright = np.zeros(SHOWN, np.uint8)
    upright[shown] = 1
    ras = nib.orientations.axcodes2ornt("RAS")
    turn = nib.orientations.ornt_transform(ras, nib.io_orientation(AFFINE))
    ((place),) = np.argwhere(nib.orientations.apply_orientation(upright, turn))
    return tuple(int(at) for at in place)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def opened(lab, browser, request):
    """Open a notebook of these cells; at the end nothing may have gone wrong in it."""
    notebooks = []

    def open_cells(*cells: str, **size: int):
        name = f"{request.node.name.replace('[', '-').rstrip(']')}.ipynb"
        notebooks.append(lab.open(browser, name, list(cells), **size))
        return notebooks[-1]

    yield open_cells
    for notebook in notebooks:
        notebook.close()


@pytest.fixture
def run(cohort, tiny_weights) -> str:
    """A cell that predicts the cohort's scan with the random network, recorded."""
    return RUN.format(
        weights=str(tiny_weights), images=str(cohort.images), labels=str(cohort.labels),
        scan=str(cohort.scan),
    )  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_click_in_the_canvas_reaches_the_voxel_of_the_file(opened, axis):
    notebook = opened(SCAN, "viewer = mv.view(scan, mask, backend='canvas'); viewer")
    shown = [5, 6, 7]
    shown[axis] = notebook.ask("viewer.state.cursor")[axis]
    right, up = (at for a, at in enumerate(shown) if a != axis)
    notebook.page.mouse.click(*notebook.point(SHOWN, axis, right, up))
    notebook.until(f"viewer.state.cursor == {tuple(shown)}")
    i, j, k = voxel_of(tuple(shown))
    assert notebook.ask("tuple(map(int, viewer.state.voxel))") == (i, j, k)
    place = notebook.page.locator(".mv-place", has_text=f"voxel [{i}, {j}, {k}]")
    place.wait_for()
    value = f"{i + 2 * j + 5 * k:.4g}"
    assert value in notebook.page.locator(".mv-values").first.inner_text()


def test_the_slider_of_the_canvas_reaches_python(opened):
    notebook = opened(SCAN, "viewer = mv.view(scan, mask, backend='canvas'); viewer")
    notebook.page.get_by_label("Opacity of the overlay").fill("0.8")
    notebook.until("viewer.state.opacity == 0.8")


def test_a_drawing_comes_back_voxel_for_voxel(opened):
    notebook = opened(SCAN, "viewer = mv.view(scan, empty, edit=True, classes={'ball': 1}); viewer")
    notebook.press("Brush")
    notebook.page.get_by_label("Brush radius in voxels").fill("0")
    drawn = set()
    cursor = notebook.ask("viewer.state.cursor")
    for axis, (right, up) in enumerate([(3, 4), (0, 29), (19, 38)]):
        shown = [right, up]
        shown.insert(axis, cursor[axis])
        drawn.add(voxel_of(tuple(shown)))
        notebook.page.mouse.click(*notebook.point(SHOWN, axis, right, up))
        notebook.until(f"viewer.mask.values.sum() == {len(drawn)}")
    found = notebook.ask("np.argwhere(viewer.mask.values).tolist()")
    assert {tuple(place) for place in found} == drawn
    notebook.page.keyboard.press("Control+z")
    notebook.until(f"viewer.mask.values.sum() == {len(drawn) - 1}")


def test_steps_are_scrubbed_and_a_window_is_opened(opened, run):
    notebook = opened(run, "explorer = prediction.explore_steps(); explorer")
    assert notebook.ask("explorer.state.scale") == 2
    scale = notebook.page.locator(".widget-hslider", has_text="scale").get_by_role("slider")
    scale.focus()
    notebook.page.keyboard.press("ArrowLeft")
    notebook.until("explorer.state.scale == 1")
    notebook.page.locator(".widget-html", has_text="scale 1 of 2").wait_for()
    notebook.page.keyboard.press("ArrowRight")
    notebook.until("explorer.state.scale == 2")
    assert notebook.page.locator(".mv-box").count() == 0
    notebook.page.get_by_role("button", name="windows").click()
    notebook.page.locator(".mv-box").first.wait_for()
    low = notebook.ask("[box.low for box in explorer.state.slices.boxes if box.low[1] > 0][0]")
    notebook.page.mouse.click(*notebook.point((9, 10, 8), 0, low[1] - 0.5, 4))  # its left edge
    notebook.until("explorer.state.window is not None")
    notebook.page.locator(".mv-view").nth(1).wait_for()
    assert notebook.page.locator(".mv-view").count() == 2
    titles = notebook.ask("[panel.title for panel in explorer.state.window.scene.panels]")
    assert titles[:2] == ["target and answer", "coarser scale"]


def test_a_clicked_voxel_shows_where_its_block_looked(opened, run):
    notebook = opened(run, "explorer = prediction.explore_attention(); explorer", height=2400)
    shape = notebook.ask("explorer.state.slices.scene.display.shape")
    seen = set()
    for place in ((0, 0), (shape[0] - 1, shape[1] - 1)):
        notebook.page.mouse.click(*notebook.point(shape, 2, *place))
        notebook.until(f"explorer.state.slices.cursor[:2] == {place}")
        seen.add(notebook.ask("explorer.state.query"))
    assert len(seen) == 2
    notebook.page.locator(".mv-view").nth(1).wait_for()
    before = notebook.ask("explorer.state.caption")
    stage = notebook.page.locator(".widget-hslider", has_text="stage").get_by_role("slider")
    stage.focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.until("explorer.state.stage == 1")
    assert notebook.ask("explorer.state.caption") != before
    direction = notebook.page.locator(".widget-dropdown", has_text="direction").locator("select")
    direction.select_option("target to context")
    notebook.until("explorer.state.direction == 'target to context'")


def test_two_choices_of_context_are_run_and_compared(opened, run):
    notebook = opened(
        run, "explorer = session.explore_context(prediction.target); explorer", height=2400
    )
    assert set(notebook.ask("explorer.state.used")) == {"one", "two", "three"}
    notebook.press("run as A")
    notebook.until("explorer.state.a is not None and not explorer.state.job.running")
    notebook.page.get_by_label("two", exact=True).uncheck()
    notebook.until("explorer.state.used == ('one', 'three')")
    notebook.press("run as B")
    notebook.until("explorer.state.b is not None and not explorer.state.job.running")
    notebook.page.locator(".mv-view").first.wait_for()
    assert notebook.ask("explorer.state.b.names") == ("one", "three")
    notebook.press("influence")
    notebook.until("explorer.state.influence is not None and not explorer.state.job.running")
    notebook.page.get_by_text("influence, 2 pairs: one, three").wait_for()


def test_a_corrected_answer_becomes_a_pair_and_the_next_scan_is_predicted(opened, run, cohort):
    notebook = opened(run, "viewer = prediction.view(edit=True); viewer")
    pairs = notebook.ask("len(session.context.pairs)")
    shape = notebook.ask("viewer.state.scene.display.shape")
    notebook.press("Brush")
    notebook.page.get_by_label("Brush radius in voxels").fill("2")
    before = notebook.ask("viewer.mask.values.tolist()")
    notebook.page.mouse.click(*notebook.point(shape, 2, 1, 1))
    notebook.until("viewer.state.editor.can_undo")
    after = notebook.ask("viewer.mask.values.tolist()")
    assert after != before
    notebook.do("session.accept(prediction.with_mask(viewer.mask))")
    assert notebook.ask("len(session.context.pairs)") == pairs + 1
    kept = notebook.ask("session.context.pairs[-1].label.values.tolist()")
    assert kept == after
    notebook.do(f"following = session.predict({str(cohort.images / 'one_0000.nii.gz')!r})")
    assert notebook.ask("following.mask.shape") == (9, 10, 8)


@pytest.mark.parametrize("backend", ["niivue", "canvas"])
def test_a_cell_run_twenty_times_leaves_one_context_and_a_small_notebook(opened, backend):
    notebook = opened(SCAN, f"viewer = mv.view(scan, mask, backend='{backend}'); viewer")
    for _ in range(20):
        notebook.run_again(1)
    notebook.page.locator(".jp-OutputArea-output canvas").first.wait_for()
    notebook.page.wait_for_function("window.liveWebgl() <= 1")
    assert notebook.save() < 300_000


def test_niivue_shows_follows_and_gives_the_drawing_back(opened):
    pytest.importorskip("ipyniivue", reason="needs ipyniivue")
    notebook = opened(
        SCAN,
        "viewer = mv.view(scan, empty, edit=True, classes={'ball': 1}, backend='niivue'); viewer",
    )
    canvas = notebook.page.locator(".jp-OutputArea-output canvas").first
    canvas.wait_for()
    notebook.until("len(viewer._loaded) == 2")
    box = canvas.bounding_box()
    at = {"x": box["width"] / 6, "y": box["height"] / 2.2}
    before = notebook.ask("viewer.state.cursor")
    canvas.click(position=at)
    notebook.until(f"viewer.state.cursor != {before}")
    shown = notebook.ask("viewer.state.cursor")
    notebook.do("viewer.start_drawing(1)")
    notebook.page.wait_for_timeout(1000)
    canvas.click(position=at)
    notebook.do("viewer.fetch_drawing()")
    notebook.until("viewer.mask.values.any()")
    assert notebook.ask("np.argwhere(viewer.mask.values).tolist()") == [list(voxel_of(shown))]


def test_every_explorer_saves_a_small_notebook(opened, run):
    notebook = opened(
        run,
        "prediction.view()",
        "prediction.explore_steps()",
        "prediction.explore_attention()",
        "session.explore_context(prediction.target)",
    )
    notebook.page.locator(".mv-view").first.wait_for()
    assert notebook.save() < 300_000


def test_the_page_about_viewers_runs_as_it_stands(opened):
    pytest.importorskip("nilearn", reason="needs nilearn")
    notebook = opened(*read_cells(), height=6000)
    notebook.page.locator(".mv-view").nth(3).wait_for()
    assert notebook.ask("bool(prediction.score['dice'].min() > 0.5)")
