"""The alternative to in-context learning that benchmarks stand beside."""

import itertools

import numpy as np
import pytest
import torch

from medverse_nb.errors import ContextError
from medverse_nb.evaluation import few_shot
from medverse_nb.evaluation.few_shot import at_spacing, make_network, train_few_shot
from medverse_nb.evaluation.metrics import dice
from medverse_nb.pair import make_pair
from medverse_nb.placement import CanonicalVolume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SPACING = (34, 20, 28), (1.0, 2.0, 1.5)


def plant(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a bright block 3 beside a dim block 1, in noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = rng.integers(2, 8, 3)
    label[x : x + 12, y : y + 6, z : z + 10] = 3
    label[x + 14 : x + 22, y : y + 6, z : z + 10] = 1
    image = 0.9 * (label == 3) + 0.4 * (label == 1) + rng.normal(0, 0.05, SHAPE)
    return np.clip(image, 0, 1).astype(np.float32), label


def plant_pair(seed: int):
    image, label = plant(seed)
    return make_pair(image, label, name=f"pair-{seed}", affine=np.diag([*SPACING, 1.0]))


@pytest.fixture(scope="module")
def pairs():
    return [plant_pair(seed) for seed in range(4)]


def train_steps(pairs, steps: int, **settings):
    """Train so many steps: the clock ticks once a look, and is looked at once a step."""
    ticks = itertools.count()
    return train_few_shot(
        pairs, settings.pop("values", (3,)), steps, clock=ticks.__next__, **settings
    )


def test_it_learns_the_class_and_answers_on_the_targets_grid(pairs):
    trained = train_steps(pairs, 90)
    assert 85 <= trained.steps <= 90
    target = plant_pair(9)
    volume = CanonicalVolume(target.canonical_image.array, target.canonical_image.grid, None)
    probability = trained.predict(volume)
    assert probability.shape == SHAPE
    assert 0 <= probability.min() <= probability.max() <= 1
    truth = target.canonical_label.array == 3
    assert dice(probability > 0.5, truth) > 0.6
    untrained = train_steps(pairs, 1)
    assert dice(untrained.predict(volume) > 0.5, truth) < 0.5


def test_the_seed_decides_the_network_and_no_global_generator_moves(pairs):
    state = torch.get_rng_state()
    one, two, other = (train_steps(pairs, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True)
    )


def test_a_step_without_finite_gradients_is_passed_over(pairs, monkeypatch):
    make, spoiled = make_network, []

    def spoil(gradient):
        spoiled.append(len(spoiled) == 1)
        return gradient * float("nan") if spoiled[-1] else gradient

    def make_spoiled(kind):
        network = make(kind)
        next(network.parameters()).register_hook(spoil)
        return network

    monkeypatch.setattr(few_shot, "make_network", make_spoiled)
    trained = train_steps(pairs, 4)
    assert len(spoiled) == 3
    assert trained.steps == 2
    assert all(p.isfinite().all() for p in trained.network.parameters())


def test_a_class_that_no_pair_has_is_refused(pairs):
    with pytest.raises(ContextError, match=r"no pair has a label in \[7\]"):
        train_steps(pairs, 1, values=(7,))


def test_patches_hold_the_class_in_half_of_the_draws_and_labels_follow_images(pairs):
    cases = [few_shot._read(pair, (1, 3), SPACING, 32) for pair in pairs]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        images, labels = few_shot._draw_batch(cases, 32, generator)
        assert images.shape == labels.shape == (4, 1, 32, 32, 32)
        bright = (images > 0.75).float()
        assert float((bright * (1 - labels)).sum()) < 0.02 * float(labels.sum())


def test_work_is_done_at_the_spacing_in_no_less_than_a_patch(pairs):
    grid = pairs[0].canonical_image.grid
    assert at_spacing(grid, SPACING, 32).shape == (34, 32, 32)
    assert at_spacing(grid, (0.5, 0.5, 0.5), 32).shape == (68, 80, 84)


@pytest.mark.parametrize("kind", ["unet", "swin_unetr"])
def test_both_kinds_answer_voxel_by_voxel(pairs, kind):
    side = few_shot.PATCHES[kind]
    with torch.inference_mode():
        answer = make_network(kind).eval()(torch.zeros(1, 1, side, side, side))
    assert answer.shape == (1, 1, side, side, side)


def test_a_transformer_is_trained_and_used_by_its_own_patches(pairs):
    trained = train_steps(pairs[:2], 2, kind="swin_unetr")
    assert trained.steps == 1
    target = pairs[2]
    volume = CanonicalVolume(target.canonical_image.array, target.canonical_image.grid, None)
    assert trained.predict(volume).shape == SHAPE
