import math
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

import medverse_nb as mv
from medverse_nb.errors import InputError
from medverse_nb.evaluation.baselines import mean_label
from medverse_nb.evaluation.metrics import dice, hd95, psnr, ssim, surface_dice
from medverse_nb.geometry import Grid
from medverse_nb.pair import make_pair

SHAPE = (4, 4, 4)


def mask(*places):
    values = np.zeros(SHAPE, np.uint8)
    for place in places:
        values[place] = 1
    return values


def test_metrics_are_public():
    assert mv.metrics.dice is dice


# Three and two voxels with one in common: 2 * 1 / (3 + 2).
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (mask((0, 0, 0), (1, 1, 1), (2, 2, 2)), mask((2, 2, 2), (3, 3, 3)), 0.4),
        (mask((0, 0, 0)), mask((0, 0, 0)), 1),
        (mask((0, 0, 0)), mask((1, 0, 0)), 0),
        (mask(), mask(), 1),
        (mask((0, 0, 0)), mask(), 0),
        (mask(), mask((0, 0, 0)), 0),
        (np.ones(SHAPE), np.ones(SHAPE), 1),
        (np.ones(SHAPE), mask((0, 0, 0)), 2 / 65),
    ],
)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_dice_worked_out_by_hand(a, b, expected, dtype):
    assert dice(a.astype(dtype), b.astype(dtype)) == pytest.approx(expected)


def test_dice_is_monais():
    import torch
    from monai.metrics import DiceMetric

    a, b = np.random.default_rng(0).random((2, 5, 6, 7)) > 0.6
    theirs = DiceMetric()(*(torch.tensor(mask[None, None]).float() for mask in (a, b)))
    assert dice(a, b) == pytest.approx(theirs.item())


def test_dice_is_symmetric_and_blind_to_order():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 6, 7)) > 0.6
    expected = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert dice(a, b) == dice(b, a) == pytest.approx(expected)
    assert dice(a[::-1].T, b[::-1].T) == pytest.approx(expected)


# A tenth off everywhere at a range of 1 is 20 dB; a half off in one voxel of 64: 10 log10(256).
def test_psnr_worked_out_by_hand():
    truth = np.zeros(SHAPE)
    truth[0, 0, 0] = 1
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    one_off = truth.copy()
    one_off[1, 1, 1] = 0.5
    assert psnr(one_off, truth) == pytest.approx(10 * math.log10(256), abs=1e-3)
    assert psnr(one_off, truth, data_range=10) == pytest.approx(10 * math.log10(25600), abs=1e-3)


def test_psnr_does_not_care_for_units():
    rng = np.random.default_rng(0)
    truth, answer = rng.random((2, *SHAPE))
    assert psnr(1000 * answer - 7, 1000 * truth - 7) == pytest.approx(psnr(answer, truth), abs=1e-3)


def test_psnr_of_a_perfect_answer_is_infinite():
    truth = np.random.default_rng(0).random(SHAPE)
    assert psnr(truth, truth) == math.inf


SCORES = [dice, psnr, ssim, hd95, partial(surface_dice, tolerance_mm=1)]


@pytest.mark.parametrize("score", SCORES)
def test_shapes_that_differ_are_refused(score):
    with pytest.raises(InputError, match=r"\(4, 4, 4\), truth \(4, 4, 3\)"):
        score(np.ones(SHAPE), np.ones((4, 4, 3)))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(score, bad):
    broken = np.ones((11, 11, 11))
    broken[0, 0, :2] = bad
    with pytest.raises(InputError, match="prediction has 2 values that are not finite"):
        score(broken, np.ones((11, 11, 11)))
    with pytest.raises(InputError, match="truth has 2"):
        score(np.ones((11, 11, 11)), broken)


def cube(start, side=4, shape=(12, 12, 12)):
    values = np.zeros(shape, bool)
    values[tuple(slice(s, s + side) for s in start)] = True
    return values


# Cubes of side 4 at x = 4..7 and 5..8; the surface of each has 4^3 - 2^3 = 56 voxels. On both
# surfaces lie the rims (12 voxels) at x = 5, 6, 7. Of the rest of a cube's 56, the 4 inner voxels
# of its end inside the other cube are one step along z (0.5 mm) from a rim, and the 16 of its
# other end one step along x (3 mm): more than 5% of 56, so these are the HD95.
def test_surfaces_one_voxel_apart_by_hand():
    still, moved = cube((4, 4, 4)), cube((5, 4, 4))
    spacing = (3.0, 1.0, 0.5)
    assert hd95(still, moved, spacing_mm=spacing) == pytest.approx(3)
    at_3 = surface_dice(still, moved, tolerance_mm=3, spacing_mm=spacing)
    below_3 = surface_dice(still, moved, tolerance_mm=2.9, spacing_mm=spacing)
    at_0 = surface_dice(still, moved, tolerance_mm=0, spacing_mm=spacing)
    assert at_3 == 1
    assert below_3 == pytest.approx(40 / 56)
    assert at_0 == pytest.approx(36 / 56)


def test_distances_follow_the_axis_of_the_shift():
    still, spacing = cube((4, 4, 4)), (3.0, 1.0, 0.5)
    for axis, step in enumerate(spacing):
        start = [4, 4, 4]
        start[axis] += 1
        assert hd95(still, cube(start), spacing_mm=spacing) == pytest.approx(step)
        assert hd95(cube(start), still, spacing_mm=spacing) == pytest.approx(step)
    assert hd95(still, cube((6, 4, 4))) == pytest.approx(2)


def test_one_far_voxel_of_many_is_beyond_the_percentile():
    still = cube((2, 2, 2), 6)
    speck = still.copy()
    speck[11, 11, 11] = True
    assert hd95(speck, still) == 0
    assert surface_dice(speck, still, tolerance_mm=1) == pytest.approx(2 * 152 / (2 * 152 + 1))


def noise(seed):
    return np.random.default_rng(seed).random((12, 12, 12)) > 0.7


@pytest.mark.parametrize("score", [hd95, partial(surface_dice, tolerance_mm=0.75)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1.25, 2.0), (3.0, 0.4, 0.4)])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (noise(0), noise(1)),
        (cube((4, 4, 4)), cube((4, 5, 6))),
        (cube((4, 4, 4)), cube((3, 3, 3), 6)),
        (cube((1, 1, 1)), cube((7, 7, 7))),
        (cube((4, 4, 4)) | cube((11, 11, 11), 1), cube((4, 4, 4))),
        (cube((0, 0, 0), 12), cube((4, 4, 4), 1)),
    ],
    ids=["noise", "shifted", "inside", "apart", "speck", "full"],
)
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_surface_scores_are_monais(score, spacing, a, b):
    import torch
    from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric

    metric = (
        HausdorffDistanceMetric(include_background=True, percentile=95)
        if score is hd95
        else SurfaceDiceMetric([0.75], include_background=True)
    )
    metric(
        torch.tensor(a[None, None]).float(), torch.tensor(b[None, None]).float(), spacing=spacing
    )
    assert score(a, b, spacing_mm=spacing) == pytest.approx(metric.aggregate().item())


def test_hd95_with_anisotropic_voxels_against_all_distances():
    spacing = (3.0, 1.25, 0.5)

    def surface_of(mask):
        return np.argwhere(mask & ~binary_erosion(mask)) * spacing

    a, b = noise(0) & cube((2, 2, 2), 6), noise(1) & cube((3, 2, 4), 7)
    distances = cdist(surface_of(a), surface_of(b))
    ways = [np.percentile(distances.min(axis=axis), 95) for axis in (0, 1)]
    assert hd95(a, b, spacing_mm=spacing) == pytest.approx(max(ways), rel=1e-5)
    near = [(distances.min(axis=axis) <= 1.25).sum() for axis in (0, 1)]
    share = sum(near) / sum(distances.shape)
    assert surface_dice(a, b, tolerance_mm=1.25, spacing_mm=spacing) == pytest.approx(share)


def test_surface_scores_of_empty_masks_are_defined():
    empty, full = np.zeros(SHAPE), mask((1, 1, 1))
    assert (hd95(empty, empty), surface_dice(empty, empty, tolerance_mm=1)) == (0, 1)
    for a, b in ((empty, full), (full, empty)):
        assert hd95(a, b) == math.inf
        assert surface_dice(a, b, tolerance_mm=1) == 0


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1)])
def test_a_spacing_must_be_three_positive_numbers(spacing):
    with pytest.raises(InputError, match="spacing_mm"):
        hd95(np.ones(SHAPE), np.ones(SHAPE), spacing_mm=spacing)


@pytest.mark.parametrize("tolerance", [-1, np.nan, np.inf])
def test_a_tolerance_must_be_a_distance(tolerance):
    with pytest.raises(InputError, match="tolerance_mm"):
        surface_dice(np.ones(SHAPE), np.ones(SHAPE), tolerance_mm=tolerance)


def test_surfaces_need_a_volume():
    with pytest.raises(InputError, match="volume"):
        hd95(np.ones((4, 4)), np.ones((4, 4)))


# Constant images: no contrast, so only the means count, (2ab + c1) / (a^2 + b^2 + c1).
def test_ssim_worked_out_by_hand():
    a, b, c1 = 0.2, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    shape = (11, 12, 13)
    score = ssim(np.full(shape, a), np.full(shape, b), data_range=1)
    # Where there is no contrast, MONAI's variances are rounding errors, set against c2 = 0.0009.
    assert score == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("window", [5, 11])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_and_psnr_are_monais(window, data_range):
    import torch
    from monai.metrics import PSNRMetric, SSIMMetric

    rng = np.random.default_rng(0)
    truth = rng.random((12, 11, 13)).astype(np.float32)
    answer = truth + rng.normal(0, 0.2, truth.shape).astype(np.float32)
    both = torch.tensor(answer[None, None]), torch.tensor(truth[None, None])
    likeness = SSIMMetric(spatial_dims=3, data_range=data_range, win_size=window)(*both).item()
    noise_db = PSNRMetric(data_range)(*both).item()
    assert ssim(answer, truth, data_range, window=window) == pytest.approx(likeness, abs=1e-5)
    assert psnr(answer, truth, data_range) == pytest.approx(noise_db, abs=1e-4)


def test_ssim_knows_itself_and_no_units():
    rng = np.random.default_rng(0)
    truth, answer = rng.random((2, 12, 11, 13)).astype(np.float32)
    assert ssim(truth, truth) == pytest.approx(1)
    assert ssim(1000 * answer, 1000 * truth) == pytest.approx(ssim(answer, truth), abs=1e-5)


@pytest.mark.parametrize("window", [0, 4, 7])
def test_ssim_refuses_a_window_that_does_not_fit(window):
    with pytest.raises(InputError, match="window"):
        ssim(np.ones((8, 8, 5)), np.ones((8, 8, 5)), data_range=1, window=window)


def test_a_constant_truth_needs_a_range():
    for score in (psnr, ssim):
        with pytest.raises(InputError, match="data_range"):
            score(np.zeros((11, 11, 11)), np.ones((11, 11, 11)))
    assert psnr(np.zeros(SHAPE), np.ones(SHAPE), data_range=1) == pytest.approx(0, abs=1e-3)


def test_the_mean_label_is_the_share_of_pairs():
    labels = [mask((0, 0, 0), (1, 1, 1)), mask((1, 1, 1)), 2 * mask((1, 1, 1)), mask((1, 1, 1))]
    image = np.random.default_rng(0).random(SHAPE)
    pairs = [
        make_pair(image, label, name=str(number), affine=np.eye(4))
        for number, label in enumerate(labels)
    ]
    mean = mean_label(pairs, Grid(SHAPE, np.eye(4)), "box", (1,))
    assert mean[0, 0, 0] == 0.25
    assert mean[1, 1, 1] == 0.75
    assert mean.sum() == 1
    both = mean_label(pairs, Grid(SHAPE, np.eye(4)), "box", (1, 2))
    assert both[1, 1, 1] == 1
