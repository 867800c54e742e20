import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import Generator

import medverse_nb as mv
from medverse_nb.errors import ContextError, InputError, OutputError
from medverse_nb.evaluation.trust.calibration import Calibration
from medverse_nb.inference.schedule import scale_shape
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.weights import read_notes, save_network, weights_hash
from medverse_nb.pair import make_pair
from medverse_nb.resampling import resize
from medverse_nb.training import tuning
from medverse_nb.training.tuning import TuningTasks, tune_network
from medverse_nb.tuning import crop_of

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 8
CALIBRATION = Calibration("abc", 0.8, 1, "", ())
SHAPE = (12, 10, 7)  # two scales of a window of 8, one axis shorter than it


def plant_pair(seed: int, name: str | None = None):
    """Make a bright block 1 beside a dim block 2, its place varying a little."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    x, y = rng.integers(2, 5, 2)
    label[x : x + 4, y : y + 3, 2:5] = 1
    label[x : x + 2, y + 3 : y + 5, 2:5] = 2
    image = (label == 1) + 0.5 * (label == 2) + rng.normal(0, 0.05, SHAPE)
    return make_pair(image, label, name=name or f"pair-{seed}", affine=np.eye(4))


@pytest.fixture(scope="module")
def pairs():
    return [plant_pair(seed) for seed in range(6)]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def tasks_of(pairs, wanted=((1,), (2,))) -> TuningTasks:
    return TuningTasks(pairs, wanted, "box", WINDOW, WINDOW)


def small_network() -> ICLNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(
        channels=(8, 8), window=WINDOW, position_bias="relative", norm="group", output="sigmoid"
    )
    return ICLNetwork(config).eval()


def state_of(network) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same_state(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that moves a hundredth of a second at every look: a busy machine changes nothing."""
    looks = itertools.count()

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return 0.01 * next(looks)

    monkeypatch.setattr(tuning, "time", Clock)


# --- the tasks -----------------------------------------------------------------------------------


def test_a_task_is_decided_by_its_generator(pairs):
    first, again = (tasks_of(pairs).draw(seeded(3)) for _ in range(2))
    assert torch.equal(first.target, again.target)
    assert torch.equal(first.context_label, again.context_label)
    others = [tasks_of(pairs).draw(seeded(seed)).target for seed in range(4, 9)]
    assert not any(torch.equal(first.target, other) for other in others)


def test_tasks_are_leave_one_out_and_cover_both_scales(pairs):
    cube, sizes, fed = (WINDOW,) * 3, set(), set()
    for seed in range(60):
        task = tasks_of(pairs).draw(seeded(seed))
        size = task.context_image.shape[1]
        sizes.add(size)
        fed.add(task.ar_label is not None)
        assert task.kind == "segmentation"
        assert task.target.shape == task.truth.shape == (1, 1, *cube)
        assert task.context_image.shape == task.context_label.shape == (1, size, 1, *cube)
        for image in task.context_image[0]:
            assert not torch.equal(image, task.target[0])
        for tensor in (task.target, task.truth, task.context_image, task.context_label):
            assert 0 <= tensor.min() <= tensor.max() <= 1
    assert sizes == {1, 2, 3, 4}
    assert fed == {True, False}


def test_crops_are_those_of_the_whole_volume(pairs):
    """A task's target is found, voxel for voxel, in the volume resized as inference does it."""
    levels = [
        (resize(p.canonical_image.array, shape), resize((p.label.values == 1) * 1.0, shape))
        for p in pairs
        for shape in (scale_shape(SHAPE, scale, 2, WINDOW) for scale in (1, 2))
    ]
    for seed in range(20):
        task = tasks_of(pairs, ((1,),)).draw(seeded(seed))
        image, label = task.target[0, 0].numpy(), task.truth[0, 0].numpy()
        assert any(contains(whole, image) and contains(truth, label) for whole, truth in levels), (
            seed
        )


def contains(volume: np.ndarray, window: np.ndarray) -> bool:
    """Whether some region of `volume`, zero beyond its end, is `window`."""
    filled = np.pad(volume, [(0, max(0, WINDOW - side)) for side in volume.shape])
    starts = [range(side - WINDOW + 1) for side in filled.shape]
    return any(
        np.allclose(filled[x : x + WINDOW, y : y + WINDOW, z : z + WINDOW], window, atol=1e-5)
        for x in starts[0]
        for y in starts[1]
        for z in starts[2]
    )


def test_labels_stay_in_range_where_resampling_rounds():
    """A box that is not a whole multiple of another: weights that sum to one but for rounding."""
    rng = np.random.default_rng(3)
    volumes = [
        make_pair(rng.random(shape), np.ones(shape, np.uint8), name=f"{shape}", affine=np.eye(4))
        for shape in [(35, 51, 37), (33, 47, 41), (38, 53, 29)]
    ]
    tasks = TuningTasks(volumes, ((1,),), "box", 32, 32)
    for seed in range(12):
        task = tasks.draw(seeded(seed))
        assert max(float(task.truth.max()), float(task.context_label.max())) <= 1


def test_image_tasks_have_images_as_labels(pairs):
    images = [make_pair(p.image, 2 * p.image + 3, name=p.name, task="image") for p in pairs]
    task = TuningTasks(images, [None], "box", WINDOW, WINDOW).draw(seeded(1))
    assert task.kind == "image"
    assert (task.truth - task.target).abs().max() < 1e-5  # both scaled to [0, 1]


# --- tuning ----------------------------------------------------------------------------------------


def test_the_given_network_is_never_touched(pairs):
    network = small_network()
    before = state_of(network)
    scores = iter([0.1, 0.2, 0.3])
    result = tune_network(network, tasks_of(pairs).draw, lambda _: next(scores), seconds=0.1)
    assert same_state(before, state_of(network))
    assert result.network is not network
    assert not same_state(before, state_of(result.network))
    assert not result.network.training
    assert [score for _, score in result.curve] == [0.1, 0.2, 0.3]
    assert (result.before, result.after) == (0.1, 0.3)
    assert 5 < result.steps < 12


def test_the_best_copy_wins(pairs):
    network = small_network()
    scores, seen = iter([0.1, 0.5, 0.4]), []

    def measure(candidate):
        seen.append(state_of(candidate))
        return next(scores)

    result = tune_network(network, tasks_of(pairs).draw, measure, seconds=0.1)
    assert same_state(state_of(result.network), seen[1])
    assert not same_state(seen[1], seen[2])


def test_nothing_gained_gives_the_untuned_network_back(pairs):
    network = small_network()
    scores = iter([0.5, 0.4, 0.5])
    result = tune_network(network, tasks_of(pairs).draw, lambda _: next(scores), seconds=0.1)
    assert result.network is network
    assert result.after == result.before == 0.5


def test_progress_is_told(pairs):
    told = []
    tune_network(
        small_network(),
        tasks_of(pairs).draw,
        lambda _: 0.0,
        0.1,
        on_progress=lambda *a: told.append(a),
    )
    assert all(0 < used <= of == 0.1 for used, of in told)
    assert told == sorted(told)


# --- through the session ---------------------------------------------------------------------------


@pytest.fixture
def session(pairs, tmp_path):
    path = tmp_path / "small.safetensors"
    save_network(small_network(), path)
    session = mv.ICLSession(path, precision="float32", device="cpu")
    session.context.add(*pairs)
    return session


def test_tuning_learns_the_users_task(session, monkeypatch):
    """From random weights: the held-out pair is found where it was not before."""
    monkeypatch.setattr(tuning, "PEAK_RATE", 5e-3)
    session.judge.calibration = CALIBRATION
    tuned = session.tune(seconds=1.0, classes=[1])
    assert tuned.gain > 0.3
    assert session.judge.calibration is None, "it was learnt on answers of other weights"
    assert session.network is tuned.tuned.network
    target = plant_pair(11)
    prediction = session.predict(target.image, classes=[1], truth=target.label)
    assert prediction.score["dice"].item() > 0.5
    assert prediction.manifest["settings"]["tuning"] == tuned.to_dict()
    assert json.loads(json.dumps(tuned.to_dict()))["held_out"] == list(tuned.held_out)
    assert set(tuned.held_out).isdisjoint(tuned.trained_on)
    assert sorted(tuned.held_out + tuned.trained_on) == session.context.names


def test_only_a_gain_is_kept(session, monkeypatch):
    monkeypatch.setattr(tuning, "PEAK_RATE", 0.0)
    network = session.network
    session.judge.calibration = CALIBRATION
    assert session.tune(seconds=0.1).gain == 0
    assert session.judge.calibration is CALIBRATION
    assert session.network is network
    assert session.tuning is None
    assert session.predict(plant_pair(11).image).manifest["settings"]["tuning"] is None


def test_the_user_may_decide(session):
    network, file = session.network, weights_hash(session.model_name)
    state = state_of(network)
    assert session.tune(seconds=0.1, keep=False).tuned.steps > 0
    assert session.network is network
    kept = session.tune(seconds=0.1, keep=True)
    assert session.tuning is kept
    assert same_state(state, state_of(network))
    assert weights_hash(session.model_name) == file


def test_tuned_weights_are_kept_in_a_file(session, tmp_path):
    tuned = session.tune(seconds=0.2, keep=True)
    target = plant_pair(11).image
    path = tuned.save(tmp_path / "new" / "tuned.safetensors")
    again = mv.ICLSession(path, precision="float32", device="cpu")
    assert same_state(state_of(again.network), state_of(session.network))
    assert json.loads(read_notes(path)["tuning"]) == tuned.to_dict()
    again.context.add(*session.context.pairs)
    assert np.array_equal(session.predict(target).mask, again.predict(target).mask)


def test_tuned_weights_go_to_a_weights_file_only(session, tmp_path):
    tuned = session.tune(seconds=0.1, keep=False)
    with pytest.raises(OutputError, match=r"tuned\.safetensors"):
        tuned.save(tmp_path / "tuned.pt")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        tuned.save(tmp_path / "file" / "tuned.safetensors")
    assert (tmp_path / "file").read_text() == "in the way"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "small.safetensors"]


def test_progress_is_told_in_seconds(session):
    told = []
    session.tune(seconds=0.3, on_progress=lambda *a: told.append(a))
    assert told
    assert {what for what, *_ in told} == {"tuning"}
    assert all(0 <= used <= of for _, used, of in told)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_must_be_positive(session, seconds):
    with pytest.raises(InputError, match="seconds"):
        session.tune(seconds=seconds)


def test_two_pairs_are_too_few(session):
    for name in session.context.names[2:]:
        session.context.remove(name)
    with pytest.raises(ContextError, match="needs 3 pairs"):
        session.tune(seconds=1)


def test_a_class_of_no_pair_is_an_error(session):
    network = copy.copy(session.network)
    with pytest.raises(ContextError, match="9"):
        session.tune(seconds=1, classes=[9])
    assert same_state(state_of(network), state_of(session.network))


def test_crops_are_as_small_as_the_network_can_take(pairs):
    shipped = NetworkConfig(channels=(16, 32, 64, 64), window=64)
    released = NetworkConfig(channels=(4, 4, 4, 4, 4), window=128)
    assert crop_of(shipped) == 32
    assert crop_of(released) == released.multiple == 64
    assert crop_of(NetworkConfig(channels=(4, 4), window=8)) == 8
    task = TuningTasks(pairs, [(1,)], "box", 2 * WINDOW, WINDOW).draw(seeded(0))
    assert task.target.shape[-3:] == (WINDOW,) * 3
