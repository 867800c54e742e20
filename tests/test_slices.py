"""The state behind the viewers: a cursor in a scene, without any widget."""

import numpy as np
import pytest
import traitlets
from test_display import AXIS_ALIGNED, DIRECTIONS, numbered

from medverse_nb.classes import ClassSpec
from medverse_nb.errors import InputError
from medverse_nb.ui.display import Display
from medverse_nb.ui.editing import MaskEditor
from medverse_nb.ui.layers import grey_layer, label_layer
from medverse_nb.ui.scene import Box, Panel, Scene
from medverse_nb.ui.slices import SliceState
from medverse_nb.volume import grid_of, with_data

SPOT = ClassSpec(2, "spot", (2,), (200, 0, 0))
SHAPE = (6, 7, 8)


def make_state(directions=AXIS_ALIGNED[0], **traits) -> SliceState:
    """A numbered volume with a spot at its array's voxel (1, 2, 3), and the volume alone."""
    volume = numbered(directions, SHAPE, name="scan")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = 2
    display = Display.of(grid_of(volume))
    grey = grey_layer(display, volume)
    spot = label_layer(display, with_data(volume, mask, "mask"), (SPOT,))
    scene = Scene(display, (Panel("answer", (grey, spot)), Panel("scan", (grey,))))
    return SliceState(scene, **traits)


def test_it_looks_at_what_there_is():
    state = make_state()
    assert state.voxel == (1, 2, 3)
    assert state.values() == {
        "answer": {"scan": np.ravel_multi_index((1, 2, 3), SHAPE), "labels": "spot"},
        "scan": {"scan": np.ravel_multi_index((1, 2, 3), SHAPE)},
    }


@pytest.mark.parametrize("directions", DIRECTIONS[::6])
def test_a_click_reaches_the_voxel_of_the_array(directions):
    """As it would from a viewer: a plane, and a place in it."""
    state = make_state(directions)
    planes = state.planes()[0]
    for axis, (grey, spot) in enumerate(planes):
        (place,) = np.argwhere(spot)
        cursor = [*place]
        cursor.insert(axis, state.cursor[axis])
        state.cursor = tuple(int(at) for at in cursor)
        assert state.voxel == (1, 2, 3)
        assert state.values()["answer"]["labels"] == "spot"
        assert grey.shape == spot.shape
    affine = grid_of(numbered(directions, SHAPE)).affine
    assert np.allclose(state.world_mm, (affine @ [1, 2, 3, 1])[:3])


@pytest.mark.parametrize("directions", DIRECTIONS[::6])
def test_looking_at_a_voxel_of_the_array(directions):
    state = make_state(directions)
    for voxel in ((0, 0, 0), (5, 6, 7), (3, 1, 6)):
        state.look_at(voxel)
        assert state.voxel == voxel
        assert state.values()["scan"]["scan"] == np.ravel_multi_index(voxel, SHAPE)
    state.look_at((99, -5, 2))
    assert state.voxel == (5, 0, 2)


def test_the_cursor_stays_inside():
    state = make_state()
    state.cursor = (-1, 3, 100)
    assert state.cursor == (0, 3, 7)
    state.cursor = [np.int64(2), 2, 2]
    assert state.cursor == (2, 2, 2)
    assert {type(at) for at in state.cursor} == {int}
    state.move(0, 2)
    state.move(1, -9)
    assert state.cursor == (4, 0, 2)
    with pytest.raises(InputError, match="three whole numbers"):
        state.cursor = (1, 2)
    with pytest.raises(traitlets.TraitError):
        state.cursor = 5
    assert state.cursor == (4, 0, 2)


def test_planes_go_through_the_cursor_and_are_no_copies():
    state = make_state(cursor=(2, 3, 4))
    codes = state.scene.panels[0].layers[0].codes
    sagittal, coronal, axial = (layers[0] for layers in state.planes()[0])
    assert np.array_equal(sagittal, codes[2])
    assert np.array_equal(coronal, codes[:, 3])
    assert np.array_equal(axial, codes[:, :, 4])
    assert all(np.shares_memory(plane, codes) for plane in (sagittal, coronal, axial))
    (only,) = state.planes((1,))[1]
    assert np.array_equal(only[0], coronal)


def test_opacity_is_a_share():
    state = make_state(opacity=3.0)
    assert state.opacity == 1
    state.opacity = -1
    assert state.opacity == 0


def test_those_who_watch_are_told_once():
    state = make_state()
    told = []
    state.observe(lambda change: told.append((change["name"], change["new"])), ["cursor"])
    state.cursor = (5, 5, 5)
    state.cursor = (9, 5, 5)  # the same, once brought inside
    state.cursor = (5, 5, 5)
    assert told == [("cursor", (5, 5, 5))]


def test_another_scene_brings_the_cursor_inside():
    state = make_state(cursor=(5, 6, 7))
    small = numbered(np.eye(3), (3, 3, 3))
    display = Display.of(grid_of(small))
    seen = []
    state.observe(lambda _: seen.append(state.cursor), "scene")
    state.scene = Scene(display, (Panel("small", (grey_layer(display, small),)),))
    assert state.cursor == (2, 2, 2)
    assert seen == [(2, 2, 2)]  # who watches the scene finds it so
    assert list(state.values()) == ["small"]


def test_boxes_can_be_selected_while_they_are_there():
    one, two = Box((0, 0, 0), (2, 2, 2)), Box((2, 2, 2), (4, 4, 4))
    state = make_state(boxes=(one, two))
    state.selected = 1
    with pytest.raises(InputError, match="box 2 of 2"):
        state.selected = 2
    with pytest.raises(InputError, match="a tuple of Box"):
        state.boxes = ("box",)
    state.boxes = (one,)
    assert state.selected is None


def test_without_an_editor_nothing_can_be_drawn():
    state = make_state()
    for act in (state.undo, state.redo, lambda: state.paint([[1, 1, 1]], 0, 2)):
        with pytest.raises(InputError, match="open it with edit=True"):
            act()


def test_strokes_are_told():
    state = make_state()
    mask = numbered(np.eye(3), SHAPE) * 0
    state.editor = MaskEditor(mask, (SPOT,), state.scene.display)
    told = []
    state.observe(lambda change: told.append(change["new"]), "edits")
    assert state.paint([[2, 2, 2]], 0, 2, radius_vox=0) == 1
    assert state.paint([[2, 2, 2]], 0, 2, radius_vox=0) == 0  # there already: nobody is told
    assert state.undo()
    assert state.redo()
    assert not state.redo()
    assert told == [1, 2, 3]
    old, state.editor = state.editor, None
    old.undo()
    assert told == [1, 2, 3]
