import math
import random
from dataclasses import asdict, fields, replace

import monai.transforms  # noqa: F401, importing it draws from the global generator (rich does)
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator

from medverse_nb.errors import InputError
from medverse_nb.tasks import TASKS
from medverse_nb.training import augmentation
from medverse_nb.training.augmentation import (
    AugmentationRates,
    augment_images,
    augment_task,
    dilate,
    edges,
    erode,
)

NONE = AugmentationRates(**{field.name: 0.0 for field in fields(AugmentationRates)})
ALL = AugmentationRates(**{field.name: 1.0 for field in fields(AugmentationRates)})
GEOMETRY = ["affine", "elastic", "rotation", "flip"]
INTENSITY = ["shift", "scaling", "noise", "inversion", "contrast"]
MASKS = ["sobel", "mask_inversion", "dilation", "erosion"]
SIDE = 16


@pytest.fixture(autouse=True)
def single(one_thread):
    """Small convolutions only wait for other threads."""


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def only(*names: str, rate: float = 1.0) -> AugmentationRates:
    return replace(NONE, **dict.fromkeys(names, rate))


def planted_task(count: int = 3, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Make images away from 0 and 1, so that small changes are not clipped, and their masks."""
    images = 0.3 + 0.4 * torch.rand(count, side, side, side, generator=seeded(7))
    masks = torch.zeros(count, side, side, side)
    masks[:, side // 4 : -side // 4, side // 4 :, side // 2 :] = 1
    return images, masks


def same_pair(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Make volumes that are all alike, outputs the same as inputs."""
    image = planted_task(1)[0].repeat(count, 1, 1, 1)
    return image, image.clone()


# --- both functions --------------------------------------------------------------------------


def test_the_rates_are_those_of_the_paper():
    assert asdict(AugmentationRates()) == {
        "affine": 0.05,
        "elastic": 0.05,
        "flip": 0.05,
        "rotation": 0.05,
        "shift": 0.2,
        "scaling": 0.2,
        "noise": 0.1,
        "inversion": 0.05,
        "contrast": 0.05,
        "overlap": 0.05,
        "modality": 0.05,
        "sobel": 0.05,
        "mask_inversion": 0.05,
        "dilation": 0.05,
        "erosion": 0.05,
    }


def augment_both(name: str, inputs, outputs, generator, rates):
    return augment_task(name, *augment_images(inputs, outputs, generator, rates), generator, rates)


@pytest.mark.parametrize("name", ["segmentation", "modality_transform"])
def test_augmentation_is_pure_and_its_generator_alone_decides(name):
    inputs, outputs = planted_task()
    kept = inputs.clone(), outputs.clone()
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = augment_both(name, inputs, outputs, seeded(3), ALL)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.equal(inputs, kept[0])
    assert torch.equal(outputs, kept[1])
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    again = augment_both(name, inputs, outputs, seeded(3), ALL)
    other = augment_both(name, inputs, outputs, seeded(4), ALL)
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


@pytest.mark.parametrize("names", [GEOMETRY, INTENSITY, MASKS, ["overlap"], list(asdict(ALL))])
@pytest.mark.parametrize("soft", [False, True])
def test_shapes_and_ranges_are_kept(names, soft):
    inputs, outputs = planted_task()
    if soft:
        outputs = outputs * torch.rand(outputs.shape, generator=seeded(1))
    for seed in range(3):
        for x in augment_both("segmentation", inputs, outputs, seeded(seed), only(*names)):
            assert type(x) is torch.Tensor
            assert x.shape == inputs.shape
            assert x.dtype == torch.float32
            assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("name", TASKS)
def test_nothing_drawn_changes_nothing(name):
    inputs, outputs = planted_task()
    for after, before in zip(
        augment_both(name, inputs, outputs, seeded(), NONE), (inputs, outputs), strict=True
    ):
        assert torch.equal(after, before)


def changed(name: str, generator: Generator, rate: float) -> list[bool]:
    """Draw one task of small volumes; tell for each independent draw whether it happened."""
    inputs, outputs = planted_task(2, side=8)
    rates = only(name, rate=rate)
    kind = "modality_transform" if name == "modality" else "segmentation"
    after = augment_both(kind, inputs, outputs, generator, rates)
    differs = [
        [not torch.equal(a, b) for a, b in zip(new, old, strict=True)]
        for new, old in zip(after, (inputs, outputs), strict=True)
    ]
    if name in ("affine", "elastic", "rotation"):  # each volume on its own
        assert differs[0] == differs[1]
        return differs[0]
    moved = differs[1] if name in MASKS else differs[0]
    assert moved[0] == moved[1]
    return moved[:1]


@pytest.mark.parametrize("name", set(asdict(ALL)) - {"overlap"})
def test_rates_are_what_comes_out(name):
    generator, rate = seeded(11), getattr(AugmentationRates(), name)
    draws = [happened for _ in range(250) for happened in changed(name, generator, rate)]
    assert abs(np.mean(draws) - rate) < 3.5 * math.sqrt(rate * (1 - rate) / len(draws))
    assert all(changed(name, generator, 1.0))


@pytest.mark.parametrize("function", [augment_images, lambda *a: augment_task("inpainting", *a)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [((2, 4, 4, 4), (3, 4, 4, 4)), ((4, 4, 4),) * 2, ((2, 4, 4, 5),) * 2]
)
def test_volumes_that_do_not_pair_are_refused(function, inputs, outputs):
    with pytest.raises(InputError, match="cubes"):
        function(torch.zeros(inputs), torch.zeros(outputs), seeded())


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("seed", range(3))
def test_inputs_and_outputs_move_alike(name, seed):
    inputs, same = same_pair()
    moved, along = augment_images(inputs, same, seeded(seed), only(name))
    assert torch.equal(moved, along)
    assert not torch.equal(moved, inputs)
    own_pose = name != "flip"
    assert torch.equal(moved[0], moved[1]) != own_pose


@pytest.mark.parametrize("name", ["affine", "elastic", "rotation"])
def test_a_pose_changes_little(name):
    """A long blob in the middle stays about where it is: half its mass at least."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")) - 11.5
    blob = torch.exp(-(grid[0] ** 2) / 72 - grid[1] ** 2 / 18 - grid[2] ** 2 / 8)[None]
    shares = []
    for seed in range(10):
        _, moved = augment_images(blob, blob, seeded(seed), only(name))
        shares.append(float(torch.minimum(moved, blob).sum() / blob.sum()))
    assert min(shares) > 0.5
    assert min(shares) < 0.99


def test_elastic_displacement_has_its_deviation():
    side = 24
    ramp = (torch.arange(side) / side).view(1, side, 1, 1).expand(1, side, side, side)
    inner = (slice(None), *[slice(6, -6)] * 3)
    moves = []
    for seed in range(12):
        moved, _ = augment_images(ramp, ramp, seeded(seed), only("elastic"))
        moves.append((moved - ramp)[inner])
    assert torch.stack(moves).std() == pytest.approx(augmentation.ELASTIC_SHIFT, rel=0.35)


def test_a_flip_is_one_axis_of_the_whole_task():
    inputs, outputs = planted_task()
    axes = set()
    for seed in range(12):
        flipped, along = augment_images(inputs, outputs, seeded(seed), only("flip"))
        (axis,) = [axis for axis in (1, 2, 3) if torch.equal(flipped, inputs.flip(axis))]
        assert torch.equal(along, outputs.flip(axis))
        axes.add(axis)
    assert axes == {1, 2, 3}


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_changes_in_the_inputs_only(name):
    inputs, outputs = planted_task()
    changed, kept = augment_images(inputs, outputs, seeded(1), only(name))
    assert torch.equal(kept, outputs)
    assert not torch.equal(changed, inputs)
    same, _ = same_pair()
    after, _ = augment_images(same, same, seeded(1), only(name))
    assert torch.equal(after[0], after[1]) == (name != "noise")


def test_intensity_changes_by_their_numbers():
    inputs, outputs = planted_task()
    offsets, factors, levels = [], [], []
    for seed in range(40):
        shifted, _ = augment_images(inputs, outputs, seeded(seed), only("shift"))
        scaled, _ = augment_images(inputs, outputs, seeded(seed), only("scaling"))
        noisy, _ = augment_images(inputs, outputs, seeded(seed), only("noise"))
        offset, factor = shifted - inputs, scaled / inputs
        assert offset.std() < 1e-6
        assert factor.std() < 1e-6
        offsets.append(float(offset.mean()))
        factors.append(float(factor.mean()))
        one, two = (noisy - inputs)[:2].flatten(1).std(1)
        assert one == pytest.approx(float(two), rel=0.1)  # one level, own noise
        levels.append(float(one))
    assert -0.1 <= min(offsets) < -0.08
    assert 0.08 < max(offsets) <= 0.1
    assert 0.8 <= min(factors) < 0.84
    assert 1.16 < max(factors) <= 1.2
    assert min(levels) < 0.02
    assert 0.08 < max(levels) < 0.103
    inverted, _ = augment_images(inputs, outputs, seeded(), only("inversion"))
    assert torch.equal(inverted, 1 - inputs)


# --- tasks ---------------------------------------------------------------------------------------


def test_overlaps_are_drawn_one_by_one_and_touch_inputs_only(monkeypatch):
    assert {spoil.__name__ for spoil in augmentation.OVERLAPS} == {
        "add_bias_field",
        "add_gaussian_noise",
        "add_salt_and_pepper",
        "cut_holes",
        "halve_resolution",
    }
    drawn = []

    def record(number):
        return lambda images, _: (drawn[-1].add(number), images * 0.9)[1]

    monkeypatch.setattr(augmentation, "OVERLAPS", tuple(record(number) for number in range(5)))
    inputs, outputs = planted_task(2, side=4)
    generator = seeded(2)
    for _ in range(400):
        drawn.append(set())
        after, kept = augment_task(
            "inpainting", inputs, outputs, generator, only("overlap", rate=0.3)
        )
        assert torch.allclose(after, inputs * 0.9 ** len(drawn[-1]))
        assert torch.equal(kept, outputs)
    for number in range(5):
        assert abs(np.mean([number in d for d in drawn]) - 0.3) < 4 * math.sqrt(0.21 / 400)
    both = np.mean([{0, 1} <= d for d in drawn])
    assert abs(both - 0.09) < 4 * math.sqrt(0.09 * 0.91 / 400)  # independent


def test_overlaps_are_laid_over_any_task():
    inputs, outputs = planted_task()
    for name in TASKS:
        spoilt, kept = augment_task(name, inputs, outputs, seeded(), only("overlap"))
        assert not torch.equal(spoilt, inputs)
        assert torch.equal(kept, outputs)


def test_random_modalities_change_both_sides_of_a_modality_transform_alone():
    inputs, outputs = same_pair()
    changed, asked = augment_task("modality_transform", inputs, outputs, seeded(), only("modality"))
    assert torch.equal(changed[0], changed[1])  # the same in target and context
    assert torch.equal(asked[0], asked[1])
    assert not torch.allclose(changed, asked, atol=0.01)
    for x in (changed, asked):
        assert not torch.allclose(x, inputs, atol=0.01)
    for name in set(TASKS) - {"modality_transform"}:
        for x in augment_task(name, inputs, outputs, seeded(), only("modality")):
            assert torch.equal(x, inputs)


def test_masks_change_in_segmentation_alone():
    inputs, outputs = planted_task()
    for name in TASKS:
        for augmented in MASKS:
            kept, masks = augment_task(name, inputs, outputs, seeded(), only(augmented))
            assert torch.equal(kept, inputs)
            assert torch.equal(masks, outputs) == (name != "segmentation")


def test_what_is_asked_follows_its_order():
    inputs, outputs = planted_task()
    _, masks = augment_task("segmentation", inputs, outputs, seeded(), only(*MASKS))
    assert torch.equal(masks, edges(1 - erode(dilate(outputs))))
    _, masks = augment_task("segmentation", inputs, outputs, seeded(), only("mask_inversion"))
    assert torch.equal(masks, 1 - outputs)


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="no task 'denoising'; there are segmentation, "):
        augment_task("denoising", *planted_task(), seeded())


# --- masks -----------------------------------------------------------------------------------------


def test_dilation_by_hand():
    masks = torch.zeros(2, 5, 5, 5)
    masks[0, 2, 2, 2] = 1
    masks[1, 0, 0, 4] = 0.4
    grown = dilate(masks)
    expected = torch.zeros(2, 5, 5, 5)
    expected[0, 1:4, 1:4, 1:4] = 1
    expected[1, :2, :2, 3:] = 0.4
    assert torch.equal(grown, expected)


def test_erosion_by_hand():
    masks = torch.zeros(2, 6, 6, 6)
    masks[0, 1:4, 1:4, 1:4] = 1
    masks[1, :3, :3, :3] = 1  # in a corner: what lies beyond the volume does not eat it
    shrunk = erode(masks)
    expected = torch.zeros(2, 6, 6, 6)
    expected[0, 2, 2, 2] = 1
    expected[1, :2, :2, :2] = 1
    assert torch.equal(shrunk, expected)
    assert torch.equal(erode(dilate(expected)), expected)


def test_erosion_leaves_masks_that_would_vanish():
    masks = torch.zeros(3, 6, 6, 6)
    masks[0, :4] = 1
    masks[2, :4] = 1  # the second is empty before: that is no loss
    assert not torch.equal(erode(masks), masks)
    masks[1, 2, 2, 2] = 1
    assert torch.equal(erode(masks), masks)


def test_edges_of_a_step():
    masks = torch.zeros(1, 8, 8, 8)
    masks[0, :, 4:] = 1
    expected = torch.zeros(1, 8, 8, 8)
    expected[0, :, 3:5] = 1
    assert torch.allclose(edges(masks), expected)
    assert torch.allclose(edges(0.5 * masks), 0.5 * expected)
    for flat in (0.0, 0.3, 1.0):
        assert edges(torch.full((1, 4, 4, 4), flat)).abs().max() < 1e-6


def test_edges_are_those_of_scipy():
    masks = torch.rand(2, 7, 7, 7, generator=seeded())
    for found, mask in zip(edges(masks), masks.numpy(), strict=True):
        gradients = [ndimage.sobel(mask, axis, mode="nearest") / 16 for axis in range(3)]
        expected = np.clip(np.sqrt(sum(g**2 for g in gradients)), 0, 1)
        assert np.allclose(found, expected, atol=1e-5)
