"""Drawing on a mask: which voxels a stroke takes, the way back, and what lies between slices."""

from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
from test_display import DIRECTIONS, numbered

from medverse_nb.classes import ClassSpec
from medverse_nb.errors import GeometryError, InputError
from medverse_nb.ui import editing
from medverse_nb.ui.display import Display
from medverse_nb.ui.editing import MaskEditor
from medverse_nb.ui.shapes import between, rasterise
from medverse_nb.volume import affine_of, grid_of, make_volume, with_data

CLASSES = (ClassSpec(2, "two", (2,), (200, 0, 0)), ClassSpec(5, "five", (5,), (0, 200, 0)))
SHAPE = (9, 10, 11)
UNTURNED = np.eye(4)


def make_editor(shape=SHAPE, affine=UNTURNED, *, roi=None, dtype=np.uint8, image=None):
    mask = make_volume(np.zeros(shape, dtype), affine, name="mask")
    return MaskEditor(mask, CLASSES, Display.of(grid_of(mask), roi), image=image)


# --- which voxels a brush takes ---------------------------------------------------------------


def drawn(path, shape, radius, spacing=(1.0, 1.0)) -> np.ndarray:
    region, inside = rasterise(np.asarray(path, float), shape, radius, spacing)
    plane = np.zeros(shape, bool)
    plane[region] = inside
    return plane


def as_text(plane: np.ndarray) -> list[str]:
    return ["".join(".#"[int(voxel)] for voxel in row) for row in plane]


def test_a_dot_is_round():
    assert as_text(drawn([[2, 2]], (5, 5), 1)) == [".....", "..#..", ".###.", "..#..", "....."]
    assert as_text(drawn([[2, 2]], (5, 5), 2)) == ["..#..", ".###.", "#####", ".###.", "..#.."]
    assert as_text(drawn([[0, 4]], (3, 5), 1)) == ["...##", "....#", "....."]


def test_a_thin_line_has_no_gap():
    assert as_text(drawn([[0, 0], [3, 3]], (4, 4), 0)) == ["#...", ".#..", "..#.", "...#"]
    assert as_text(drawn([[1, 0], [1, 5]], (3, 6), 0)) == ["......", "######", "......"]
    steep = drawn([[0, 0], [9, 3]], (10, 4), 0)
    assert steep.any(axis=1).all()
    assert (np.abs(np.diff(np.argwhere(steep), axis=0)) <= 1).all()


def test_a_brush_is_round_in_millimetres():
    """Voxels 1 mm by 3 mm: as far along each axis in mm, and so fewer along the long side."""
    plane = drawn([[10, 5]], (21, 11), 6, (1.0, 3.0))
    assert plane[:, 5].sum() == 13
    assert plane[10].sum() == 5
    for at in np.argwhere(plane):
        assert np.hypot(at[0] - 10, 3 * (at[1] - 5)) <= 6


@pytest.mark.parametrize("seed", range(6))
def test_a_stroke_takes_what_lies_near_its_path(seed):
    rng = np.random.default_rng(seed)
    path = rng.uniform(-4, 24, (5, 2))
    radius, spacing = rng.uniform(0.6, 5), (1.0, rng.choice([0.5, 1, 2.5]))
    plane = drawn(path, (20, 18), radius, spacing)
    side = np.array(spacing) / min(spacing)
    near = np.full(plane.shape, np.inf)
    for start, end in pairwise(path):
        for share in np.linspace(0, 1, 400):
            point = start + share * (end - start)
            off = (np.indices(plane.shape).T - point) * side
            near = np.minimum(near, np.hypot(*off.T))
    assert plane[near < radius - 0.1].all()
    assert not plane[near > max(radius, side.max()) + 0.1].any()


def test_a_path_outside_takes_nothing():
    assert not drawn([[-30, -30], [-10, 50]], (6, 6), 2).any()
    assert drawn([[-3, 2], [-2, 2]], (6, 6), 2.1).sum() == 1


# --- from a stroke to the mask's array ----------------------------------------------------------


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_stroke_lands_on_the_voxels_of_the_array(directions):
    volume = numbered(directions)
    mask = with_data(volume, np.zeros(volume.shape, np.uint8), "mask")
    editor = MaskEditor(mask, CLASSES, Display.of(grid_of(volume)))
    rng = np.random.default_rng(0)
    expected = np.zeros(volume.shape, np.uint8)
    for axis in range(3):
        cursor = [int(rng.integers(side)) for side in editor.display.shape]
        editor.paint([cursor], axis, 5, radius_vox=0)
        expected[editor.display.voxel_of(tuple(cursor))] = 5
    assert np.array_equal(editor.mask.values, expected)
    assert np.allclose(affine_of(editor.mask), affine_of(volume))
    assert editor.mask.dims == volume.dims
    shown = editor.display.pick(editor.display.view_of(editor.mask))
    assert np.array_equal(editor.codes, np.where(shown == 5, 2, 0))


def test_a_stroke_stays_on_its_slice():
    editor = make_editor()
    changed = editor.paint([[4, 2, 3], [4, 6, 3]], 0, 2, radius_vox=2)
    mask = editor.mask.values
    assert changed == mask.astype(bool).sum() > 0
    assert set(np.argwhere(mask)[:, 0]) == {4}
    assert set(np.unique(mask)) == {0, 2}


def test_the_eraser_takes_any_class():
    editor = make_editor()
    editor.paint([[4, 4, 4]], 2, 2, radius_vox=3)
    editor.paint([[4, 4, 5]], 2, 5, radius_vox=3)
    editor.paint([[4, 4, 4]], 2, 2, radius_vox=1, mode="eraser")
    mask = editor.mask.values
    assert (mask[4, 3:6, 4] == 0).all()
    assert mask[4, 2, 4] == 2
    assert mask[4, 4, 5] == 5


def test_the_threshold_brush_takes_only_values_within():
    image = make_volume(np.indices(SHAPE)[0].astype(float), np.diag([-1.0, 1, 1, 1]))
    mask = make_volume(np.zeros(SHAPE, np.uint8), np.diag([-1.0, 1, 1, 1]))
    for roi in (None, np.s_[2:, 1:, :]):
        display = Display.of(grid_of(mask), roi)
        editor = MaskEditor(mask, CLASSES, display, image=image)
        middle = [side // 2 for side in display.shape]
        editor.paint([middle], 2, 2, radius_vox=9, mode="threshold", limits=(3, 4))
        assert set(np.argwhere(editor.mask.values)[:, 0]) == {3, 4}


def test_only_the_roi_changes():
    editor = make_editor(roi=np.s_[2:6, 3:8, 1:9], affine=np.diag([1.0, -1, 1, 1]))
    corner = [0, 0, 0]
    editor.paint([corner], 1, 5, radius_vox=20)
    mask = editor.mask.values
    assert mask[2:6, 7, 1:9].all()  # the canonical front is the array's back
    assert mask.astype(bool).sum() == 4 * 8


def test_a_lazy_mask_stays_lazy_outside():
    reads = []

    def block(values):
        reads.append(values.shape)
        return values

    voxels = np.arange(1000, dtype=np.uint16).reshape(10, 10, 10) % 3
    chunks = da.from_array(voxels, chunks=5).map_blocks(block, dtype=np.uint16)
    mask = make_volume(chunks, np.eye(4), name="mask")
    reads.clear()
    editor = MaskEditor(mask, CLASSES, Display.of(grid_of(mask), np.s_[:4, :4, :4]))
    editor.paint([[1, 1, 1]], 0, 5, radius_vox=0)
    changed = editor.mask
    assert reads == [(5, 5, 5)]
    assert isinstance(changed.data, da.Array)
    voxels = voxels.copy()
    voxels[1, 1, 1] = 5
    assert np.array_equal(changed.values, voxels)
    assert editor.layer.value_at((1, 1, 1)) == "five"
    assert editor.layer.value_at((9, 9, 9)) == editor.layer.names.get(int(voxels[9, 9, 9]), "")


def test_the_given_mask_is_not_touched_and_other_numbers_stay():
    voxels = np.full(SHAPE, 9, np.uint8)
    mask = make_volume(voxels, np.eye(4), name="mask")
    editor = MaskEditor(mask, CLASSES, Display.of(grid_of(mask)))
    editor.paint([[1, 1, 1]], 0, 2, radius_vox=0)
    assert (mask.values == 9).all()
    changed = editor.mask
    assert (changed.values == 9).sum() == voxels.size - 1
    changed.values[:] = 0
    assert (editor.mask.values == 9).any()  # it gave a copy


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.uint8, np.uint16), (np.float32, np.uint16), (bool, np.uint16), (np.int32, np.int32)],
)
def test_the_mask_can_hold_its_classes(dtype, expected):
    mask = make_volume(np.zeros(SHAPE, dtype), np.eye(4))
    classes = (ClassSpec(300, "many", (300,), (1, 2, 3)),)
    editor = MaskEditor(mask, classes, Display.of(grid_of(mask)))
    editor.paint([[0, 0, 0]], 0, 300)
    assert editor.mask.dtype == expected
    assert editor.mask.values.max() == 300


# --- back and forth -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_undo_and_redo_retrace_every_step(seed):
    rng = np.random.default_rng(seed)
    editor = make_editor()
    states = [editor.mask.values]
    while len(states) < 8:
        axis = int(rng.integers(3))
        path = rng.uniform(0, 9, (3, 3))
        path[:, axis] = int(rng.integers(9))
        mode = "eraser" if rng.random() < 0.3 else "brush"
        number = int(rng.choice([2, 5]))
        if editor.paint(path, axis, number, radius_vox=float(rng.uniform(0, 3)), mode=mode):
            states.append(editor.mask.values)
    for _ in range(2):
        for state in reversed(states[:-1]):
            assert editor.undo()
            assert np.array_equal(editor.mask.values, state)
        assert not editor.undo()
        for state in states[1:]:
            assert editor.redo()
            assert np.array_equal(editor.mask.values, state)
        assert not editor.redo()
    codes = editor.display.pick(editor.display.view_of(editor.mask))
    assert np.array_equal(editor.codes, np.where(codes == 2, 1, np.where(codes == 5, 2, 0)))


def test_a_new_stroke_ends_what_could_be_redone():
    editor = make_editor()
    editor.paint([[1, 1, 1]], 0, 2)
    editor.undo()
    editor.paint([[2, 2, 2]], 0, 2)
    assert not editor.can_redo
    assert editor.can_undo


def test_history_is_bounded(monkeypatch):
    monkeypatch.setattr(editing, "HISTORY_VOXELS", 10)
    editor = make_editor()
    for index in range(9):
        assert editor.paint([[index, 1, 1], [index, 3, 1]], 0, 2, radius_vox=0) == 3
    undone = 0
    while editor.undo():
        undone += 1
    assert undone == 3
    assert editor.paint([[4, 5, 5]], 0, 5, radius_vox=4) > 10
    assert editor.undo()  # the last change always


def test_a_drawing_from_elsewhere_is_one_change():
    editor = make_editor()
    editor.paint([[1, 1, 1]], 0, 2, radius_vox=2)
    codes = editor.codes.copy()
    codes[5:7, 5:7, 5:7] = 2
    assert editor.replace(codes) == 8
    assert (editor.mask.values[5:7, 5:7, 5:7] == 5).all()
    assert editor.replace(codes) == 0
    editor.undo()
    assert not (editor.mask.values == 5).any()
    assert (editor.mask.values == 2).any()
    with pytest.raises(InputError, match="the drawing has 3"):
        editor.replace(np.full(SHAPE, 3, np.uint8))
    with pytest.raises(InputError, match="of shape"):
        editor.replace(codes[1:])


# --- between slices -------------------------------------------------------------------------------


def disc(shape, centre, radius) -> np.ndarray:
    away = np.indices(shape).T - np.asarray(centre)
    return np.hypot(*away.T) <= radius


def test_between_two_like_shapes_lies_the_same():
    one = disc((40, 40), (20, 20), 8)
    for shape in between(one, one, 5, (1, 1)):
        assert np.array_equal(shape, one)


def test_a_shape_grows_and_moves_evenly():
    shapes = list(between(disc((60, 60), (15, 15), 6), disc((60, 60), (45, 40), 12), 4, (1, 1)))
    assert len(shapes) == 3
    for step, shape in enumerate(shapes, 1):
        share = step / 4
        expected = disc((60, 60), (15 + 30 * share, 15 + 25 * share), 6 + 6 * share)
        overlap = 2 * (shape & expected).sum() / (shape.sum() + expected.sum())
        assert overlap > 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_lies_between_slices_drawn_on_is_filled(axis):
    editor = make_editor((20, 20, 20))
    centre = [10, 10, 10]
    for index, radius in ((3, 3), (9, 6), (15, 3)):
        centre[axis] = index
        editor.paint([centre], axis, 2, radius_vox=radius)
    editor.paint([[10 if a != axis else 6 for a in range(3)]], axis, 5, radius_vox=1)  # kept
    assert editor.fill_between(axis, 2) > 100
    stack = np.moveaxis(editor.mask.values, axis, 0)
    sizes = [(plane == 2).sum() for plane in stack]
    assert sizes[:3] == [0, 0, 0]
    assert sizes[16:] == [0] * 4
    assert sizes[3] < sizes[5] < sizes[8] <= sizes[9] >= sizes[10] > sizes[13] > 0
    assert (stack[6] == 5).sum() == 5
    assert editor.undo()
    assert (np.moveaxis(editor.mask.values, axis, 0)[4] == 0).all()


def test_named_slices_are_filled_without_having_been_drawn_on():
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2, 3:6, 3:6] = voxels[8, 3:6, 3:6] = 2
    voxels[5, 0, 0] = 2  # between: not of the shape, and so gone
    mask = make_volume(voxels, np.eye(4))
    editor = MaskEditor(mask, CLASSES, Display.of(grid_of(mask)))
    with pytest.raises(InputError, match="two slices or more"):
        editor.fill_between(0, 2)
    assert editor.fill_between(0, 2, slices=(2, 8)) == 5 * 9 + 1
    assert (editor.mask.values[2:9, 3:6, 3:6] == 2).all()
    assert editor.mask.values[5, 0, 0] == 0


# --- what cannot be drawn --------------------------------------------------------------------------


def test_a_thinned_view_is_refused_with_a_remedy():
    mask = make_volume(np.zeros((40, 40, 40), np.uint8), np.eye(4))
    display = Display.of(grid_of(mask), limit=20**3)
    with pytest.raises(InputError, match=r"full resolution, such as roi=np.s_\[(.*)\]") as caught:
        MaskEditor(mask, CLASSES, display)
    slices = str(caught.value).split("np.s_[")[1].rstrip("]").split(", ")
    roi = tuple(slice(*map(int, one.split(":"))) for one in slices)
    MaskEditor(mask, CLASSES, Display.of(grid_of(mask), roi, limit=256**3)).paint([[1, 1, 1]], 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 1, 1]], 3, 2), "axis must be"),
        (([[1, 1, 1]], 0, 4), "4 is not a class; the classes are"),
        (([[1, 1, 1], [2, 1, 1]], 0, 2), "on one slice"),
        (([[9, 1, 1]], 0, 2), "on one slice"),
        (([], 0, 2), r"\(n, 3\) shown voxels"),
        (([[1, 2]], 0, 2), r"\(n, 3\) shown voxels"),
        (("abc", 0, 2), r"\(n, 3\) shown voxels"),
        (([[1, np.nan, 1]], 0, 2), "finite"),
    ],
)
def test_bad_strokes_are_refused(arguments, message):
    editor = make_editor()
    with pytest.raises(InputError, match=message):
        editor.paint(*arguments)
    assert editor.version == 0


def test_bad_brushes_are_refused():
    editor = make_editor()
    for wrong in (-1, 1e9, np.nan):
        with pytest.raises(InputError, match="radius_vox must lie in 0 to 100"):
            editor.paint([[1, 1, 1]], 0, 2, radius_vox=wrong)
    with pytest.raises(InputError, match="is not one of"):
        editor.paint([[1, 1, 1]], 0, 2, mode="spray")
    with pytest.raises(InputError, match="needs the scan"):
        editor.paint([[1, 1, 1]], 0, 2, mode="threshold", limits=(0, 1))
    editor = make_editor(image=make_volume(np.zeros(SHAPE), np.eye(4)))
    for limits in (None, (2, 1), (np.nan, 1)):
        with pytest.raises(InputError, match=r"needs limits \(low, high\)"):
            editor.paint([[1, 1, 1]], 0, 2, mode="threshold", limits=limits)


def test_a_mask_that_is_none_is_refused():
    mask = make_volume(np.full(SHAPE, 0.5), np.eye(4))
    display = Display.of(grid_of(mask))
    with pytest.raises(InputError, match="fractions"):
        MaskEditor(mask, CLASSES, display)
    with pytest.raises(InputError, match="nothing to draw"):
        MaskEditor(mask, (), display)
    with pytest.raises(GeometryError, match="shape"):
        MaskEditor(make_volume(np.zeros((2, 2, 2)), np.eye(4)), CLASSES, display)
