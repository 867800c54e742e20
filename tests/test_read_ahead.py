"""A context that is read while the network runs: the same answer, a few crops at a time."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from medverse_nb.inference import crops as crops_file
from medverse_nb.inference.crops import Crops, ScaleVolumes
from medverse_nb.inference.read_ahead import CropsAhead, ReadAhead
from medverse_nb.inference.runner import WindowRunner
from medverse_nb.inference.windows import Window, cut_all
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, PAIRS, QUESTIONS = (12, 10, 9), 5, 3
WINDOWS = [Window((0, 0, 0), (8, 8, 8)), Window((4, 2, 1), (8, 8, 8))]
ONE = 4 * len(WINDOWS) * 8**3  # bytes of the crops of one volume


def draw(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


class Counted:
    """A volume that counts how often it is read."""

    ndim, dtype = 3, np.dtype(np.float32)

    def __init__(self, values, seen=None) -> None:
        self.values, self.shape, self.seen = values, values.shape, seen

    def __getitem__(self, index):
        if self.seen is not None:
            self.seen.append(threading.get_ident())
        return self.values[index]


@pytest.fixture
def volumes():
    images, labels = draw(PAIRS, *SHAPE, seed=1), draw(QUESTIONS, PAIRS, *SHAPE, seed=2)
    fed = draw(SHAPE[0], *SHAPE[1:], seed=4), [*draw(QUESTIONS, *SHAPE, seed=5)]
    return ScaleVolumes(draw(*SHAPE, seed=3), [*images], [[*one] for one in labels], fed)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ICLNetwork(NetworkConfig(channels=(4, 4), window=8, output="sigmoid")).eval()


@pytest.mark.parametrize("mini", [1, 2, 5])
@pytest.mark.parametrize(
    ("largest", "late"),
    [
        (ONE * PAIRS * QUESTIONS, (False, False)),
        (ONE * PAIRS, (False, True)),
        (ONE, (True, True)),
        (0, (True, True)),
    ],
)
def test_the_answer_is_the_same_to_the_last_bit(volumes, network, monkeypatch, mini, largest, late):
    whole = WindowRunner(network, "float32", mini)(Crops.read(volumes, WINDOWS))
    monkeypatch.setattr(crops_file, "LARGEST_READ", largest)
    crops = Crops.read(volumes, WINDOWS)
    for pair in crops.context:
        assert tuple(isinstance(one, CropsAhead) for one in pair) == late
        assert {one.shape for one in pair} == {(len(WINDOWS), PAIRS, 8, 8, 8)}
    assert np.array_equal(WindowRunner(network, "float32", mini)(crops), whole)


def test_each_crop_is_read_once_in_order_and_on_the_spot_in_another(volumes):
    seen = []
    labels = [[Counted(volume, seen) for volume in views] for views in volumes.labels]
    questions = ReadAhead(labels, WINDOWS, 2).questions
    taken = [question[:, n : n + 1] for question in questions for n in range(PAIRS)]
    assert len(seen) == len(WINDOWS) * PAIRS * QUESTIONS
    assert threading.get_ident() not in seen
    for views, question in zip(volumes.labels, questions, strict=True):
        expected = cut_all(views, WINDOWS, axis=1)
        assert np.array_equal(np.concatenate(taken[:PAIRS], axis=1), expected)
        del taken[:PAIRS]
        assert np.array_equal(question[:, 1:4], expected[:, 1:4])
        assert np.array_equal(question[:1, 2:], expected[:1, 2:])


def test_no_more_than_asked_for_is_read_ahead(volumes):
    seen = []
    (question,) = ReadAhead([[Counted(v, seen) for v in volumes.images]], WINDOWS[:1], 2).questions
    for taken in range(1, PAIRS + 1):
        question[:, taken - 1 : taken]
        until = time.monotonic() + 5
        while len(seen) < min(taken + 2, PAIRS) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(seen) == min(taken + 2, PAIRS)


def test_a_volume_that_cannot_be_read_is_an_error_where_it_is_taken(volumes):
    class Gone(Counted):
        def __getitem__(self, index):
            raise OSError("gone")

    views = [*map(Counted, volumes.images[:2]), Gone(volumes.images[2])]
    (question,) = ReadAhead([views], WINDOWS, 8).questions
    assert question[:, :2].shape == (2, 2, 8, 8, 8)
    with pytest.raises(OSError, match="gone"):
        question[:, 2:3]


def test_threads_do_not_become_more_with_the_windows(volumes):
    for _ in range(2):
        before = threading.active_count()
        for _ in range(5):
            (question,) = ReadAhead([volumes.images], WINDOWS, 2).questions
            question[:, :]
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_readers_of_its_own(volumes):
    (question,) = ReadAhead([volumes.images], WINDOWS, 2).questions
    expected = question[:, :]
    child = os.fork()
    if not child:
        signal.alarm(30)
        (question,) = ReadAhead([volumes.images], WINDOWS, 2).questions
        os._exit(0 if np.array_equal(question[:, :], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
