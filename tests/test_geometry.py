import itertools

import numpy as np
import pytest

from medverse_nb.errors import GeometryError
from medverse_nb.geometry import (
    Grid,
    Reorientation,
    check_affine,
    orientation_of,
    overlap_of,
    placement,
    spacing_of,
    stretch_of,
)

ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SHAPE = (3, 4, 5)


def turned_affine(axes, signs, degrees=0.0):
    """Column i points along `signs[i]` times world axis `axes[i]`, with its own spacing."""
    linear = np.zeros((3, 3))
    for column, (axis, sign, spacing) in enumerate(zip(axes, signs, (0.9, 1.5, 4.0), strict=True)):
        linear[axis, column] = sign * spacing
    turn = np.radians(degrees)
    tilt = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilt @ linear, (-90, 12.5, 300)
    return affine


def grid(shape, spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def apply(matrix, point):
    return (matrix @ [*point, 1])[:3]


def test_there_are_48_orientations():
    assert len(ORIENTATIONS) == 48
    codes = {orientation_of(turned_affine(*each)) for each in ORIENTATIONS}
    assert len(codes) == 48


@pytest.mark.parametrize("degrees", [0, 12])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_reorientation_keeps_every_voxel_where_it_was(axes, signs, degrees):
    affine = turned_affine(axes, signs, degrees)
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turn = Reorientation.to_canonical(affine, SHAPE)
    canonical, canonical_affine = turn.apply(volume), turn.affine(affine)

    assert orientation_of(canonical_affine) == "RAS"
    assert np.array_equal(turn.undo(canonical), volume)
    for place in np.ndindex(SHAPE):
        (moved,) = np.argwhere(canonical == volume[place])
        assert np.allclose(apply(affine, place), apply(canonical_affine, moved))


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::7])
def test_leading_axes_stay_in_front(axes, signs):
    turn = Reorientation.to_canonical(turned_affine(axes, signs), SHAPE)
    stack = np.random.default_rng(0).normal(size=(2, 3, *SHAPE))
    canonical = turn.apply(stack)
    assert np.array_equal(canonical[1, 2], turn.apply(stack[1, 2]))
    assert np.array_equal(turn.undo(canonical), stack)


def test_spacing_and_orientation_of_a_known_affine():
    affine = turned_affine((2, 0, 1), (-1, 1, -1))
    assert spacing_of(affine) == pytest.approx((0.9, 1.5, 4.0))
    assert orientation_of(affine) == "IRP"


def test_grid_facts():
    box = grid((4, 5, 6), (2, 1, 0.5), (10, 0, -3))
    assert box.spacing_mm == (2, 1, 0.5)
    assert box.extent_mm == (8, 5, 3)
    assert box.centre_vox.tolist() == [1.5, 2, 2.5]
    assert box.centre_mm.tolist() == [13, 2, -1.75]


def test_box_lays_edges_on_edges():
    matrix = placement(grid((4, 6, 3)), grid((8, 6, 1)), "box")
    assert np.allclose(np.diag(matrix), [2, 1, 1 / 3, 1])
    assert np.allclose(apply(matrix, (0, 0, 0)), [0.5, 0, -1 / 3])
    assert np.allclose(apply(matrix, (-0.5, -0.5, -0.5)), -0.5)
    assert np.allclose(apply(matrix, (3.5, 5.5, 2.5)), [7.5, 5.5, 0.5])


def test_center_keeps_millimetres_and_ignores_the_origin():
    matrix = placement(grid((5, 5, 5), (2, 2, 2)), grid((11, 5, 5), origin=(500, 0, 7)), "center")
    assert np.allclose(apply(matrix, (2, 2, 2)), [5, 2, 2])
    assert np.allclose(apply(matrix, (0, 1, 2)), [1, 0, 2])


def test_world_takes_affines_at_their_word():
    target = grid((5, 5, 5), (2, 1, 1), (10, 0, 0))
    source = grid((9, 9, 9), (1, 1, 4), (4, -3, 2))
    matrix = placement(target, source, "world")
    assert np.allclose(apply(matrix, (0, 0, 0)), [6, 3, -0.5])
    assert np.allclose(apply(matrix, (1, 1, 2)), [8, 4, 0])


def test_world_of_a_rotated_source_is_exact_and_round_trips():
    source = Grid((9, 9, 9), turned_affine((0, 1, 2), (1, 1, 1), 20))
    target = grid((5, 5, 5), (2, 1, 1), (10, 0, 0))
    there, back = placement(target, source, "world"), placement(source, target, "world")
    assert np.allclose(there @ back, np.eye(4))
    point = (3, 1, 4)
    assert np.allclose(apply(source.affine, apply(there, point)), apply(target.affine, point))


def test_rounding_noise_leaves_an_axis_aligned_map():
    target = Grid((5, 5, 5), turned_affine((0, 1, 2), (1, 1, 1), 33))
    matrix = placement(target, Grid((7, 7, 7), target.affine), "world")
    assert np.count_nonzero(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) == 0


def test_an_unknown_align_is_refused():
    with pytest.raises(GeometryError, match="middle"):
        placement(grid((2, 2, 2)), grid((2, 2, 2)), "middle")


def test_stretch_is_the_ratio_of_extents():
    target, source = grid((10, 10, 10), (2, 1, 1)), grid((20, 5, 10), (0.5, 2, 2))
    assert stretch_of(target, source) == pytest.approx((2, 1, 0.5))


@pytest.mark.parametrize(
    ("align", "shift", "expected"),
    [("box", 100, 1), ("center", 100, 1), ("world", 0, 1), ("world", 8, 0.5), ("world", 16, 0)],
)
def test_overlap_is_the_share_of_the_target(align, shift, expected):
    target, source = grid((16, 16, 16)), grid((16, 16, 16), origin=(shift, 0, 0))
    assert overlap_of(target, source, align) == expected


def test_a_small_source_covers_little_of_a_large_target():
    assert overlap_of(grid((16, 16, 16)), grid((8, 8, 8)), "center") == 1 / 8
    assert overlap_of(grid((8, 8, 8)), grid((16, 16, 16)), "center") == 1


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "4x4"),
        (None, "4x4"),
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1, np.nan, 1, 1]), "non-finite"),
        (np.diag([1, np.inf, 1, 1]), "non-finite"),
        (np.diag([1, 1, 1, 2]), "0 0 0 1"),
        ("RAS", "numbers"),
        ([[1, 2], [3]], "numbers"),
    ],
)
def test_an_affine_that_maps_no_volume_is_refused(affine, message):
    with pytest.raises(GeometryError, match=message):
        check_affine(affine)


def test_a_sound_affine_passes_whatever_its_units():
    for scale in (1e-6, 1, 1e6):
        affine = turned_affine((1, 2, 0), (1, -1, 1), 30)
        affine[:3] *= scale
        assert np.array_equal(check_affine(affine.tolist()), affine)
