import itertools
import math
import threading

import numpy as np
import pandas as pd
import pytest

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation.answers import MEANING
from medverse_nb.evaluation.baselines import mean_label
from medverse_nb.evaluation.how_many import Draws, draw_contexts, how_many, measure_draws
from medverse_nb.geometry import Grid
from medverse_nb.pair import make_pair

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, 10, 8)


def plant_pair(seed, task="segmentation"):
    """Make a pair whose block lies a little elsewhere in each."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = rng.integers(1, 5, 3)
    label[x : x + 6, y : y + 5, z : z + 3] = 1
    image = label + rng.normal(0, 0.1, SHAPE)
    return make_pair(image, label, name=f"pair-{seed}", affine=np.eye(4), task=task)


@pytest.fixture(scope="module")
def pairs():
    return [plant_pair(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def truth():
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 3:8, 3:6] = 1
    return label


def predict(pairs):
    """Answer the mean label."""
    return mean_label(pairs, Grid(SHAPE, np.eye(4)), "box", (1,))


def names_of(draws):
    return [(size, number, tuple(p.name for p in pairs)) for size, number, pairs in draws]


# --- draws -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(None, (1, 2, 4, 6)), ([2], (2, 6)), ([5, 1, 1], (1, 5, 6)), ([6], (6,)), ([], (6,))],
)
def test_sizes_double_or_are_given_and_end_with_all(pairs, sizes, expected):
    assert draw_contexts(pairs, sizes=sizes).sizes == expected


def test_sizes_of_a_power_of_two_are_not_doubled_at_the_end(pairs):
    assert draw_contexts(pairs[:4]).sizes == (1, 2, 4)
    assert draw_contexts(pairs[:1]).sizes == (1,)


def test_the_contexts_of_a_draw_are_nested(pairs):
    contexts = {
        (size, number): set(names) for size, number, names in names_of(draw_contexts(pairs))
    }
    for number in range(5):
        for small, large in itertools.pairwise((1, 2, 4, 6)):
            assert contexts[small, number] < contexts[large, number]
            assert len(contexts[small, number]) == small


def test_draws_follow_the_seed_and_not_the_order_of_pairs(pairs):
    first = names_of(draw_contexts(pairs, seed=1))
    assert names_of(draw_contexts(pairs[::-1], seed=1)) == first
    assert names_of(draw_contexts(pairs, seed=2)) != first


def test_more_draws_begin_with_the_same_ones(pairs):
    few, many = (draw_contexts(pairs, draws=draws, seed=3) for draws in (2, 7))
    assert many.orders[:2] == few.orders


@pytest.mark.parametrize(("count", "draws"), [(1, 3), (2, 5), (6, 1), (6, 4)])
def test_the_cost_is_known_beforehand(pairs, count, draws):
    plan = draw_contexts(pairs[:count], draws=draws)
    asked = []

    def counting(pairs):
        asked.append(frozenset(pair.name for pair in pairs))
        return predict(pairs)

    how_many(counting, plan)
    assert len(asked) == plan.predictions == len(set(asked))
    assert plan.predictions <= draws * (len(plan.sizes) - 1) + 1
    assert asked[0] == {pair.name for pair in pairs[:count]}


# --- the curve ---------------------------------------------------------------------------


def test_a_truth_gives_dice_with_its_spread(pairs, truth):
    plan = draw_contexts(pairs, draws=4)
    rows = pd.DataFrame(measure_draws(predict, plan, truth=truth))
    table = how_many(predict, plan, truth=truth)
    assert list(table.columns) == ["size", "class", "measure", "mean", "std", "min", "max", "draws"]
    assert table["size"].tolist() == [1, 2, 4, 6]
    assert set(table["measure"]) == {"dice"} < set(MEANING)
    for line in table.itertuples():
        scores = rows.loc[rows["size"] == line.size, "score"]
        assert line.mean == pytest.approx(scores.mean())
        assert line.std == pytest.approx(np.std(scores, ddof=1))
        assert (line.min, line.max, line.draws) == (scores.min(), scores.max(), 4)
    assert table["std"].iloc[-1] == 0 < table["std"].iloc[0]


def test_scores_are_those_of_the_pairs_that_were_drawn(pairs, truth):
    plan = draw_contexts(pairs, sizes=[1], draws=2)
    rows = list(measure_draws(predict, plan, truth=truth))
    for row in rows[:2]:
        (pair,) = plan.orders[row["draw"]][:1]
        both = (pair.label.values & truth).sum()
        dice = 2 * both / (pair.label.values.sum() + truth.sum())
        assert row["score"] == pytest.approx(dice)


def test_without_a_truth_it_is_agreement_and_ends_at_one(pairs):
    table = how_many(predict, draw_contexts(pairs))
    assert set(table["measure"]) == {"agreement"}
    assert table["mean"].iloc[-1] == 1 > table["mean"].iloc[0]
    assert "not how right" in MEANING["agreement"]


def test_agreement_says_nothing_of_accuracy(pairs, truth):
    """An answer that ignores the context agrees with itself, right or wrong."""
    wrong = 1.0 - truth
    plan = draw_contexts(pairs)
    assert set(how_many(lambda _: wrong, plan)["mean"]) == {1}
    assert set(how_many(lambda _: wrong, plan, truth=truth)["mean"]) == {0}


def test_image_tasks_have_psnr_or_a_difference(pairs, truth):
    images = [plant_pair(seed, task="image") for seed in range(3)]

    def mean_image(pairs):
        return np.mean([pair.label.values for pair in pairs], axis=0)

    plan = draw_contexts(images, draws=2)
    table = how_many(mean_image, plan)
    assert set(table["measure"]) == {"difference"}
    assert table["mean"].iloc[-1] == 0 < table["mean"].iloc[0]
    table = how_many(mean_image, plan, truth=truth)
    assert set(table["measure"]) == {"psnr"}
    error = np.mean((mean_image(images) - truth) ** 2)
    assert table["mean"].iloc[-1] == pytest.approx(-10 * math.log10(error), abs=1e-4)


def test_the_order_of_pairs_changes_nothing(pairs, truth):
    plain, turned = (
        how_many(predict, draw_contexts(given), truth=truth) for given in (pairs, pairs[::-1])
    )
    pd.testing.assert_frame_equal(plain, turned)


def test_one_draw_has_no_spread(pairs, truth):
    table = how_many(predict, draw_contexts(pairs, draws=1), truth=truth)
    assert table["std"].isna().all()
    assert set(table["draws"]) == {1}


def test_each_class_has_its_own_curve(pairs, truth):
    def both(pairs):
        return np.stack([predict(pairs), np.zeros(SHAPE)])

    table = how_many(both, draw_contexts(pairs), truth=np.stack([truth, np.zeros(SHAPE)]))
    assert (table.loc[table["class"] == "2", "mean"] == 1).all()
    one = how_many(predict, draw_contexts(pairs), truth=truth)
    assert table.loc[table["class"] == "1", "mean"].tolist() == one["mean"].tolist()


def test_orders_of_ones_own(pairs, truth):
    plan = Draws((tuple(pairs),), (1, 3))
    rows = list(measure_draws(predict, plan, truth=truth))
    assert plan.predictions == len(rows) == 2
    assert [row["size"] for row in rows] == [1, 3]


def test_progress_is_told(pairs):
    told = []
    plan = draw_contexts(pairs, sizes=[2], draws=2)
    how_many(predict, plan, on_progress=lambda *news: told.append(news))
    assert told == [
        ("all 6 pairs", 0, 3),
        ("2 of 6 pairs, draw 1", 1, 3),
        ("2 of 6 pairs, draw 2", 2, 3),
        ("", 3, 3),
    ]


def test_a_cancelled_curve_has_given_what_it_measured(pairs):
    cancel, rows = threading.Event(), []
    plan = draw_contexts(pairs, draws=3)

    def measure():
        for row in measure_draws(predict, plan, cancel=cancel):
            rows.append(row)
            cancel.set()

    with pytest.raises(Cancelled, match=f"after 2 of {plan.predictions}"):
        measure()
    assert [(row["size"], row["draw"]) for row in rows] == [(1, 0)]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"sizes": [2, 7]}, ContextError, r"sizes \[7\] must lie in 1\.\.6"),
        ({"sizes": [0]}, ContextError, r"sizes \[0\]"),
        ({"draws": 0}, InputError, "draws=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_drawn_is_said(pairs, settings, error, words):
    with pytest.raises(error, match=words):
        draw_contexts(pairs, **settings)


def test_bad_pairs_and_truths_are_said(pairs):
    with pytest.raises(ContextError, match="no context pairs"):
        draw_contexts([])
    with pytest.raises(ContextError, match="taken twice"):
        draw_contexts([pairs[0], pairs[0]])
    with pytest.raises(InputError, match="one shape"):
        how_many(predict, draw_contexts(pairs), truth=np.zeros((2, 2, 2)))
