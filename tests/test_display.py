"""Which voxel stands behind a shown one: exact in every orientation, cut and skipped."""

from itertools import permutations, product

import dask.array as da
import numpy as np
import pytest

from medverse_nb import regions
from medverse_nb.errors import GeometryError, InputError
from medverse_nb.geometry import orientation_of
from medverse_nb.ui.display import Display, check_same_grid
from medverse_nb.volume import grid_of, make_volume

SHAPE = (3, 4, 5)
SPACING = np.diag([0.8, 1.25, 3.0])
AXIS_ALIGNED = [
    np.eye(3)[list(order)] * np.array(signs)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3))
]


def turn_about(axis: int, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = (a for a in range(3) if a != axis)
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return turn


OBLIQUE = [
    turn_about(2, 17) @ np.diag([-1, 1, -1]),
    turn_about(0, 45) @ turn_about(2, 45),  # the axes are a tie
    turn_about(1, 44.9) @ AXIS_ALIGNED[29],
    turn_about(0, -30) @ turn_about(1, 100) @ AXIS_ALIGNED[11],
]
DIRECTIONS = AXIS_ALIGNED + OBLIQUE


def numbered(directions: np.ndarray, shape=SHAPE, **kwargs):
    """Return a volume whose voxels hold their own flat index."""
    affine = np.eye(4)
    affine[:3, :3] = directions @ SPACING
    affine[:3, 3] = 11.1, -7, 300
    return make_volume(np.arange(np.prod(shape)).reshape(shape), affine, **kwargs)


def test_there_are_48_orientations():
    codes = {orientation_of(grid_of(numbered(d)).affine) for d in AXIS_ALIGNED}
    assert len(codes) == len(AXIS_ALIGNED) == 48


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_every_shown_voxel_is_the_one_it_says(directions):
    volume = numbered(directions)
    display = Display.of(grid_of(volume))
    shown = display.pick(display.view_of(volume))
    assert shown.shape == display.shape
    assert np.array_equal(shown, display.average(display.view_of(volume)))
    for cursor in np.ndindex(display.shape):
        voxel = display.voxel_of(cursor)
        assert volume.values[voxel] == shown[cursor]
        assert display.shown_of(voxel) == cursor
        there = display.source.affine @ [*voxel, 1]
        assert np.allclose(display.grid.affine @ [*cursor, 1], there)
        assert np.allclose(display.world_mm(cursor), there[:3])


def test_what_is_shown_runs_to_the_right_front_and_top():
    for directions in AXIS_ALIGNED:
        display = Display.of(grid_of(numbered(directions)))
        assert orientation_of(display.grid.affine) == "RAS"


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_roi_is_cut_from_the_array_and_goes_back_there(directions):
    volume = numbered(directions)
    roi = np.s_[1:3, :3, 2:4]
    display = Display.of(grid_of(volume), roi)
    shown = display.pick(display.view_of(volume))
    assert sorted(shown.ravel()) == sorted(volume.values[roi].ravel())
    region, back = display.in_array_order(shown)
    assert np.array_equal(back, volume.values[roi])
    assert np.array_equal(volume.values[region], volume.values[roi])
    for cursor in np.ndindex(display.shape):
        assert volume.values[display.voxel_of(cursor)] == shown[cursor]
        assert display.shown_of(display.voxel_of(cursor)) == cursor


@pytest.mark.parametrize("directions", DIRECTIONS[::7])
@pytest.mark.parametrize("limit", [1, 12, 29])
@pytest.mark.parametrize("roi", [None, np.s_[1:, 1:4, :4]])
def test_skipped_voxels_are_shown_by_the_one_amid_them(directions, limit, roi):
    volume = numbered(directions)
    display = Display.of(grid_of(volume), roi, limit)
    shown = display.pick(display.view_of(volume))
    assert shown.size <= limit
    behind = {cursor: [] for cursor in np.ndindex(display.shape)}
    for voxel in np.ndindex(*(volume.values[roi] if roi else volume.values).shape):
        first = [one.start or 0 for one in roi] if roi else [0, 0, 0]
        voxel = tuple(a + b for a, b in zip(voxel, first, strict=True))  # noqa: PLW2901
        behind[display.shown_of(voxel)].append(volume.values[voxel])
    average = display.average(display.view_of(volume))
    for cursor, values in behind.items():
        assert shown[cursor] == volume.values[display.voxel_of(cursor)]
        assert shown[cursor] in values  # each shown voxel stands for some, and for its own
        assert average[cursor] == pytest.approx(np.mean(values))
        assert display.shown_of(display.voxel_of(cursor)) == cursor


def test_the_finest_axis_is_thinned_first():
    volume = make_volume(np.zeros((64, 64, 16)), np.diag([0.5, 0.5, 3, 1]))
    display = Display.of(grid_of(volume), limit=16**3)
    assert display.step == (4, 4, 1)
    assert display.grid.spacing_mm == pytest.approx((2, 2, 3))
    assert not display.every_voxel


def test_a_thinned_grid_lies_over_the_voxels_it_stands_for():
    volume = make_volume(np.zeros((9, 9, 9)), np.diag([2.0, 2, 2, 1]))
    display = Display.of(grid_of(volume), limit=27)
    assert display.step == (3, 3, 3)
    assert np.allclose(display.grid.affine @ [0, 1, 2, 1], [2, 8, 14, 1])  # voxels 1, 4, 7


class Watched:
    """A view that keeps count of the largest region read from it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.largest = array, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, region):
        part = self.array[region]
        self.largest = max(self.largest, part.size)
        return part


@pytest.mark.parametrize("read", ["pick", "average"])
def test_a_large_volume_is_read_in_parts(monkeypatch, read):
    volume = numbered(np.eye(3), (20, 9, 8))
    display = Display.of(grid_of(volume), limit=100)
    whole = getattr(display, read)(volume.values)
    monkeypatch.setattr(regions, "SLAB_VOXELS", 4 * 9 * 8)
    watched = Watched(volume.values)
    assert np.array_equal(getattr(display, read)(watched), whole)
    assert watched.largest <= 4 * 9 * 8


def test_a_lazy_volume_is_computed_where_it_is_shown():
    volume = numbered(AXIS_ALIGNED[13])
    reads = []

    def block(values: np.ndarray) -> np.ndarray:
        reads.append(values.shape)
        return values

    lazy = volume.copy(data=da.from_array(volume.values, chunks=2).map_blocks(block, dtype=int))
    reads.clear()
    display = Display.of(grid_of(lazy), np.s_[:2, :2, :2])
    assert reads == []
    shown = display.pick(display.view_of(lazy))
    assert reads == [(2, 2, 2)]  # one chunk of 12
    assert np.array_equal(shown, display.pick(display.view_of(volume)))


def test_a_cursor_outside_comes_to_the_edge():
    display = Display.of(grid_of(numbered(np.eye(3))))
    assert display.clipped((-3, 2, 99)) == (0, 2, 4)
    assert display.clipped(np.array([1, 2, 3])) == (1, 2, 3)
    for wrong in [(1.5, 2, 3), (1, 2), "abc", None, (np.nan, 1, 1), (np.inf, 1, 1)]:
        with pytest.raises(InputError, match="three whole numbers"):
            display.clipped(wrong)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.s_[4:, :, :], "holds no voxel"),
        (np.s_[2:1, :, :], "holds no voxel"),
        (np.s_[::2, :, :], "stride"),
        (np.s_[0:2, 0:2], "three slices"),
        (np.s_[1, :, :], "three slices"),
        (5, "three slices"),
    ],
)
def test_a_roi_that_is_none_is_refused(roi, message):
    with pytest.raises(InputError, match=message):
        Display.of(grid_of(numbered(np.eye(3))), roi)


def test_a_roi_around_a_voxel_can_be_shown_whole():
    volume = numbered(AXIS_ALIGNED[21], (30, 40, 50))
    display = Display.of(grid_of(volume), limit=1000)
    for cursor in ((0, 0, 0), tuple(side - 1 for side in display.shape)):
        roi = display.roi_around(cursor, limit=1000)
        near = Display.of(grid_of(volume), roi, limit=1000)
        assert near.every_voxel
        assert near.shape == (10, 10, 10)
        at = near.shown_of(display.voxel_of(cursor))
        assert near.voxel_of(at) == display.voxel_of(cursor)


def test_skipped_voxels_have_no_way_back():
    display = Display.of(grid_of(numbered(np.eye(3))), limit=10)
    with pytest.raises(InputError, match="only every"):
        display.in_array_order(np.zeros(display.shape))


def test_another_grid_is_refused():
    grid = grid_of(numbered(np.eye(3)))
    display = Display.of(grid)
    with pytest.raises(GeometryError, match=r"label has the shape \(3, 4, 6\).*\(3, 4, 5\)"):
        display.view_of(numbered(np.eye(3), (3, 4, 6), name="label"))
    with pytest.raises(GeometryError, match=r"label lies elsewhere.*orientation LAS"):
        display.view_of(numbered(np.diag([-1, 1, 1]), name="label"))
    with pytest.raises(GeometryError, match=r"canonical order the volume has \(3, 4, 5\)"):
        display.view_of(np.zeros((4, 3, 5)))
    classes = make_volume(np.zeros((2, *SHAPE)), grid.affine, leading={"class": ["a", "b"]})
    with pytest.raises(GeometryError, match="cannot be shown"):
        display.view_of(classes)


def test_grids_may_differ_by_less_than_half_a_voxel():
    grid = grid_of(numbered(np.eye(3)))
    moved = grid.affine.copy()
    moved[0, 3] += 0.3
    check_same_grid(grid_of(make_volume(np.zeros(SHAPE), moved)), grid, "label")
    moved[0, 3] += 0.3
    with pytest.raises(GeometryError, match=r"0\.6 mm apart"):
        check_same_grid(grid_of(make_volume(np.zeros(SHAPE), moved)), grid, "label")
