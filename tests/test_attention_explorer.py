"""The attention explorer: which block asks, where it looks, and what the widget says of it."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medverse_nb import ICLSession
from medverse_nb.errors import InputError
from medverse_nb.evaluation.attention import block_numbers
from medverse_nb.inference.recorder import AUTOREGRESSIVE
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.weights import save_network
from medverse_nb.ui.attention import (
    CONTEXT_TO_TARGET,
    NOTE,
    TARGET_TO_CONTEXT,
    AttentionState,
)
from medverse_nb.ui.attention_explorer import draw_attention
from medverse_nb.ui.layers import to_codes

pytestmark = pytest.mark.usefixtures("one_thread")

P, T = 4, 64  # blocks an axis, blocks
PARTITIONS = pytest.mark.parametrize("partition", ["contiguous", "interleaved"])


@pytest.fixture
def scan(cohort):
    """A scan of three scales with permuted and flipped axes."""
    affine = np.array([[0, 0, -3, 9], [-1.5, 0, 0, 4], [0, 2, 0, 1], [0, 0, 0, 1.0]])
    path = cohort.root / "long.nii.gz"
    voxels = np.random.default_rng(5).random((24, 10, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def prediction(session, scan):
    return session.predict(scan, record=True)


@pytest.fixture
def state(prediction):
    return AttentionState(prediction)


def planted(prediction, partition, key, *, source=0):
    """Return the prediction as if every block looked at one block only."""
    attention = prediction.attention.copy(deep=True)
    attention.attrs["partition"] = partition
    for name, which in (("context_to_target", [source]), ("target_to_context", slice(None))):
        values = attention[name].values  # (class, window, stage, source or pair, query, key)
        values[np.isfinite(values)] = 0
        there = values[:, :, :, which, :, key]
        values[:, :, :, which, :, key] = np.where(np.isfinite(there), 1, np.nan)
    return replace(prediction, attention=attention)


def panels(state):
    return {panel.title.split(" (")[0]: panel for panel in state.maps.scene.panels}


def codes(state, title):
    return panels(state)[title].layers[-1].codes


def cut(partition, stage, block, side=8):
    """Return where a block lies in a window of 8, from the definition and not from the reader."""
    x, y, z = block // P**2, block // P % P, block % P
    mask = np.zeros((side,) * 3, bool)
    wide, size = 2**stage, side // P
    for at in np.ndindex(mask.shape):
        if partition == "contiguous":
            mine = tuple(a // size for a in at)
        else:
            mine = tuple(a // wide % P for a in at)
        mask[at] = mine == (x, y, z)
    return mask


# --- where it looks --------------------------------------------------------------------------------


@PARTITIONS
@pytest.mark.parametrize("stage", [0, 1])
def test_planted_attention_is_hot_on_its_block_and_nowhere_else(prediction, partition, stage):
    state = AttentionState(planted(prediction, partition, 37))
    state.stage = stage
    hot = cut(partition, stage, 37)
    assert hot.sum() == 8
    assert np.array_equal(codes(state, "looks at: mean of 3 pairs"), np.where(hot, 255, 0))
    assert not codes(state, "looks at: coarser scale").any()
    assert state.strongest == (0, 37, 1.0)
    assert "mean of 3 pairs (100%) and the coarser scale (0%)" in state.caption
    state.look_at_strongest()
    assert hot[state.maps.cursor]
    assert state.maps.values()["looks at: mean of 3 pairs (picture: one)"]["attention"] == 1


@PARTITIONS
def test_the_block_that_asks_is_marked_voxel_by_voxel(prediction, partition):
    state = AttentionState(planted(prediction, partition, 0))
    assert state.maps.cursor == state._place
    marked = cut(partition, 0, state.query)
    assert marked[state._place]
    assert np.array_equal(codes(state, "asks: target"), marked.astype(np.uint8))


def test_attention_to_the_coarser_scale_is_shown_over_it(prediction):
    state = AttentionState(planted(prediction, "contiguous", 5, source=1))
    assert not codes(state, "looks at: mean of 3 pairs").any()
    hot = cut("contiguous", 0, 5)
    assert np.array_equal(codes(state, "looks at: coarser scale"), np.where(hot, 255, 0))
    assert state.strongest == (1, 5, 1.0)
    crops = state.step.read_window(state._local(state.window))
    below = panels(state)["looks at: coarser scale"].layers[0].codes
    assert np.array_equal(below, to_codes(crops.ar_image, 0, 1))


def test_two_maps_share_one_scale_of_colours(prediction):
    changed = planted(prediction, "contiguous", 5)
    weights = changed.attention.context_to_target.values
    weights[:, 1:, :, 0, :, 5], weights[:, 1:, :, 1, :, 9] = 0.75, 0.25
    state = AttentionState(changed)
    assert codes(state, "looks at: mean of 3 pairs").max() == 255
    assert codes(state, "looks at: coarser scale").max() == 85
    assert [key.ends for key in state.maps.scene.legend if key.ends] == [("0", "0.75")]


def test_every_class_window_stage_and_pair_shows_its_own_weights(state):
    attention = state.attention
    for name in state.class_names:
        state.class_name = name
        for number in attention.window.values[-3:]:
            state.window = int(number)
            for stage in (0, 1):
                state.stage = stage
                place = {"class": name, "window": number, "stage": stage, "query": state.query}
                for direction in (CONTEXT_TO_TARGET, TARGET_TO_CONTEXT):
                    state.direction = direction
                    for pair in state.pairs:
                        state.pair = pair
                        if direction == CONTEXT_TO_TARGET:
                            expected = attention.context_to_target.sel(place).values
                        else:
                            there = attention.target_to_context.sel(place)
                            expected = there.sel(pair=[pair]).values
                        assert np.array_equal(
                            state._weights, expected.astype(np.float32), equal_nan=True
                        )


def test_pictures_below_are_what_the_window_read(state):
    state.pair = "three"
    crops = state.step.read_window(state._local(state.window))
    below = {title: panel.layers[0].codes for title, panel in panels(state).items()}
    assert np.array_equal(below["asks: target"], to_codes(crops.target, 0, 1))
    third = to_codes(crops.context_images[1], 0, 1)
    assert np.array_equal(below["looks at: mean of 3 pairs"], third)
    state.direction = TARGET_TO_CONTEXT
    below = {title: panel.layers[0].codes for title, panel in panels(state).items()}
    assert list(below) == ["asks: pair three", "looks at: target"]
    assert np.array_equal(below["asks: pair three"], third)
    state.pair = AUTOREGRESSIVE
    below = {title: panel.layers[0].codes for title, panel in panels(state).items()}
    assert np.array_equal(below["asks: coarser scale"], to_codes(crops.ar_image, 0, 1))


# --- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_clicking_moves_the_block(state, scale):
    """At every voxel: its window holds it, and its block is the one marked under it."""
    state.scale = scale
    shape, seen = state.step.image.shape, set()
    assert state.step.run.seen.shape == shape
    for voxel in np.argwhere(np.ones(shape))[::13]:
        state.slices.cursor = tuple(voxel.tolist())
        window = state.step.windows[state._local(state.window)]
        inside = tuple((voxel - window.start).tolist())
        assert state.maps.cursor == inside
        blocks = block_numbers(state.attention, window.sides, state.stage)
        assert state.query == blocks[inside]
        assert codes(state, "asks: target")[inside] == 1
        assert state.slices.boxes[0].name == f"window {state.window}"
        seen.add((state.window, state.query))
    assert len(seen) > 10 or scale < 3


def test_looking_around_in_the_maps_moves_no_block(state):
    query, codes_before = state.query, codes(state, "asks: target")
    state.maps.cursor = (7, 0, 7)
    assert state.query == query
    assert codes(state, "asks: target") is codes_before
    state.stage = 1
    assert state.maps.cursor == (7, 0, 7)


def test_another_scale_shows_the_same_place_and_its_own_windows(state):
    state.slices.cursor = (8, 20, 9)
    there = np.array(state.slices.world_mm)
    for scale in (1, 2, 3):
        state.scale = scale
        assert state.window in state.windows
        spacing = np.array(state.slices.scene.display.grid.spacing_mm)
        assert (np.abs(np.array(state.slices.world_mm) - there) <= spacing).all()
        assert ("looks at: coarser scale" in panels(state)) == (scale > 1)
    state.scale = 99
    assert state.scale == 3


def test_a_window_can_be_chosen(state):
    for number in state.windows:
        state.window = number
        assert state.window == number
        assert f"window {number}" in state.caption
    with pytest.raises(InputError, match="window 0 was not recorded at scale 3"):
        state.window = 0
    assert state.window == state.windows[-1]


def test_what_is_not_there_cannot_be_chosen(state):
    with pytest.raises(InputError, match="no class 'liver'; there are class 1, class 2"):
        state.class_name = "liver"
    with pytest.raises(InputError, match="no pair 'autoregressive' here; there are one"):
        state.pair = AUTOREGRESSIVE  # it has no picture of the mean
    state.stage = 99
    assert state.stage == 1


def test_pairs_are_those_that_can_ask(state):
    assert state.pairs == ("one", "three", "two")
    state.direction = TARGET_TO_CONTEXT
    assert state.pairs == ("one", "three", "two", AUTOREGRESSIVE)
    state.pair = AUTOREGRESSIVE
    state.scale = 1
    assert state.pairs == ("one", "three", "two")
    assert state.pair == "one"
    assert state.problem == ""


# --- where there is nothing ------------------------------------------------------------------------


def test_a_stage_without_attention_says_so(state):
    state.direction = TARGET_TO_CONTEXT
    assert state.problem == ""
    state.stage = 1  # the deepest
    assert state.problem == "at stage 1 the pair one takes nothing from the target"
    assert not codes(state, "looks at: target").any()
    assert codes(state, "asks: pair one").any()
    state.stage = 0
    assert state.problem == ""


def test_an_empty_window_says_so(prediction):
    changed = planted(prediction, "contiguous", 5)
    for name in ("context_to_target", "target_to_context"):
        changed.attention[name].values[:, 1] = np.nan
    state = AttentionState(changed)
    state.scale = 2
    state.window = 1
    assert state.problem == "window 1 was skipped as empty: there is no attention in it"
    assert np.isfinite(state.summary().loc[CONTEXT_TO_TARGET].values).all()  # of the others


def test_where_no_window_was_recorded_the_last_one_stays(session, scan):
    whole = session.predict(scan, classes=[1], record=True)
    last = int(whole.attention.window[-1])
    state = AttentionState(session.predict(scan, classes=[1], record={"windows": [0, last]}))
    assert (state.scale, state.window, state.windows) == (3, last, [last])
    assert "class" not in state.attention.dims
    query, shown, caption = state.query, state.maps.scene, state.caption
    state.slices.cursor = (0, 0, 0)
    assert f"no window over this voxel was recorded; those of scale 3 are [{last}]" in state.problem
    assert (state.window, state.query, state.caption) == (last, query, caption)
    assert state.maps.scene is shown
    assert [box.name for box in state.slices.boxes] == [f"window {last}"]
    state.stage = 1
    assert "no window over this voxel" in state.problem
    state.slices.selected = 0  # a click on the box's edge
    assert state.problem == ""
    state.scale = 2
    assert state.problem == "no window of scale 2 was recorded, only of [1, 3]"
    assert (state.window, state.query, state.maps) == (None, None, None)
    assert "no window of scale 2" in draw_attention(state)._supxlabel.get_text()
    assert state.summary().empty
    state.direction, state.stage = TARGET_TO_CONTEXT, 0
    state.scale = 1
    assert (state.window, state.problem) == (0, "")
    assert state.maps is not None


def test_volumes_that_are_gone_are_told(state, monkeypatch):
    def gone(self, number):
        raise InputError("scan.nii.gz is no longer what the run read")

    monkeypatch.setattr(type(state.step), "read_window", gone)
    state.scale = 2
    assert "no longer what the run read" in state.problem
    assert state.maps is None
    monkeypatch.undo()
    state.stage = 1
    assert state.problem == ""
    assert state.maps is not None


def test_what_was_not_recorded_says_how_to(session, scan):
    with pytest.raises(InputError, match="predict with record=True"):
        session.predict(scan, classes=[1]).explore_attention()
    with pytest.raises(InputError, match="no window was recorded"):
        session.predict(scan, classes=[1], record={"windows": []}).explore_attention()


def test_a_network_without_attention_says_so(cohort, tmp_path):
    torch.manual_seed(0)
    config = NetworkConfig("neuroverse3d", channels=(4, 4), window=8, output="sigmoid")
    save_network(ICLNetwork(config), tmp_path / "plain.safetensors")
    session = ICLSession(tmp_path / "plain.safetensors", device="cpu", precision="float32")
    session.add_context_folder(cohort.images, cohort.labels)
    prediction = session.predict(cohort.scan, classes=[1], record=True)
    with pytest.raises(InputError, match="has no attention that could be recorded"):
        prediction.explore_attention()


# --- numbers ---------------------------------------------------------------------------------------


def test_the_summary_of_planted_attention(prediction):
    changed = planted(prediction, "interleaved", 5)
    attention = changed.attention
    even = attention.target_to_context.values
    even[np.isfinite(even)] = 1 / T
    state = AttentionState(changed)
    for scale in (1, 3):
        state.scale = scale
        table = state.summary()
        assert table.index.tolist() == [
            (CONTEXT_TO_TARGET, 0), (CONTEXT_TO_TARGET, 1),
            (TARGET_TO_CONTEXT, 0), (TARGET_TO_CONTEXT, 1),
        ]  # fmt: skip
        assert np.allclose(table.loc[CONTEXT_TO_TARGET, "entropy"], 0)
        assert np.allclose(table.loc[CONTEXT_TO_TARGET, "diagonal"], 1 / T)  # block 5 alone
        assert np.allclose(table.loc[TARGET_TO_CONTEXT].loc[0], [1, 1 / T, 1 / T])
        assert table.loc[TARGET_TO_CONTEXT].loc[1, ["entropy", "diagonal"]].isna().all()


# --- the widget and its picture --------------------------------------------------------------------


def test_the_picture_has_a_row_for_each_plane(state):
    figure = draw_attention(state)
    axes = [axes for axes in figure.axes if axes.images]
    assert len(axes) == 3 * 4
    assert [a.get_title().replace("\n", " ") for a in axes[:4]] == [
        "target", "asks: target", "looks at: mean of 3 pairs (picture: one)",
        "looks at: coarser scale",
    ]  # fmt: skip
    said = figure._supxlabel.get_text().replace("\n", " ")
    assert NOTE in said
    assert state.caption in said


def test_the_explorer_is_a_picture_without_a_notebook(prediction):
    explorer = prediction.explore_attention()
    assert explorer.backend == "static"
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert "scale 3 of 3, window" in data["text/plain"]


def test_the_widget_and_the_state_say_the_same(prediction):
    changed = planted(prediction, "contiguous", 5)
    coarse = changed.attention.scale.values == 2
    changed.attention.target_to_context.values[:, coarse] = 1 / T
    explorer = changed.explore_attention("canvas")
    state = explorer.state
    sliders, choices, planes, caption, below, note, numbers = explorer.widget.children
    scale, stage, named = sliders.children
    direction, pair, strongest, table = choices.children
    assert caption.value == state.caption
    assert "What it cannot show: which context pair helped" in note.value
    assert planes.state is state.slices
    assert below.children[0].state is state.maps
    stage.value = 1
    assert state.stage == 1
    direction.value = TARGET_TO_CONTEXT
    pair.value = AUTOREGRESSIVE
    assert (state.direction, state.pair) == (TARGET_TO_CONTEXT, AUTOREGRESSIVE)
    assert "takes nothing" in caption.value
    scale.value = 1
    assert (pair.options, pair.value, state.pair) == (state.pairs, "one", "one")
    pair.value = "two"
    scale.value = 2  # more pairs are offered; the chosen one stays
    assert (pair.options, pair.value, state.pair) == (state.pairs, "two", "two")
    stage.value = 0
    named.value = "class 2"
    assert state.class_name == "class 2"
    before = caption.value
    planes._on_message(None, {"type": "cursor", "cursor": [0, 0, 0]}, [])
    assert caption.value != before
    strongest.click()
    assert state._blocks()[state.maps.cursor] == state.strongest[1]
    assert numbers.value == ""
    table.value = True
    assert "entropy" in numbers.value
    shown = numbers.value
    scale.value = 3
    assert numbers.value != shown
    explorer.close()
    explorer.close()
    assert "image/png" in explorer._repr_mimebundle_()[0]


def test_names_are_no_markup(session, scan):
    (pair, *_) = session.context.pairs
    session.add_context(pair.image, pair.label, name="<b>bold</b>")
    explorer = session.predict(scan, classes=[1], record=True).explore_attention("canvas")
    explorer.state.direction = TARGET_TO_CONTEXT
    explorer.state.pair = "<b>bold</b>"
    caption = explorer.widget.children[3].value
    assert "<b>" not in caption
    assert "&lt;b&gt;bold" in caption
    explorer.close()


def test_an_explorer_has_no_other_backend(prediction):
    with pytest.raises(InputError, match='is not "auto", "canvas" or "static"'):
        prediction.explore_attention("niivue")
