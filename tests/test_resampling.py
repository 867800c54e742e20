import numpy as np
import pytest
import torch

from medverse_nb.geometry import Grid
from medverse_nb.placement import place
from medverse_nb.resampling import AxisMap, resample_affine, resample_axes, resize, resize_map

RNG = np.random.default_rng(0)
VOLUME = RNG.normal(size=(9, 7, 11)).astype(np.float32)
REGIONS = [
    (slice(0, 3), slice(2, 5), slice(0, 1)),
    (slice(4, 5), slice(0, 6), slice(3, 8)),
    (slice(1, None), slice(None), slice(-4, None)),
]


def resize_line(values, size, **options):
    line = np.asarray(values, np.float32).reshape(-1, 1, 1)
    return resize(line, (size, 1, 1), **options).ravel()


def turned(degrees, scale, offset):
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    matrix[:3, 3] = offset
    return matrix


# Worked out by hand. Shrinking 0 1 2 3 to two voxels puts their centres at 0.5 and 2.5; the
# anti-aliasing triangle of half width 2 weighs -1..2 by 1/8, 3/8, 3/8, 1/8, the border repeated.
@pytest.mark.parametrize(
    ("values", "size", "options", "expected"),
    [
        ([0, 1, 2, 3], 2, {"antialias": False}, [0.5, 2.5]),
        ([0, 1, 2, 3], 2, {}, [0.625, 2.375]),
        ([0, 1, 2, 3], 2, {"align_corners": True, "antialias": False}, [0, 3]),
        ([0, 1, 2, 3], 2, {"align_corners": True}, [4 / 9, 3 - 4 / 9]),
        ([0, 2], 4, {}, [0, 0.5, 1.5, 2]),
        ([0, 2], 3, {"align_corners": True}, [0, 1, 2]),
        ([0, 1, 2, 3], 1, {"align_corners": True, "antialias": False}, [0]),
        ([7], 3, {}, [7, 7, 7]),
    ],
)
def test_lines_worked_out_by_hand(values, size, options, expected):
    assert resize_line(values, size, **options) == pytest.approx(expected)


def test_beyond_the_border_is_zero_or_the_border():
    line = np.full((3, 1, 1), 2, np.float32)
    still = resize_map(1, 1)
    zero = AxisMap(3, 5, 1.0, -1.0, edge=False)
    kept = AxisMap(3, 5, 1.0, -1.0, edge=True)
    half = AxisMap(3, 1, 1.0, -0.5, edge=False)
    assert resample_axes(line, (zero, still, still)).ravel().tolist() == [0, 2, 2, 2, 0]
    assert resample_axes(line, (kept, still, still)).ravel().tolist() == [2, 2, 2, 2, 2]
    assert resample_axes(line, (half, still, still)).ravel().tolist() == [1]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(9, 7, 11), (4, 3, 5), (18, 15, 12), (5, 20, 11), (1, 7, 22)])
def test_torch_agrees_without_antialiasing(shape, align_corners):
    ours = resize(VOLUME, shape, align_corners=align_corners, antialias=False)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(VOLUME)[None, None], shape, mode="trilinear", align_corners=align_corners
    )
    assert np.allclose(ours, theirs[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 9), (9, 6, 30), (5, 13, 11)])
def test_a_region_alone_equals_the_region_of_the_whole(shape, align_corners, antialias, region):
    maps = [
        resize_map(a, b, align_corners=align_corners, antialias=antialias)
        for a, b in zip(VOLUME.shape, shape, strict=True)
    ]
    whole = resample_axes(VOLUME, maps)
    alone = resample_axes(VOLUME, maps, region)
    assert alone.shape == whole[region].shape
    assert np.allclose(alone, whole[region], atol=1e-6)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize(
    "matrix",
    [
        turned(20, 0.7, (1, 0, 2)),
        turned(-35, 1.9, (4, -2, 0)),
        turned(20, 1, (-30, 40, 0)),
        np.diag([1.3, 0.5, 2.5, 1]),
    ],
    ids=["enlarge", "shrink", "outside", "straight"],
)
def test_a_region_of_an_affine_map_equals_the_whole(matrix, edge, region):
    shape = (6, 8, 9)
    whole = resample_affine(VOLUME, matrix, shape, edge=edge)
    alone = resample_affine(VOLUME, matrix, shape, edge=edge, region=region)
    assert whole.shape == shape
    assert np.allclose(alone, whole[region], atol=1e-5)


def test_only_the_voxels_behind_a_region_are_read():
    class Counting:
        shape, ndim = VOLUME.shape, 3

        def __getitem__(self, index):
            self.read = VOLUME[index].shape
            return VOLUME[index]

    source = Counting()
    region = (slice(0, 2), slice(0, 2), slice(0, 2))
    resample_axes(source, [resize_map(n, 2 * n) for n in VOLUME.shape], region)
    assert max(source.read) <= 4


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_identity_is_exact(align_corners, antialias):
    wild = (VOLUME * 1e6).astype(np.float32)
    same = resize(wild, wild.shape, align_corners=align_corners, antialias=antialias)
    assert np.array_equal(same, wild)
    assert np.array_equal(resample_affine(wild, np.eye(4), wild.shape), wild)


def test_swapping_axes_through_the_oblique_path_is_exact():
    swap = np.eye(4)[[1, 0, 2, 3]]
    got = resample_affine(VOLUME, swap, (7, 9, 11))
    assert np.allclose(got, VOLUME.transpose(1, 0, 2), atol=1e-6)


def test_a_ramp_is_sampled_exactly_along_an_oblique_map():
    x, y, z = np.meshgrid(*[np.arange(n) for n in (12, 12, 12)], indexing="ij")
    ramp = 2 * x - 3 * y + 5 * z
    matrix = turned(25, 0.8, (4, 3, 2))
    got = resample_affine(ramp, matrix, (6, 6, 6))
    for place_ in [(0, 0, 0), (3, 2, 5), (5, 5, 5)]:
        a, b, c = (matrix @ [*place_, 1])[:3]
        assert got[place_] == pytest.approx(2 * a - 3 * b + 5 * c, abs=1e-3)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5), (20, 15, 30), (1, 1, 1)])
def test_a_constant_stays_constant(shape, align_corners):
    constant = np.full((9, 8, 7), 3.25, np.float32)
    assert np.allclose(resize(constant, shape, align_corners=align_corners), 3.25, atol=1e-6)
    oblique = resample_affine(constant, turned(40, 2.2, (-3, 1, 0)), shape, edge=True)
    assert np.allclose(oblique, 3.25, atol=1e-5)


def test_integers_come_out_as_float32():
    assert resize(np.arange(8, dtype=np.int16).reshape(2, 2, 2), (4, 4, 4)).dtype == np.float32


def test_antialiasing_averages_a_pattern_that_plain_sampling_aliases():
    stripes = np.tile([0.0, 1.0], 32)
    plain = resize_line(stripes, 16, align_corners=True, antialias=False)
    smooth = resize_line(stripes, 16)
    assert np.ptp(plain) > 0.8
    assert np.allclose(smooth[1:-1], 0.5, atol=0.01)


@pytest.mark.parametrize(("align", "outside"), [("center", 0), ("world", 0), ("box", 1)])
def test_outside_a_placed_source_is_zero_except_for_box(align, outside):
    source = Grid((4, 4, 4), np.eye(4))
    target = Grid((12, 12, 12), np.eye(4))
    placed = place(np.ones((4, 4, 4)), source, target, align)
    assert placed[11, 11, 11] == outside
    start = 4 if align == "center" else 0
    inside = placed[(slice(start, start + 4),) * 3]
    assert np.array_equal(inside, np.ones((4, 4, 4)))
    assert placed.sum() == (12**3 if outside else 4**3)


def test_a_rotated_source_is_zero_outside_too():
    matrix = turned(30, 1, (-20, -12, 0))
    got = resample_affine(np.ones((5, 5, 5)), matrix, (40, 6, 6))
    assert got[0, 0, 0] == 0
    assert got.max() == pytest.approx(1, abs=1e-5)


def test_place_takes_a_region():
    source, target = Grid((9, 7, 11), np.eye(4)), Grid((6, 6, 6), np.diag([1.4, 1.1, 1.7, 1]))
    region = (slice(2, 5), slice(0, 3), slice(4, 6))
    whole = place(VOLUME, source, target, "box")
    assert np.allclose(place(VOLUME, source, target, "box", region), whole[region], atol=1e-6)


@pytest.mark.parametrize("size", [4, 9, 23])
@pytest.mark.parametrize("planes", [1, 2, 5])
def test_slabs_of_any_depth_give_the_whole(monkeypatch, size, planes):
    """So does a part of it, and so does a map that reaches beyond the volume."""
    maps = [resize_map(9, size), resize_map(7, 7), resize_map(11, 8)]
    beyond = [AxisMap(9, 15, 1.0, -3.0, edge=False), *maps[1:]]
    asked = [
        (maps, None),
        (maps, REGIONS[0]),
        (maps, (slice(1, 3), *REGIONS[1][1:])),
        (beyond, None),
    ]
    whole = [resample_axes(VOLUME, *one) for one in asked]
    monkeypatch.setattr("medverse_nb.regions.SLAB_VOXELS", planes * 7 * 11)
    for one, wanted in zip(asked, whole, strict=True):
        np.testing.assert_allclose(resample_axes(VOLUME, *one), wanted, atol=1e-6)
    assert not whole[-1][[0, 1, 2, 12, 13, 14]].any()
