"""The step explorer's state: scales, classes, windows, and what a window read."""

import nibabel as nib
import numpy as np
import pytest
import traitlets

from medverse_nb.errors import InputError
from medverse_nb.resampling import resize
from medverse_nb.ui.layers import to_codes
from medverse_nb.ui.step_explorer import draw_steps
from medverse_nb.ui.steps import MOST_PAIRS, StepsState

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def prediction(session, cohort):
    """Two classes at three scales of a scan with permuted and flipped axes, and a truth."""
    affine = np.array([[0, 0, -3, 9], [-1.5, 0, 0, 4], [0, 2, 0, 1], [0, 0, 0, 1.0]])
    path = cohort.root / "long.nii.gz"
    voxels = np.random.default_rng(5).random((24, 10, 9), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    truth = np.zeros((24, 10, 9), np.uint8)
    truth[8:16] = 1
    return session.predict(path, truth=truth, record=True)


@pytest.fixture
def state(prediction):
    return StepsState(prediction)


def titles(state: StepsState) -> list[str]:
    return [panel.title for panel in state.slices.scene.panels]


def codes(state: StepsState, title: str) -> np.ndarray:
    (panel,) = (p for p in state.slices.scene.panels if p.title == title)
    return panel.layers[-1].codes


def test_it_opens_at_the_answer(state, prediction):
    assert (state.scale, state.scales, state.class_name) == (3, 3, "class 1")
    assert state.class_names == ["class 1", "class 2"]
    assert titles(state) == ["scan", "answer", "change", "error"]
    assert state.window is None
    shown = to_codes(state.step.prediction.values, 0, 1)
    assert np.array_equal(codes(state, "answer"), shown)


def test_scales_show_their_own_volumes(state):
    for scale in (1, 2, 3):
        state.scale = scale
        assert state.step.scale == scale
        assert state.slices.scene.display.shape == state.step.image.shape
        assert np.array_equal(codes(state, "scan"), to_codes(state.step.image.values, 0, 1))
        assert ("change" in titles(state)) == (scale > 1)
        assert f"scale {scale} of 3" in state.caption
    state.scale = 99
    assert state.scale == 3
    state.scale = -1
    assert state.scale == 1


def test_another_scale_shows_the_same_place(state):
    state.slices.cursor = (8, 20, 9)
    there = np.array(state.slices.world_mm)
    for scale in (1, 2, 3):
        state.scale = scale
        spacing = np.array(state.slices.scene.display.grid.spacing_mm)
        assert (np.abs(np.array(state.slices.world_mm) - there) <= spacing).all()


def test_classes_show_their_own_answers(state):
    first = codes(state, "answer").copy()
    state.class_name = "class 2"
    assert state.step.class_name == "class 2"
    assert not np.array_equal(codes(state, "answer"), first)
    with pytest.raises(InputError, match="no class 'liver'; there are class 1, class 2"):
        state.class_name = "liver"
    assert state.class_name == "class 2"


def test_change_and_error_have_their_signs(state):
    coarser, step = state.prediction.steps[1], state.step
    answer, truth = step.prediction.values, step.truth.values
    error = codes(state, "error").astype(int) - 128
    assert np.array_equal(error, np.rint(127 * (answer - truth)))
    assert error.min() < 0 < error.max()
    enlarged = resize(coarser.prediction.values, step.image.shape)
    change = np.rint(127 * (answer - enlarged)).astype(int)
    assert np.array_equal(codes(state, "change").astype(int) - 128, change)


def test_without_a_truth_there_is_no_error(session, cohort):
    state = StepsState(session.predict(cohort.scan, record=True))
    assert "error" not in titles(state)


def test_windows_cover_the_scale_and_end_with_it(state):
    assert state.slices.boxes == ()
    state.show_windows = True
    shape = state.step.image.shape
    covered = np.zeros(shape, bool)
    assert len(state.slices.boxes) == len(state.step.windows) > 1
    for box in state.slices.boxes:
        assert all(
            0 <= low < high <= n for low, high, n in zip(box.low, box.high, shape, strict=True)
        )
        covered[tuple(slice(int(a), int(b)) for a, b in zip(box.low, box.high, strict=True))] = True
    assert covered.all()
    state.scale = 1
    assert len(state.slices.boxes) == 1
    state.show_windows = False
    assert state.slices.boxes == ()


def test_a_window_shows_what_it_read(state):
    state.select(1)
    assert state.show_windows
    crops = state.step.read_window(1)
    panels = {panel.title: panel for panel in state.window.scene.panels}
    assert list(panels) == [
        "target and answer", "coarser scale", "pair one", "pair three", "pair two",
    ]  # fmt: skip
    image, label = panels["pair three"].layers
    assert np.array_equal(image.codes, to_codes(crops.context_images[1], 0, 1))
    assert np.array_equal(label.codes, to_codes(crops.context_labels[1], 0, 1))
    low = state.slices.boxes[1].low
    corner = state.slices.scene.display.grid.affine @ [*low, 1]
    assert np.allclose(state.window.scene.display.grid.affine[:, 3], corner)
    state.scale = 1
    assert state.window is None
    assert state.slices.selected is None
    state.select(0)
    assert "coarser scale" not in [panel.title for panel in state.window.scene.panels]
    state.select(None)
    assert state.window is None


def test_a_click_on_a_box_opens_its_window(state):
    state.show_windows = True
    state.slices.selected = 0
    assert state.window is not None
    with pytest.raises((InputError, traitlets.TraitError)):
        state.select(999)


def test_of_many_pairs_some_are_shown(session, cohort):
    (pair, *_) = session.context.pairs
    for number in range(MOST_PAIRS):
        session.add_context(pair.image, pair.label, name=f"more-{number}")
    state = StepsState(session.predict(cohort.scan, record=True))
    state.select(0)
    shown = [p.title for p in state.window.scene.panels if p.title.startswith("pair")]
    assert len(shown) == MOST_PAIRS < len(session.context)


def test_a_run_that_kept_nothing_says_how_to(session, cohort):
    with pytest.raises(InputError, match="predict with record=True"):
        StepsState(session.predict(cohort.scan))


# --- the widget and its picture --------------------------------------------------------------------


def test_the_picture_has_a_row_for_each_scale(state):
    axes = [axes for axes in draw_steps(state).axes if axes.images]
    assert [a.get_title() for a in axes if a.get_title().startswith("scale")] == [
        f"scale {step.scale}, " + "×".join(map(str, step.image.shape))
        for step in state.prediction.steps[:3]
    ]
    assert len(axes) == 3 * 4 - 1  # the first scale changes nothing


def test_the_explorer_is_a_picture_without_a_notebook(prediction):
    explorer = prediction.explore_steps()
    assert explorer.backend == "static"
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert "scale 3 of 3" in data["text/plain"]


def test_the_widget_and_the_state_say_the_same(prediction):
    explorer = prediction.explore_steps("canvas")
    controls, caption, planes, below = explorer.widget.children
    play, scale, chosen, windows = controls.children
    scale.value = 2
    assert explorer.state.scale == 2
    assert "scale 2 of 3" in caption.value
    play.value = 3
    assert (explorer.state.scale, scale.value) == (3, 3)
    chosen.value = "class 2"
    assert explorer.state.class_name == "class 2"
    windows.value = True
    assert len(planes.state.boxes) == len(explorer.state.step.windows)
    planes.state.selected = 1
    assert "window 1 of scale 3" in below.children[0].value
    assert below.children[1].state is explorer.state.window
    scale.value = 1
    assert below.children == ()
    explorer.close()
    explorer.close()
    assert "image/png" in explorer._repr_mimebundle_()[0]


def test_an_explorer_has_no_other_backend(prediction):
    with pytest.raises(InputError, match='is not "auto", "canvas" or "static"'):
        prediction.explore_steps("niivue")
