"""The trust score: its signals, what they cost, what they are calibrated to."""

import json
from threading import Event

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, nn

from medverse_nb import ICLSession
from medverse_nb.context import ContextSet
from medverse_nb.errors import Cancelled, InputError, WeightsError
from medverse_nb.evaluation.metrics import dice
from medverse_nb.evaluation.trust.calibration import (
    NOTHING_KNOWN,
    Calibration,
    Curve,
    read_calibration,
)
from medverse_nb.evaluation.trust.coarse import Asker, Coarse
from medverse_nb.evaluation.trust.context_signals import context_signals, evenly
from medverse_nb.evaluation.trust.measuring import SIGNALS, count_runs, measure
from medverse_nb.evaluation.trust.target_signals import expected_dice, halves
from medverse_nb.evaluation.trust.trials import BREAKS, FOREGROUND, draw_trial
from medverse_nb.evaluation.wrong_context import shuffle_labels
from medverse_nb.inference.autoregressive import run
from medverse_nb.model.config import NetworkConfig
from medverse_nb.pair import make_pair
from medverse_nb.tasks.scenes import ShapeSource

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = (12, 10, 14)


class Stub(nn.Module):
    """A network's interface around a function of target (B, 1, ...), images and labels."""

    def __init__(self, answer, window=16) -> None:
        super().__init__()
        self.config = NetworkConfig(channels=(4, 4), window=window)
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answer, self.calls = answer, 0

    def target_encoder(self, _target):
        return []

    def forward(self, target, images, labels, *_feedback, **_settings):
        self.calls += 1
        return self.answer(target, images, labels)


def bright(target, _images, _labels):
    """Find what is bright, whatever the context says."""
    return (target > 0.5).float()


def mean_label(_target, _images, labels):
    """Look at no image."""
    return labels.float().mean(1)


def draw_pair(name, seed, value=1):
    """Draw a bright ball in the dark, somewhere near the middle."""
    rng = np.random.default_rng(seed)
    centre = np.array(SIDES) / 2 + rng.uniform(-1.5, 1.5, 3)
    places = np.indices(SIDES).transpose(1, 2, 3, 0) - centre
    label = (np.linalg.norm(places, axis=-1) < 3.6).astype(np.uint8)
    image = (label + rng.normal(0, 0.02, SIDES)).astype(np.float32)
    return make_pair(image, value * label, name=name, affine=np.eye(4))


def draw_pairs(count):
    return [draw_pair(f"pair-{number}", number) for number in range(count)]


def ask_of(answer, wanted=((1,),)) -> Asker:
    return Asker(Stub(answer), wanted)


def measured(ask, target, pairs, level="full", context=None):
    """Measure the answer of one run, as a session does."""
    from medverse_nb.inference.inputs import PairInputs

    volume = target.canonical_image
    inputs = PairInputs(volume.view, volume.grid, pairs, ask.align, ask.wanted)
    answers = [step.predictions for step in run(ask.network, inputs, ask.settings)]
    ask.network.calls = 0
    return measure(ask, volume, answers, pairs, level, context)


def test_signals_of_a_network_that_is_always_right():
    (signals,) = measured(ask_of(bright), draw_pair("target", 99), draw_pairs(4)).classes
    assert list(signals) == [name for name in SIGNALS if name != "scales"]  # one scale only
    for name in ("confidence", "edges", "reverse", "spread", "left_out"):
        assert signals[name] == pytest.approx(1, abs=1e-6), name
    assert 0.7 < signals["volume"] <= 1
    assert 0.4 < signals["mean_label"] < 1
    assert 0 < signals["gain"] < 0.6


def test_signals_of_a_network_that_looks_at_no_image():
    target, pairs = draw_pair("target", 99), draw_pairs(4)
    (signals,) = measured(ask_of(mean_label), target, pairs).classes
    assert signals["mean_label"] == 1
    assert signals["left_out"] < 0.9
    assert signals["gain"] == 0


def test_the_coarser_scale_is_a_signal_where_there_is_one():
    ask = Asker(Stub(bright, window=8), ((1,),))
    (signals,) = measured(ask, draw_pair("target", 99), draw_pairs(2)).classes
    assert 0.5 < signals["scales"] <= 1


def test_each_class_has_its_own_signals():
    pairs = [draw_pair(f"pair-{n}", n, value=1 + n % 2) for n in range(4)]
    ask = ask_of(mean_label, wanted=((1,), (2,)))
    first, second = measured(ask, draw_pair("target", 99), pairs).classes
    assert set(first) == set(second) == set(SIGNALS) - {"scales"}
    rows = context_signals(ask, pairs, leave_out=True).left_out
    assert sorted(zip(rows["pair"], rows["class"], strict=True)) == [
        ("pair-0", 0), ("pair-1", 1), ("pair-2", 0), ("pair-3", 1),
    ]  # fmt: skip


def test_expected_dice_by_hand():
    probability = np.array([0.9, 0.8, 0.3, 0.0], np.float32)
    assert expected_dice(probability, probability > 0.5) == pytest.approx(2 * 1.7 / (2.0 + 2))
    assert expected_dice(probability, probability > 1) == 0
    assert expected_dice(np.zeros(3, np.float32), np.zeros(3, bool)) == 0


@pytest.mark.parametrize("level", ["fast", "full"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_the_runs_are_counted_before(level, count):
    pairs, target = draw_pairs(count), draw_pair("target", 99)
    ask = ask_of(bright)
    found = measured(ask, target, pairs, level)
    assert ask.network.calls == count_runs(level, count, context_known=False)
    again = measured(ask, target, pairs, level, found.context)
    assert ask.network.calls == count_runs(level, count, context_known=True)
    assert again.classes == found.classes


def test_halves_are_different_and_evenly_spaced_numbers_are_too():
    for count in range(2, 10):
        drawn = [tuple(pair.name for pair in half) for half in halves(draw_pairs(count), 0)]
        assert len(set(drawn)) == len(drawn) == min(4, {2: 2, 3: 3}.get(count, 4))
        assert {len(half) for half in drawn} == {(count + 1) // 2}
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(100, 3) == [0, 50, 99] or evenly(100, 3) == [0, 49, 99]


def test_a_wide_scan_is_looked_at_one_window_wide():
    scan = Coarse.of(draw_pair("target", 0).canonical_image, 8)
    assert scan.scan.shape == scan.grid.shape == (8, 8, 8)
    np.testing.assert_allclose(scan.grid.extent_mm, SIDES)


# Calibration

CURVE = Curve(
    {"confidence": 0.5, "reverse": 0.5}, 0.1, (0.2, 1.0), (0.1, 0.9), (0.0, 0.7), (0.5, 1)
)
RICH = Curve({"confidence": 1.0, "reverse": 1.0, "edges": 0.0}, 0, (0, 2), (0, 1), (0, 1), (0, 1))
CALIBRATION = Calibration("abc", 0.8, 10, "phantoms", (CURVE, RICH))


def test_between_two_knots_and_beyond_them():
    at = CALIBRATION.expect({"confidence": 0.4, "reverse": 0.6})  # score 0.6, half way
    assert at == pytest.approx((0.5, 0.35, 0.75))
    assert CALIBRATION.expect({"confidence": 1.0, "reverse": 1.0}) == pytest.approx((0.9, 0.7, 1))


def test_the_curve_that_uses_most_of_what_is_known():
    signals = {"confidence": 0.5, "reverse": 0.5, "edges": 1.0, "spread": 0.3}
    assert CALIBRATION.expect(signals).dice == pytest.approx(0.5)
    assert np.isnan(CALIBRATION.expect({"confidence": 0.5})).all()
    assert np.isnan(NOTHING_KNOWN).all()


def test_a_calibration_belongs_to_its_weights(tmp_path):
    weights = tmp_path / "net.safetensors"
    assert read_calibration(weights, "abc") is None
    (tmp_path / "net.trust.json").write_text(CALIBRATION.to_json())
    read = read_calibration(weights, "abc")
    assert read.expect({"confidence": 0.4, "reverse": 0.6}) == CALIBRATION.expect(
        {"confidence": 0.4, "reverse": 0.6}
    )
    assert read.to_json() == CALIBRATION.to_json()
    assert read_calibration(weights, "other") is None
    for text in ("{}", "[]", "no json", '{"curves": 3}'):
        (tmp_path / "net.trust.json").write_text(text)
        with pytest.raises(WeightsError, match="no calibration"):
            read_calibration(weights, "abc")


def draw_rows(count, seed):
    """Draw trials, two a case, whose Dice is a noisy mean of what the signals say."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0.1, 0.95, count)

    def signal(noise):
        return np.clip(quality + rng.normal(0, noise, count), 0, 1)

    rows = {name: signal(0.1) for name in SIGNALS}
    rows["scales"] = np.where(rng.random(count) < 0.5, np.nan, signal(0.1))
    rows["dice"] = np.clip(quality + rng.normal(0, 0.05, count), 0, 1)
    rows["case"] = np.arange(count) // 2
    return pd.DataFrame(rows)


def test_a_fitted_calibration_predicts_fresh_trials():
    pytest.importorskip("mapie")
    from medverse_nb.evaluation.trust.fit import fit

    learnt = fit(draw_rows(600, 0), "abc", "planted trials")
    assert learnt.to_json() == fit(draw_rows(600, 0), "abc", "planted trials").to_json()
    fresh = draw_rows(600, 1)
    signals = [row.dropna().to_dict() for _, row in fresh[list(SIGNALS)].iterrows()]
    found = pd.DataFrame([learnt.expect(one) for one in signals])
    assert found["dice"].corr(fresh["dice"], method="spearman") > 0.9
    inside = (found["low"] <= fresh["dice"]) & (fresh["dice"] <= found["high"])
    assert 0.72 < inside.mean() < 0.88
    assert (found["high"] - found["low"]).median() < 0.3
    assert found["dice"].nunique() > 300  # no steps, so that answers can be ranked


def test_a_pattern_with_few_trials_is_not_learnt():
    pytest.importorskip("mapie")
    from medverse_nb.evaluation.trust.fit import fit

    rows = draw_rows(200, 0).assign(scales=np.nan)
    learnt = fit(rows, "abc", "planted trials")
    assert not any("scales" in curve.weights for curve in learnt.curves)
    assert learnt.curves


# Trials


def test_a_trial_is_drawn_again_by_its_seed():
    first, second = (draw_trial(ShapeSource(), Generator().manual_seed(3), 2, 3) for _ in range(2))
    assert [p.hash for p in first.pairs] == [p.hash for p in second.pairs]
    assert (len(first.pairs), len(first.targets)) == (2, 3)
    for one, again in zip(first.targets, second.targets, strict=True):
        np.testing.assert_array_equal(one.image.values, again.image.values)
        np.testing.assert_array_equal(one.label.values, again.label.values)
        assert (one.label.values == FOREGROUND).any()


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_context_has_its_images_and_other_labels(name):
    trial = draw_trial(ShapeSource(), Generator().manual_seed(5), 4, 1)
    broken = BREAKS[name](trial.pairs, 1)
    assert [p.name for p in broken] == [p.name for p in trial.pairs]
    assert [p.image_hash for p in broken] == [p.image_hash for p in trial.pairs]
    changed = [
        dice(new.label.values == FOREGROUND, old.label.values == FOREGROUND) < 0.9
        for new, old in zip(broken, trial.pairs, strict=True)
    ]
    assert sum(changed) >= 2


# In a session


def fill(session, count=3):
    session.network = Stub(bright)
    for pair in draw_pairs(count):
        session.context.add(pair)
    return session


@pytest.fixture
def open_session(tiny_weights):
    def open_(count=3, **options):
        return fill(ICLSession(tiny_weights, device="cpu", precision="float32", **options), count)

    return open_


def test_without_a_calibration_there_are_signals_and_no_promise(open_session, tmp_path):
    target = draw_pair("target", 99)
    found = open_session().predict(target.image, trust="full")
    assert found.trust.table.index.tolist() == ["class 1"]
    assert np.isnan(found.trust.table["expected_dice"]).all()
    assert "no calibration" in found.trust.note
    assert found.trust.uncertainty.shape == (1, *SIDES)
    assert float(found.trust.uncertainty.max()) == 0  # the stub does not look at the context
    assert len(found.trust.left_out) == 3
    found.write(tmp_path / "answer.nii.gz")
    written = json.loads((tmp_path / "answer.json").read_text(), parse_constant=pytest.fail)
    assert written["trust"]["classes"][0]["reverse"] == pytest.approx(1)


def test_with_a_calibration_the_expected_dice_is_told(open_session):
    session = open_session()
    session.judge.calibration = CALIBRATION
    found = session.predict(draw_pair("target", 99).image, trust="fast")
    assert found.trust.uncertainty is None
    assert "expect Dice 1.00 (80% sure: 1.00 to 1.00)" in repr(found.trust)
    assert "expect Dice" in found._repr_html_()
    table = session.predict_many({"a": draw_pair("target", 99).image}, trust="fast")
    assert table["expected_dice"].tolist() == pytest.approx([1.0])
    assert "expected_dice" not in session.predict_many({"a": draw_pair("t", 9).image})


def test_a_context_is_looked_at_once(open_session):
    session = open_session(4)
    counts = []
    for target in (98, 99):
        session.network.calls = 0
        session.predict(draw_pair("target", target).image, trust="full")
        counts.append(session.network.calls)
    assert counts[0] - counts[1] == 4
    session.remove_context("pair-3")
    session.network.calls = 0
    session.predict(draw_pair("target", 99).image, trust="full")
    assert session.network.calls == 1 + count_runs("full", 3, context_known=False)


def test_a_pair_that_the_others_cannot_answer_is_named(open_session):
    session = open_session(5)
    image = draw_pair("odd", 50).image
    label = np.zeros(SIDES, np.uint8)
    label[:4, :4, :4] = 1
    session.context.add(make_pair(image, label, name="odd", affine=np.eye(4)))
    found = session.predict(draw_pair("target", 99).image, trust="full")
    assert [(f.code, f.pair) for f in found.trust.findings] == [("pair-left-out", "odd")]
    table = session.predict_many({"a": draw_pair("target", 99).image}, trust="full")
    assert table["findings"].str.startswith("odd: ").all()
    assert "findings" not in session.predict_many({"a": draw_pair("target", 99).image})


def told(session) -> set[str]:
    found = session.predict(draw_pair("target", 99).image, trust="full").trust
    return {finding.code for finding in found.findings}


def test_a_sound_context_is_left_alone(open_session):
    assert told(open_session(5)) == set()


def test_shuffled_labels_are_told(open_session):
    session = open_session(5)
    pairs = shuffle_labels(session.context.pairs, seed=3)
    session.context = ContextSet(pairs)
    assert "context-broken" in told(session)


def test_pairs_that_mark_two_structures_are_told(open_session):
    session = open_session(4)
    session.context = ContextSet(
        [make_pair(p.image, 1 - p.label, name=p.name) if n % 2 else p
         for n, p in enumerate(session.context.pairs)]
    )  # fmt: skip
    session.network = Stub(mean_label)
    assert "context-weak" in told(session)


def test_labels_off_their_images_edges_are_told(open_session):
    session = open_session(3)
    moved = [np.roll(p.label.values, 4, axis=0) for p in session.context.pairs]
    session.context = ContextSet(
        [make_pair(p.image, label, name=p.name, affine=np.eye(4))
         for p, label in zip(session.context.pairs, moved, strict=True)]
    )  # fmt: skip
    assert "labels-off-edges" in told(session)


def test_a_doubtful_answer_is_told(open_session):
    session = open_session()
    low = Curve({"confidence": 0.0}, 0.0, (0.0, 1.0), (0.2, 0.2), (0.1, 0.1), (0.3, 0.3))
    session.judge.calibration = Calibration("abc", 0.8, 1, "", (low,))
    found = session.predict(draw_pair("target", 99).image, trust="fast").trust
    assert [finding.code for finding in found.findings] == ["low-trust"]
    assert "expect Dice 0.20" in repr(found)


@pytest.mark.parametrize("level", ["on", "", None])
def test_an_unknown_level_is_refused_before_anything_runs(open_session, level):
    session = open_session()
    with pytest.raises(InputError, match="is not one of"):
        session.predict(draw_pair("target", 99).image, trust=level)
    assert session.network.calls == 0


def test_an_image_task_has_no_trust_score(open_session):
    session = open_session(0, task="image")
    pair = draw_pair("a", 1)
    session.add_context(pair.image, pair.image, name="a")
    with pytest.raises(InputError, match='for task="segmentation"'):
        session.predict(pair.image, trust="fast")


def test_cancel_ends_it_and_the_last_answer_stays(open_session):
    session, cancel, told = open_session(), Event(), []
    before = session.predict(draw_pair("target", 98).image)

    def on_progress(what, done, count):
        told.append((what, done, count))
        if what == "trust score" and done == 2:
            cancel.set()

    with pytest.raises(Cancelled, match="after 3 of"):
        session.predict(
            draw_pair("target", 99).image, trust="full", cancel=cancel, on_progress=on_progress
        )
    assert session.last is before
    assert [one for one in told if one[0] == "trust score"] == [
        ("trust score", done, 9) for done in range(3)
    ]


def test_the_map_lies_where_the_scan_lies(open_session):
    session = open_session(4)
    session.network = Stub(mean_label)
    target = draw_pair("target", 99).image
    straight = session.predict(target, trust="full").trust.uncertainty
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SIDES[0] - 1
    turned = session.predict(
        np.ascontiguousarray(target.values[::-1]), affine=flipped, trust="full"
    ).trust.uncertainty
    assert float(straight.max()) > 0.1
    np.testing.assert_allclose(turned.values[:, ::-1], straight.values, atol=1e-6)


def test_the_shipped_weights_have_their_calibration():
    judge = ICLSession("medverse-tiny").judge
    assert judge.calibration is not None
    assert judge.calibration.confidence == 0.8
