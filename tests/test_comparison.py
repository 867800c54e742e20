"""`session.compare`: the model and its baselines on one target, told side by side."""

import base64
import re
import threading

import nibabel as nib
import numpy as np
import pytest

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation.baselines import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = ["method", "class", "dice", "seconds", "note", "error"]


class Planted:
    """A method that answers, fails or counts as it is told."""

    def __init__(self, name, answer) -> None:
        self.name, self.answer, self.trials = name, answer, []

    def predict(self, trial):
        self.trials.append(trial)
        return Outcome(self.answer(trial), "planted")


def fail(_trial):
    raise RuntimeError("no such luck\nand more of it")


@pytest.fixture
def truth(cohort):
    """The scan's own label, as `cohort` drew it."""
    scan = nib.load(cohort.scan)
    image = np.asanyarray(scan.dataobj)
    return np.rint(image / 100).astype(np.uint8)


@pytest.fixture
def right(truth):
    return Planted("right", lambda trial: trial.numbers(truth))


def compare(session, cohort, truth, *baselines, **settings):
    settings.setdefault("on_progress", None)
    return session.compare(cohort.scan, truth, baselines=baselines, **settings)


def row_of(found, method, name="class 1"):
    rows = found.table.set_index(["method", "class"])
    return rows.loc[(method, name)]


def test_the_table_has_a_row_a_method_and_class(session, cohort, truth):
    found = session.compare(cohort.scan, truth, on_progress=None)
    assert list(found.table.columns) == COLUMNS
    ours = "random"  # the weights file's name
    expected = [(m, c) for m in (ours, "mean label", "best pair") for c in ("class 1", "class 2")]
    assert list(zip(found.table["method"], found.table["class"], strict=True)) == expected
    assert list(found.masks) == [ours, "mean label", "best pair"]
    score = session.predict(cohort.scan, truth=truth, on_progress=None).score
    for name in ("class 1", "class 2"):
        assert row_of(found, ours, name)["dice"] == pytest.approx(score.loc[name, "dice"])
        mean_label = score.loc[name, "mean_label_dice"]
        assert row_of(found, "mean label", name)["dice"] == pytest.approx(mean_label)


def test_a_failing_method_is_told_and_the_others_go_on(session, cohort, truth, right):
    wrong_shape = Planted("bent", lambda _trial: np.zeros((2, 2, 2), np.uint8))
    found = compare(session, cohort, truth, Planted("broken", fail), wrong_shape, right)
    assert row_of(found, "broken")["error"] == "RuntimeError: no such luck"
    assert "the target is (9, 10, 8)" in row_of(found, "bent")["error"]
    assert np.isnan(row_of(found, "broken")["dice"])
    assert row_of(found, "right")["dice"] == 1
    assert row_of(found, "right")["error"] == ""
    assert "broken" not in found.masks
    assert "bent" not in found.masks
    assert "broken" in repr(found)


def test_a_baseline_that_wins_is_named_on_both_sides(session, cohort, truth, right):
    nothing = Planted("nothing", lambda trial: np.zeros(trial.target.shape, np.uint8))
    found = compare(session, cohort, truth, right, nothing)
    ours = "random"
    gain = 1 - row_of(found, ours)["dice"]
    assert gain > 0
    assert row_of(found, "right")["note"] == f"better than {ours} by {gain:.3f} dice; planted"
    assert row_of(found, ours)["note"] == "beaten by right"
    assert row_of(found, "nothing")["note"] == "planted"


def test_classes_joined_from_values_are_scored_as_one(session, cohort, truth, right):
    found = compare(session, cohort, truth, right, classes={"block": (1, 2)})
    assert row_of(found, "right", "block")["dice"] == 1
    assert set(np.unique(found.truth)) == {0, 1}
    assert found.masks["right"].dtype.kind in "iu"


@pytest.mark.filterwarnings("ignore:array. replaced 1 non-finite")  # said before the refusal
def test_nothing_runs_where_the_question_is_wrong(session, cohort, truth, right):
    spoiled = truth.astype(np.float32)
    spoiled[4, 5, 4] = np.nan
    wrong = [
        (spoiled, {}, "non-finite"),
        (truth[1:], {}, r"\(8, 10, 8\)"),
        (truth, {"seconds": 0}, "seconds=0"),
        (truth, {"seconds": float("nan")}, "seconds=nan"),
        (truth, {"classes": [7]}, "7"),
    ]
    for known, settings, message in wrong:
        with pytest.raises(InputError, match=message):
            compare(session, cohort, known, right, **settings)
    with pytest.raises(InputError, match="is not one of"):
        compare(session, cohort, truth, right, "no such method")
    session.context.pairs.clear()
    with pytest.raises(ContextError, match="no context"):
        compare(session, cohort, truth, right)
    assert right.trials == []


def test_the_session_stays_as_it_is(session, cohort, truth, right):
    session.predict(cohort.scan, on_progress=None)
    before = session.last, list(session.context.pairs), list(session.context.history)
    state = dict(session.settings)
    compare(session, cohort, truth, right, "mean label")
    assert (session.last, session.context.pairs, session.context.history) == before
    assert session.settings == state


def test_every_method_is_given_the_same(session, cohort, truth, right):
    other = Planted("other", lambda trial: trial.numbers(truth))
    compare(session, cohort, truth, right, other, seconds=5, seed=3)
    (first,), (second,) = right.trials, other.trials
    assert first.pairs == second.pairs == tuple(session.context.pairs)
    assert first.classes == second.classes
    assert (first.seconds, first.seed, first.align) == (5, 3, "box")
    assert (second.seconds, second.seed, second.align) == (5, 3, "box")


def test_a_comparison_is_shown_and_can_be_ended(session, cohort, truth, right):
    told, cancel = [], threading.Event()

    def stop_after_ours(*heard):
        told.append(heard)
        if heard[1] == 1:
            cancel.set()

    with pytest.raises(Cancelled):
        compare(
            session, cohort, truth, "mean label", right, on_progress=stop_after_ours, cancel=cancel
        )
    assert [heard[1:] for heard in told] == [(0, 3), (1, 3)]
    assert right.trials == []


def test_a_picture_has_the_truth_and_a_row_a_method(session, cohort, truth, right):
    found = compare(session, cohort, truth, right, Planted("<broken>", fail))
    html = found._repr_html_()
    assert "&lt;broken&gt;" in html
    assert "<broken>" not in html
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert data.startswith(b"\x89PNG")
    assert data == found.picture()
