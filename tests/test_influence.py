import threading

import numpy as np
import pytest

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation.answers import predictor
from medverse_nb.evaluation.baselines import mean_label
from medverse_nb.evaluation.influence import influence
from medverse_nb.geometry import Grid
from medverse_nb.inference.recipe import Settings
from medverse_nb.io import read_volume
from medverse_nb.model.registry import load_model
from medverse_nb.pair import make_pair
from medverse_nb.regions import read

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, 10, 8)
GRID = Grid(SHAPE, np.eye(4))
BLOCK = (slice(3, 8), slice(3, 7), slice(2, 6))
CORNER = (slice(0, 3), slice(0, 3), slice(0, 3))


def labelled(*blocks):
    label = np.zeros(SHAPE, np.uint8)
    for value, block in enumerate(blocks, 1):
        if block:
            label[block] = value
    return label


def pair(name, label, seed=0, task="segmentation"):
    noise = np.random.default_rng(seed).normal(0, 0.1, SHAPE)
    return make_pair((label > 0) + noise, label, name=name, affine=np.eye(4), task=task)


def mean_of(*wanted):
    """Return a stub whose answer is the mean label."""
    return lambda pairs: np.stack([mean_label(pairs, GRID, "box", values) for values in wanted])


def union(pairs):
    """Return every voxel that any pair marks: a second pair of the same label adds nothing."""
    return np.max([read(pair.label_on(GRID, "box", (1,))) for pair in pairs], axis=0)


def by_pair(table, column="influence"):
    return dict(zip(table["pair"], table[column], strict=True))


@pytest.fixture
def one_carrier():
    """Four pairs, of which only one has the structure."""
    carrier = pair("carrier", labelled(BLOCK), 1)
    return [*(pair(f"empty-{n}", labelled(), n) for n in (2, 3)), carrier, pair("last", labelled())]


def test_the_only_pair_with_the_structure_comes_first_under_the_mean_label(one_carrier):
    found = by_pair(influence(mean_of((1,)), one_carrier))
    assert found.pop("carrier") == pytest.approx(1)
    assert all(value == pytest.approx(1 / 7) for value in found.values())  # 1/4 against 1/3


@pytest.mark.slow
def test_the_only_pair_with_the_structure_comes_first_under_the_shipped_network(one_carrier):
    scan = read_volume(labelled(BLOCK) + np.random.default_rng(9).normal(0, 0.1, SHAPE), np.eye(4))
    network = load_model("medverse-tiny", "cpu")
    settings = Settings(window=32, scales=1)
    predict = predictor(network, scan, [(1,)], settings=settings)
    table = influence(predict, one_carrier[1:])
    assert table.loc[table["influence"].idxmax(), "pair"] == "carrier"


def test_under_a_network_too(one_carrier, tiny_weights):
    scan = read_volume(one_carrier[0].image)
    predict = predictor(load_model(tiny_weights, "cpu"), scan, [(1,)])
    found = by_pair(influence(predict, one_carrier))
    assert max(found, key=found.get) == "carrier"


def test_a_duplicate_has_no_influence_where_duplicates_add_nothing():
    twins = [pair(name, labelled(BLOCK)) for name in ("one", "two")]
    pairs = [*twins, pair("other", labelled(CORNER))]
    found = by_pair(influence(union, pairs))
    assert found["one"] == found["two"] == 0
    assert found["other"] > 0


def test_the_order_of_pairs_changes_nothing(one_carrier):
    plain = by_pair(influence(mean_of((1,)), one_carrier))
    for order in (one_carrier[::-1], one_carrier[2:] + one_carrier[:2]):
        table = influence(mean_of((1,)), order)
        assert by_pair(table) == pytest.approx(plain, abs=1e-6)
        assert table["pair"].tolist() == [p.name for p in order]


def test_a_truth_tells_who_helps_and_who_hurts():
    pairs = [
        *(pair(name, labelled(BLOCK)) for name in ("good", "fine")),
        *(pair(name, labelled(CORNER)) for name in ("bad", "worse")),
    ]

    def first_above_the_rest(pairs):
        votes = np.mean([read(p.label_on(GRID, "box", (1,))) for p in pairs], axis=0)
        return np.where(votes >= 0.5, 0.9, 0.0)

    table = influence(first_above_the_rest, pairs, truth=labelled(BLOCK))
    size, wrong = labelled(BLOCK).sum(), labelled(CORNER).sum()
    assert by_pair(table, "dice")["bad"] == pytest.approx(2 * size / (2 * size + wrong))
    assert by_pair(table, "dice_without") == {"good": 0, "fine": 0, "bad": 1, "worse": 1}
    gains = by_pair(table, "gain")
    assert gains["good"] == gains["fine"] > 0 > gains["bad"] == gains["worse"]


def test_each_class_has_its_own_influence():
    pairs = [
        pair("both", labelled(BLOCK, CORNER)),
        pair("one", labelled(BLOCK)),
        pair("again", labelled(BLOCK)),
    ]
    table = influence(mean_of((1,), (2,)), pairs).set_index(["class", "pair"])["influence"]
    assert table["1"].max() == 0
    assert table["2"].to_dict() == pytest.approx({"both": 1, "one": 0.2, "again": 0.2})


def test_an_image_task_tells_the_difference_in_its_units():
    labels = [np.full(SHAPE, level, np.float32) for level in (10, 20, 60)]
    pairs = [pair(f"{label.max():g}", label, task="image") for label in labels]

    def mean_image(pairs):
        return np.mean([pair.label.values for pair in pairs], axis=0)

    truth = labels[1] + np.linspace(0, 1, SHAPE[0])[:, None, None]
    table = influence(mean_image, pairs, truth=truth)
    assert by_pair(table) == pytest.approx({"10": 10, "20": 5, "60": 15})
    assert list(table.columns) == ["pair", "class", "influence", "psnr", "psnr_without", "gain"]
    assert by_pair(table, "gain")["60"] < 0 < by_pair(table, "gain")["10"]


def test_it_costs_one_prediction_more_than_there_are_pairs(one_carrier):
    asked, told = [], []

    def predict(pairs):
        asked.append({pair.name for pair in pairs})
        return mean_of((1,))(pairs)

    influence(predict, one_carrier, on_progress=lambda *news: told.append(news))
    names = {pair.name for pair in one_carrier}
    assert asked == [names, *(names - {pair.name} for pair in one_carrier)]
    assert told[0] == ("all 4 pairs", 0, 5)
    assert told[1] == ("without empty-2", 1, 5)
    assert told[-1] == ("", 5, 5)


def test_it_can_be_cancelled(one_carrier):
    cancel = threading.Event()

    def predict(pairs):
        cancel.set()
        return mean_of((1,))(pairs)

    with pytest.raises(Cancelled, match="after 1 of 5"):
        influence(predict, one_carrier, cancel=cancel)


def test_what_influence_cannot_do_is_said(one_carrier):
    predict = mean_of((1,))
    with pytest.raises(ContextError, match="no context pairs"):
        influence(predict, [])
    with pytest.raises(ContextError, match=r"'carrier', the only pair.*two pairs or more"):
        influence(predict, [one_carrier[2]])
    with pytest.raises(ContextError, match="taken twice"):
        influence(predict, [one_carrier[0]] * 2)
    with pytest.raises(InputError, match="one shape"):
        influence(predict, one_carrier, truth=np.zeros((2, 2, 2)))
