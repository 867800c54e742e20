"""Other ways to segment from the same pairs, behind one protocol."""

import itertools
import threading

import numpy as np
import pytest
import torch

from medverse_nb.classes import ClassSpec
from medverse_nb.errors import Cancelled, InputError, WeightsError
from medverse_nb.evaluation import baselines
from medverse_nb.evaluation.baselines import (
    BASELINES,
    BestPair,
    Learner,
    MeanLabel,
    OtherWeights,
    Registration,
    SliceBySlice,
    Trained,
    Trial,
    UniverSeg,
    find_baselines,
)
from medverse_nb.evaluation.few_shot import train_few_shot
from medverse_nb.evaluation.metrics import dice
from medverse_nb.geometry import Reorientation
from medverse_nb.io import read_volume
from medverse_nb.model.universeg import UniverSegNetwork
from medverse_nb.model.weights import load_universeg
from medverse_nb.pair import make_pair

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (26, 22, 18)
STRAIGHT = np.diag([1.5, 2.0, 1.0, 1.0])
CLASSES = (ClassSpec(1, "core", (3,), (230, 159, 0)), ClassSpec(2, "shell", (1, 2), (86, 180, 233)))
ONE_CLASS = CLASSES[:1]
# Canonical axes stored as (z, x, y), the first and the last of them backwards.
TURNED = np.array([[0, 1.5, 0, 0], [0, 0, -2.0, 42.0], [-1.0, 0, 0, 17.0], [0, 0, 0, 1]])


def draw(seed: int, shift=(0, 0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright core 3 in a dim shell 1, of which one side has the value 2, in noise."""
    x, y, z = np.indices(SHAPE) - np.array(shift).reshape(3, 1, 1, 1)
    label = np.zeros(SHAPE, np.uint8)
    label[(abs(x - 11) < 7) & (abs(y - 10) < 6) & (abs(z - 8) < 5)] = 1
    label[(label == 1) & (x > 14)] = 2
    label[(abs(x - 10) < 4) & (abs(y - 9) < 3) & (abs(z - 8) < 3)] = 3
    image = 0.4 * (label > 0) + 0.5 * (label == 3)
    noise = np.random.default_rng(seed).normal(0, 0.02, SHAPE)
    return (image + noise).astype(np.float32), label


def draw_pair(name: str, seed: int, shift=(0, 0, 0)):
    return make_pair(*draw(seed, shift), name=name, affine=STRAIGHT)


def make_trial(pairs, image, affine=STRAIGHT, **settings) -> Trial:
    return Trial(read_volume(image, affine), pairs, settings.pop("classes", CLASSES), **settings)


def answer_at_half(target, _images, labels):
    """Stand in for a 2D network: the mean of the context labels."""
    assert target.shape[0] == labels.shape[0] == 1
    return labels.mean(dim=1)


@pytest.fixture
def pairs():
    shifts = [(1, 0, 0), (0, 1, 0), (-1, 0, 1)]
    return [draw_pair(f"pair-{n}", n, shift) for n, shift in enumerate(shifts)]


METHODS = [
    pytest.param(MeanLabel(), id="mean label"),
    pytest.param(BestPair(), id="best pair"),
    pytest.param(Registration(), id="registration"),
    pytest.param(SliceBySlice("2D", answer_at_half, axis=1, side=32), id="slices"),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_target_stored_in_other_axes_has_the_same_answer_on_its_own_grid(method, pairs):
    if method.name == "registration":
        pytest.importorskip("SimpleITK")
    image, label = draw(9)
    turn = Reorientation.to_canonical(TURNED, (18, 26, 22))
    stored = np.ascontiguousarray(turn.undo(image))
    assert stored.shape == (18, 26, 22)
    straight = method.predict(make_trial(pairs, image)).mask
    turned = method.predict(make_trial(pairs, stored, TURNED)).mask
    assert turned.shape == stored.shape
    assert np.array_equal(turn.apply(turned), straight)
    for spec in CLASSES:
        assert dice(straight == spec.number, np.isin(label, spec.values)) > 0.6


def test_the_best_pair_is_the_planted_twin(pairs):
    image, label = draw(5, shift=(-4, 3, 2))
    twin = draw_pair("twin", 6, shift=(-4, 3, 2))
    outcome = BestPair().predict(make_trial([*pairs, twin], image))
    assert outcome.note == "copied from twin"
    assert np.array_equal(outcome.mask == 1, label == 3)
    assert np.array_equal(outcome.mask == 2, np.isin(label, (1, 2)))


def test_registration_takes_back_a_known_shift_and_the_mean_label_cannot():
    pytest.importorskip("SimpleITK")
    image, label = draw(5)
    shifted = [draw_pair(f"moved-{n}", n, (4, -4, 3)) for n in range(2)]
    trial = make_trial(shifted, image)
    outcome = Registration().predict(trial)
    assert outcome.note == ""
    assert dice(outcome.mask == 1, label == 3) > 0.8  # of 175 voxels most lie on its surface
    assert dice(outcome.mask == 2, np.isin(label, (1, 2))) > 0.8
    assert dice(MeanLabel().predict(trial).mask == 1, label == 3) < 0.3
    assert np.array_equal(Registration().predict(trial).mask, outcome.mask)


def test_registration_says_what_it_had_no_time_for(pairs):
    pytest.importorskip("SimpleITK")
    ticks = itertools.count()  # a look at the clock costs a second
    outcome = Registration(clock=ticks.__next__).predict(
        make_trial(pairs, draw(5)[0], seconds=4, classes=ONE_CLASS)
    )
    assert outcome.note == "time for 1 of 3 pairs, the most alike; 1 of 1 registrations cut short"
    assert next(ticks) < 40
    assert outcome.mask.shape == SHAPE


def test_registration_without_simpleitk_names_the_extra(pairs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"medverse_nb\[registration\]"):
        Registration().predict(make_trial(pairs, draw(5)[0]))


def test_a_trained_network_shares_its_seconds_among_classes_and_can_be_cancelled(
    pairs, monkeypatch
):
    seen = []

    def train(pairs, values, seconds, **settings):
        seen.append((values, seconds, settings["kind"], settings["seed"]))
        ticks = itertools.count()
        return train_few_shot(pairs, values, 3, clock=ticks.__next__, **settings)

    monkeypatch.setattr(baselines.trained, "train_few_shot", train)
    cancel = threading.Event()
    trial = make_trial(pairs, draw(5)[0], seconds=8, seed=7, cancel=cancel)
    outcome = BASELINES["U-Net"]().predict(trial)
    assert seen == [((3,), 4, "unet", 7), ((1, 2), 4, "unet", 7)]
    assert outcome.mask.shape == SHAPE
    assert outcome.note == "2 + 2 steps of training"
    cancel.set()
    with pytest.raises(Cancelled):
        BASELINES["U-Net"]().predict(trial)


def test_swin_unetr_trains_in_float32_whatever_the_machine_has(pairs, monkeypatch):
    seen = []

    def train(pairs, values, _seconds, **settings):
        seen.append(settings["precision"])
        return train_few_shot(pairs, values, 0, **settings)

    monkeypatch.setattr(baselines.trained, "train_few_shot", train)
    monkeypatch.setattr(baselines.trained, "choose_precision", lambda *_: "bfloat16")
    for name in ("Swin UNETR", "U-Net"):
        BASELINES[name]().fit(pairs, ONE_CLASS, 8)
    assert seen == ["float32", "bfloat16"]


def test_a_trained_network_is_fitted_once_and_answers_many(pairs, monkeypatch):
    trainings = []

    def train(pairs, values, _seconds, **settings):
        trainings.append(values)
        ticks = itertools.count()
        return train_few_shot(pairs, values, 3, clock=ticks.__next__, **settings)

    monkeypatch.setattr(baselines.trained, "train_few_shot", train)
    method = BASELINES["U-Net"]()
    assert isinstance(method, Learner)
    assert not isinstance(MeanLabel(), Learner)
    fitted = method.fit(pairs, ONE_CLASS, 8, seed=7)
    trials = [make_trial(pairs, draw(seed)[0], classes=ONE_CLASS, seed=7) for seed in (5, 6)]
    answers = [fitted.predict(trial).mask for trial in trials]
    assert trainings == [(3,)]
    assert np.array_equal(answers[1], method.predict(trials[1]).mask)
    with pytest.raises(InputError, match=r"trained for \['core'\], asked for \['core', 'shell'\]"):
        fitted.predict(make_trial(pairs, draw(5)[0]))


def test_the_affine_step_alone_is_what_it_says(pairs):
    pytest.importorskip("SimpleITK")
    image, label = draw(5)
    trial = make_trial([draw_pair("moved", 1, (4, -4, 3))], image, classes=ONE_CLASS)
    both, affine = (
        Registration().predict(trial),
        Registration("affine", deform=False).predict(trial),
    )
    assert affine.note == ""
    assert dice(affine.mask == 1, label == 3) > 0.6
    assert not np.array_equal(affine.mask, both.mask)


def test_names_make_the_networks_they_promise():
    assert BASELINES["U-Net"]() == Trained("U-Net", "unet")
    assert BASELINES["Swin UNETR"]() == Trained("Swin UNETR", "swin_unetr")
    assert all(make().name == name for name, make in BASELINES.items())


def test_other_weights_answer_from_the_same_pairs(pairs, tiny_weights):
    (method,) = find_baselines([tiny_weights], "medverse-tiny")
    assert method == OtherWeights(tiny_weights)
    assert method.name == "random"
    assert method.predict(make_trial(pairs, draw(5)[0])).mask.shape == SHAPE


def test_unknown_and_doubled_names_are_refused():
    with pytest.raises(InputError, match="'nnU-Net' is not one of mean label, best pair"):
        find_baselines(["nnU-Net"], "ours")
    with pytest.raises(InputError, match=r"taken twice: \['best pair'\]"):
        find_baselines(["best pair", BestPair()], "ours")
    with pytest.raises(InputError, match=r"taken twice: \['best pair'\]"):
        find_baselines(["best pair"], "best pair")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_pairs_lie_beside_those_of_the_target(pairs, axis):
    seen = []

    def model(target, images, labels):
        assert target.shape == (1, 1, 16, 16)
        assert images.shape == labels.shape == (1, 3, 1, 16, 16)
        assert set(labels.unique().tolist()) <= {0, 1}
        seen.append(abs(target - images.mean(dim=1)).mean().item())
        return labels.mean(dim=1)

    method = SliceBySlice("2D", model, axis, side=16)
    outcome = method.predict(make_trial(pairs, draw(5)[0], classes=ONE_CLASS))
    labels = [pair.label.values == 3 for pair in pairs]
    others = tuple(a for a in range(3) if a != axis)
    filled = int(np.any(labels, axis=0).any(axis=others).sum())
    assert len(seen) <= filled < SHAPE[axis]
    assert outcome.note == f"{len(seen)} slices asked across axis {axis}"
    assert max(seen) < 0.2


def released_universeg(features: int = 64) -> dict[str, torch.Tensor]:
    """Write out the published layout by hand: names and shapes, with small random numbers."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = 0.05 * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.zeros(shape[0])

    widths = {"enc_blocks": [3, 128, 128, 128], "dec_blocks": [256, 256, 256]}
    for blocks, inputs in widths.items():
        for number, width in enumerate(inputs):
            block = f"{blocks}.{number}"
            add(f"{block}.cross.cross_conv", features, width, 3, 3)
            add(f"{block}.target.vmapped.conv", features, features, 3, 3)
            add(f"{block}.support.vmapped.conv", features, features, 3, 3)
    add("out_conv.conv", 1, features, 1, 1)
    return state


def test_universeg_loads_the_published_layout_and_answers(pairs, tmp_path):
    path = tmp_path / "universeg.pt"
    torch.save(released_universeg(), path)
    network = load_universeg(path)
    assert torch.equal(
        network.up[2].context.weight,
        released_universeg()["dec_blocks.2.support.vmapped.conv.weight"],
    )
    one_slice = make_pair(*(a[:, :, 8:9] for a in draw(0)), name="slice", affine=STRAIGHT)
    trial = make_trial([one_slice], draw(5)[0][:, :, 8:9], classes=ONE_CLASS)
    outcome = UniverSeg(path, device="cpu").predict(trial)
    assert outcome.mask.shape == (26, 22, 1)
    assert outcome.note == "1 slices asked across axis 2"


def test_universeg_refuses_other_weights_and_code(tmp_path):
    state = released_universeg()
    del state["out_conv.conv.bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(WeightsError, match=r"another architecture than UniverSeg.*head\.bias"):
        load_universeg(tmp_path / "less.pt")
    torch.save({"run": print}, tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="asks to run code"):
        load_universeg(tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="no weights file"):
        load_universeg(tmp_path / "none.pt")


def test_universeg_does_not_care_for_the_order_of_pairs_nor_their_number():
    torch.manual_seed(0)
    network = UniverSegNetwork((4, 6, 8)).double().eval()
    target = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    images, labels = torch.rand(2, 2, 3, 1, 16, 16, dtype=torch.float64)
    with torch.inference_mode():
        answer = network(target, images, labels)
        assert answer.shape == target.shape
        other = network(target, images.flip(1), labels.flip(1))
        doubled = network(target, images.repeat(1, 2, 1, 1, 1), labels.repeat(1, 2, 1, 1, 1))
        without = network(target, images, labels * 0)
    assert torch.allclose(answer, other, atol=1e-9)
    assert torch.allclose(answer, doubled, atol=1e-9)
    assert not torch.allclose(answer, without, atol=1e-3)
