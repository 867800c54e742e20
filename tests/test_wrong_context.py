import threading

import numpy as np
import pytest

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation.baselines import mean_label
from medverse_nb.evaluation.wrong_context import shuffle_labels, swap_labels, wrong_context
from medverse_nb.geometry import Grid
from medverse_nb.pair import ContextPair, make_pair
from medverse_nb.regions import read
from medverse_nb.views import as_dask
from medverse_nb.volume import make_volume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, 10, 8)
GRID = Grid(SHAPE, np.eye(4))


def plant_label(shift=0):
    label = np.zeros(SHAPE, np.uint8)
    label[1 + shift : 5 + shift, 2:6, 2:6] = 1
    label[6 + shift : 9 + shift, 2:6, 2:6] = 2
    return label


def pair(name, shift=0, shape=SHAPE, task="segmentation"):
    label = plant_label(shift)[: shape[0], : shape[1], : shape[2]]
    return make_pair(1.0 * label, label, name=name, affine=np.eye(4), task=task)


@pytest.fixture
def pairs():
    return [pair(name, shift) for shift, name in enumerate("abc")]


def mean_of(*wanted):
    return lambda pairs: np.stack([mean_label(pairs, GRID, "box", values) for values in wanted])


def test_swapped_labels_lead_to_the_other_structure(pairs):
    result = wrong_context(
        mean_of((1,)), pairs, swap_labels(pairs, {1: 2}), truth=plant_label(1) == 1
    )
    assert np.array_equal(result.right, mean_of((1,))(pairs))
    assert np.array_equal(result.wrong, mean_of((2,))(pairs))
    assert result.table.to_dict("records") == [
        {"class": "1", "agreement": 0, "dice": 1, "dice_wrong": 0}
    ]


def test_swapping_is_its_own_inverse_and_leaves_the_rest(pairs):
    swapped = swap_labels(pairs, {1: 2})
    for before, after in zip(pairs, swapped, strict=True):
        assert (after.name, after.values) == (before.name, (1, 2))
        assert np.array_equal(after.image, before.image)
        assert np.array_equal(after.label == 2, before.label == 1)
        assert np.array_equal(after.label == 1, before.label == 2)
    for before, after in zip(pairs, swap_labels(swapped, {2: 1}), strict=True):
        assert after.hash == before.hash


def test_a_lazy_label_is_swapped_where_it_is_read(pairs):
    image, label = plant_label(), as_dask(plant_label(), (4, 4, 4))
    lazy = ContextPair(
        "lazy", make_volume(image, np.eye(4)), make_volume(label, np.eye(4)), "segmentation"
    )
    (swapped,) = swap_labels([lazy], {1: 2})
    assert not isinstance(swapped.label.data, np.ndarray)
    assert np.array_equal(swapped.label.values, np.array([0, 2, 1])[image])


@pytest.mark.parametrize("seed", range(5))
def test_no_image_keeps_its_own_label(pairs, seed):
    shuffled = shuffle_labels(pairs, seed=seed)
    assert [p.name for p in shuffled] == [p.name for p in pairs]
    assert {id(p.label) for p in shuffled} == {id(p.label) for p in pairs}
    for before, after in zip(pairs, shuffled, strict=True):
        assert after.image is before.image
        assert after.label is not before.label


def test_shuffling_follows_the_seed_and_not_the_order(pairs):
    def givers(pairs, seed):
        return {p.name: int(p.label.values.argmax()) for p in shuffle_labels(pairs, seed=seed)}

    assert givers(pairs, 1) == givers(pairs[::-1], 1)
    assert len({tuple(sorted(givers(pairs, seed).items())) for seed in range(8)}) == 2


def test_the_mean_label_does_not_notice_a_shuffle(pairs):
    result = wrong_context(mean_of((1,), (2,)), pairs, shuffle_labels(pairs))
    assert result.table["agreement"].tolist() == [1, 1]


def test_a_network_that_looks_at_images_does(pairs):
    def nearest(pairs):
        target = pairs[0].image.values
        alike = min(pairs, key=lambda p: float(np.abs(p.image.values - target).sum()))
        return read(alike.label_on(GRID, "box", (1,)))

    result = wrong_context(nearest, pairs, shuffle_labels(pairs))
    assert result.table["agreement"].iloc[0] < 1


def test_labels_of_another_shape_are_laid_on_the_target(pairs):
    mixed = [pair("small", shape=(6, 10, 8)), *pairs[:1]]
    result = wrong_context(mean_of((1,)), mixed, shuffle_labels(mixed))
    assert result.table["agreement"].tolist() == [1]


def test_an_image_task_tells_the_difference():
    labels = [np.full(SHAPE, level, np.float32) for level in (10, 40)]
    pairs = [
        make_pair(label, label, name=f"{label.max()}", affine=np.eye(4), task="image")
        for label in labels
    ]
    truth = labels[0] + np.linspace(0, 1, SHAPE[0])[:, None, None]
    wrong = shuffle_labels(pairs)
    result = wrong_context(lambda pairs: pairs[0].label.values, pairs, wrong, truth=truth)
    assert result.table["difference"].tolist() == [30]
    assert result.table["psnr"].iloc[0] > result.table["psnr_wrong"].iloc[0]


def test_progress_and_cancel(pairs):
    told, cancel = [], threading.Event()
    wrong = shuffle_labels(pairs)
    wrong_context(mean_of((1,)), pairs, wrong, on_progress=lambda *news: told.append(news))
    assert told == [("the context", 0, 2), ("the wrong context", 1, 2), ("", 2, 2)]
    cancel.set()
    with pytest.raises(Cancelled):
        wrong_context(mean_of((1,)), pairs, wrong, cancel=cancel)


@pytest.mark.parametrize("structures", [{1: 7}, {1: 1}, {1: 2, 2: 1}, {}])
def test_what_cannot_be_swapped_is_said(pairs, structures):
    with pytest.raises(ContextError, match=r"label values of the pairs.*there are \[1, 2\]"):
        swap_labels(pairs, structures)


def test_bad_pairs_and_truths_are_said(pairs):
    with pytest.raises(ContextError, match="no context pairs"):
        swap_labels([], {1: 2})
    with pytest.raises(ContextError, match="no context pairs"):
        wrong_context(mean_of((1,)), [], [])
    with pytest.raises(ContextError, match="two pairs or more"):
        shuffle_labels(pairs[:1])
    with pytest.raises(ContextError, match="image task"):
        swap_labels([pair("image", task="image")], {1: 2})
    with pytest.raises(InputError, match="one shape"):
        wrong_context(mean_of((1,)), pairs, pairs, truth=np.zeros((2, 2, 2)))
