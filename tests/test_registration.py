"""Pairs that are laid on the target before it is answered."""

from threading import Event

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from medverse_nb import ICLSession
from medverse_nb.errors import Cancelled, InputError
from medverse_nb.evaluation.metrics import dice
from medverse_nb.model.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES, SPACING = (40, 36, 32), np.diag([1.5, 1.0, 1.2, 1.0])
MOVED = (4, -3, 3)


class MeanLabel(nn.Module):
    """Answers with the mean label, so that only the placement of the pairs counts."""

    def __init__(self) -> None:
        super().__init__()
        self.config = NetworkConfig(channels=(4, 4), window=48)
        self.anchor = nn.Parameter(torch.zeros(()))

    def target_encoder(self, _target):
        return []

    def forward(self, _target, _images, labels, *_feedback, **_settings):
        return labels.float().mean(1)


def draw(shift=(0, 0, 0), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a box with a brighter core, values 1 and 3, moved by some voxels."""
    label = np.zeros(SIDES, np.uint8)
    label[12:28, 10:26, 8:24] = 1
    label[16:22, 13:20, 11:18] = 3
    label = np.roll(label, shift, (0, 1, 2))
    image = ndimage.gaussian_filter(np.choose(label, [0, 60, 0, 100]).astype(np.float32), 1)
    noise = np.random.default_rng(seed).normal(0, 1, SIDES)
    return (image + noise).astype(np.float32), label


@pytest.fixture
def session(tiny_weights):
    pytest.importorskip("SimpleITK")
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.network = MeanLabel()
    for number in range(2):
        image, label = draw(MOVED, number)
        session.add_context(image, label, name=f"pair-{number}", affine=SPACING)
    return session


@pytest.mark.parametrize("kind", ["affine", "deformable"])
def test_a_known_shift_is_taken_back(session, kind):
    image, label = draw(seed=9)
    before = [pair.hash for pair in session.context]
    off = session.predict(image, affine=SPACING, truth=label)
    on = session.predict(image, affine=SPACING, truth=label, register=kind)
    assert off.score["dice"].max() < 0.6
    assert on.score["dice"].min() > 0.8
    assert on.classes == off.classes
    assert [pair.hash for pair in session.context] == before
    assert on.manifest["settings"]["register"] == kind
    assert on.manifest["context"] == off.manifest["context"]


def test_a_scan_stored_in_other_axes_has_the_same_answer_in_its_own_place(session):
    image, _ = draw(seed=9)
    straight = session.predict(image, affine=SPACING, register="affine").mask.values
    flipped = SPACING @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SPACING[0, 0] * (SIDES[0] - 1)
    turned = session.predict(image[::-1].copy(), affine=flipped, register="affine")
    assert np.array_equal(turned.mask.values[::-1], straight)


def test_labels_of_an_image_task_keep_their_units(tiny_weights):
    pytest.importorskip("SimpleITK")
    session = ICLSession(tiny_weights, device="cpu", precision="float32", task="image")
    session.network = MeanLabel()
    image, _ = draw(MOVED)
    session.add_context(image, 10 * image + 500, name="pair", affine=SPACING)
    target, _ = draw(seed=9)
    off, on = (
        np.abs(answer.image.values - (10 * target + 500))
        for answer in (
            session.predict(target, affine=SPACING, register=kind) for kind in ("off", "deformable")
        )
    )
    assert np.median(on) < 40  # of a range of 1000
    assert on.mean() < 0.5 * off.mean()


@pytest.mark.parametrize("kind", ["rigid", "", None])
def test_another_kind_is_refused(session, kind):
    with pytest.raises(InputError, match="is not one of"):
        session.predict(draw()[0], affine=SPACING, register=kind)


def test_without_simpleitk_the_extra_is_named_and_nothing_changes(session, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"medverse_nb\[registration\]"):
        session.predict(draw()[0], affine=SPACING, register="affine")
    assert session.last is None


def test_a_scan_too_large_for_it_is_refused(session, monkeypatch):
    monkeypatch.setattr("medverse_nb.stored.LARGEST_LOADED", 1000)
    with pytest.raises(InputError, match="too many"):
        session.predict(draw()[0], affine=SPACING, register="affine")


def test_it_can_be_cancelled_between_pairs(session):
    cancel, told = Event(), []

    def on_progress(what, done, count):
        told.append((what, done, count))
        cancel.set()

    with pytest.raises(Cancelled, match="registration, after 1 of 2"):
        session.predict(
            draw()[0], affine=SPACING, register="affine", cancel=cancel, on_progress=on_progress
        )
    assert told == [("registration", 0, 2)]


def test_a_cohort_is_registered_too(session):
    image, label = draw(seed=9)
    scans = {"a": session.predict(image, affine=SPACING).target}
    truths = {"a": label}
    off, on = (
        session.predict_many(scans, truths=truths, register=kind)["dice"].min()
        for kind in ("off", "affine")
    )
    assert off < 0.6
    assert on > 0.8


def test_the_uncertainty_and_the_answer_lie_together(session):
    image, label = draw(seed=9)
    found = session.predict(image, affine=SPACING, register="affine", trust="full")
    assert found.trust.uncertainty.shape == (2, *SIDES)
    assert dice(found.mask.values == 1, label == 1) > 0.8
