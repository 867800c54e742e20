import math

import numpy as np
import pytest

import medverse_nb as mv
from medverse_nb.context import make_pair
from medverse_nb.errors import InputError
from medverse_nb.evaluation.baselines import mean_label
from medverse_nb.evaluation.metrics import dice, psnr
from medverse_nb.geometry import Grid

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


@pytest.mark.parametrize("score", [dice, psnr])
def test_shapes_that_differ_are_refused(score):
    with pytest.raises(InputError, match=r"\(4, 4, 4\), truth \(4, 4, 3\)"):
        score(np.ones(SHAPE), np.ones((4, 4, 3)))


def test_a_constant_truth_needs_a_range():
    with pytest.raises(InputError, match="data_range"):
        psnr(np.zeros(SHAPE), np.ones(SHAPE))
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
