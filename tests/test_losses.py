import math

import pytest
import torch
import torch.nn.functional as F

from medverse_nb.training.losses import (
    IMAGE_WEIGHT,
    generation_loss,
    intensity_differences,
    modified_smooth_l1,
    soft_dice_loss,
    task_loss,
)


def mask(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1, 1)


def draw(seed: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    cube = torch.rand(2, 1, 3, 4, 2, generator=torch.Generator().manual_seed(seed)).double()
    return low + (high - low) * cube


# --- the papers' losses ------------------------------------------------------------------------


def test_modified_smooth_l1_by_hand():
    """Differences 0, 0.5, -1 (both branches meet at 1/3) and 3."""
    loss = modified_smooth_l1(mask(0.2, 0.5, 0.0, 4.0), mask(0.2, 0.0, 1.0, 1.0))
    assert loss.item() == pytest.approx((0 + 0.5**3 / 3 + 1 / 3 + (3 - 2 / 3)) / 4)


def test_small_errors_weigh_less_than_in_smooth_l1():
    prediction, truth = mask(0.1), mask(0.0)
    ratio = modified_smooth_l1(prediction, truth) / F.smooth_l1_loss(prediction, truth)
    assert ratio.item() == pytest.approx((0.1**3 / 3) / (0.1**2 / 2))


def test_differences_are_forward_on_each_axis():
    x = torch.arange(24.0).view(1, 1, 2, 3, 4)
    differences = intensity_differences(x)
    shapes = [tuple(d.shape[2:]) for d in differences]
    assert shapes == [(1, 3, 4), (2, 2, 4), (2, 3, 3)]
    assert [float(d.unique()) for d in differences] == [12.0, 4.0, 1.0]


def test_generation_loss_by_hand():
    """One voxel of a 2 x 2 x 2 cube is off by 0.4: it is in one difference of four on each axis."""
    truth = torch.zeros(1, 1, 2, 2, 2, dtype=torch.float64)
    prediction = truth.clone()
    prediction[0, 0, 0, 1, 0] = 0.4
    error = 0.4**2 / 2
    assert generation_loss(prediction, truth).item() == pytest.approx(error / 8 / 2 + error / 4 / 2)


def test_a_constant_offset_costs_no_difference():
    truth = draw(1)
    loss = generation_loss(truth + 0.3, truth)
    assert loss.item() == pytest.approx(F.smooth_l1_loss(truth + 0.3, truth).item() / 2)


# --- the losses of our own models ----------------------------------------------------------------


def test_soft_dice_by_hand():
    loss = soft_dice_loss(mask(1, 0.5, 0), mask(1, 0, 0))
    assert loss.item() == pytest.approx(1 - (2 * 1 + 1) / (1.5 + 1 + 1))
    assert soft_dice_loss(mask(1, 0, 1), mask(1, 0, 1)).item() == pytest.approx(0)
    assert soft_dice_loss(mask(0, 0), mask(0, 0)).item() == 0  # both empty
    assert soft_dice_loss(mask(1, 1, 1), mask(0, 0, 0)).item() == pytest.approx(3 / 4)


def test_soft_dice_is_the_mean_over_the_batch():
    a, b = torch.cat([mask(1, 0), mask(1, 1)]), torch.cat([mask(1, 0), mask(0, 0)])
    assert soft_dice_loss(a, b).item() == pytest.approx((0 + 2 / 3) / 2)


# --- which loss a task gets ----------------------------------------------------------------------


def test_bce_dice_by_hand():
    prediction, truth = mask(0.8, 0.4), mask(1, 0)
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    dice = 1 - (2 * 0.8 + 1) / (1.2 + 1 + 1)
    assert task_loss(prediction, truth, "segmentation").item() == pytest.approx(entropy + dice)
    for task in ("inpainting", "bias_field"):
        loss = task_loss(prediction, truth, task, weight=7.0)  # the weight is the papers' recipe's
        assert loss.item() == pytest.approx(IMAGE_WEIGHT * (0.2 + 0.4) / 2)


def test_the_papers_recipe_weighs_its_tasks():
    prediction, truth = draw(1), draw(2)
    loss = task_loss(prediction, truth, "segmentation", 50.0, "smooth_l1")
    assert loss.item() == pytest.approx(50 * modified_smooth_l1(prediction, truth).item())
    loss = task_loss(prediction, truth, "slices_to_volume", 0.5, "smooth_l1")
    assert loss.item() == pytest.approx(0.5 * generation_loss(prediction, truth).item())


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 3.0])  # inside the powers, and across into the lines
@pytest.mark.parametrize("loss", [modified_smooth_l1, generation_loss, soft_dice_loss])
def test_gradients_are_those_of_finite_differences(loss, spread):
    prediction, truth = draw(1, -spread / 2, spread).requires_grad_(), draw(2)
    assert torch.autograd.gradcheck(lambda p: loss(p, truth), (prediction,), eps=1e-6, atol=1e-7)
