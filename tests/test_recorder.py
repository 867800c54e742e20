"""Where blocks look: what a recorded run keeps, beside the run itself."""

import gc
import pickle
import threading

import nibabel as nib
import numpy as np
import pytest
import torch

from medverse_nb import ICLSession
from medverse_nb.errors import Cancelled, InputError
from medverse_nb.inference import recorder as recorder_file
from medverse_nb.inference.crops import ScaleVolumes
from medverse_nb.inference.engine import Predict
from medverse_nb.inference.recorder import AUTOREGRESSIVE, SEMANTIC, Recording
from medverse_nb.inference.runner import WindowRunner, know
from medverse_nb.model.weights import save_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scan(cohort):
    """A scan of three scales and several windows."""
    path = cohort.root / "three-scales.nii.gz"
    voxels = np.random.default_rng(5).random((24, 10, 9), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 1, 1, 1.0])), path)
    return path


@pytest.fixture
def recorded(session, scan):
    return session.predict(scan, classes=[1], record=True)


def hooks_of(session: ICLSession) -> int:
    return sum(len(module._forward_hooks) for module in session.network.modules())


def test_every_window_is_there_with_its_place(recorded, session):
    attention = recorded.attention
    windows = [(step.scale, w) for step in recorded.steps for w in step.windows]
    assert attention.window.values.tolist() == list(range(len(windows)))
    assert attention.scale.values.tolist() == [scale for scale, _ in windows]
    assert attention.start.values.tolist() == [list(window.start) for _, window in windows]
    assert attention.sides.values.tolist() == [list(window.sides) for _, window in windows]
    assert attention.pair.values.tolist() == [*(p.name for p in session.context), AUTOREGRESSIVE]
    assert attention.target_to_context.dims == (
        "window", "stage", "pair", "query", "key",
    )  # fmt: skip
    assert attention.context_to_target.dims == ("window", "stage", "source", "query", "key")
    assert {variable.dtype for variable in attention.data_vars.values()} == {np.dtype("float16")}
    assert attention.attrs == {"blocks_per_axis": 4, "partition": "interleaved"}
    assert attention.sizes["query"] == attention.sizes["key"] == 4**3


def test_rows_sum_to_one_where_there_is_attention(recorded):
    attention = recorded.attention.astype(np.float64)
    first, later = attention.isel(window=0), attention.isel(window=slice(1, None))
    assert first.scale == 1
    assert (later.scale > 1).all()
    last = attention.stage[-1]  # the target does not come to the context there
    given, taken = later.target_to_context, later.context_to_target
    assert np.allclose(given.drop_sel(stage=last).sum("key"), 1, atol=2e-3)
    assert given.sel(stage=last).isnull().all()
    assert np.allclose(taken.sum(["source", "key"]), 1, atol=2e-3)
    assert first.target_to_context.sel(pair=AUTOREGRESSIVE).isnull().all()
    assert first.context_to_target.sel(source=AUTOREGRESSIVE).isnull().all()
    assert np.allclose(first.context_to_target.sel(source=SEMANTIC).sum("key"), 1, atol=2e-3)


def test_what_is_kept_is_what_the_network_used(session, cohort):
    """One window, whose attention is computed here from the maps the modules were given."""
    seen = {}

    def note(name):
        def hook(module, args, _output):
            seen.setdefault(name, []).append((module, args))

        return hook

    network = session.network
    handles = [
        part.fusions[number].attention.register_forward_hook(note((name, number)))
        for name, part in (("branch", network.context_branch), ("decoder", network.target_decoder))
        for number in range(len(part.fusions))
    ]
    small = np.random.default_rng(3).random((8, 7, 8), dtype=np.float32)
    attention = session.predict(
        small, affine=np.eye(4), classes=[2], record=True, on_progress=None
    ).attention
    for handle in handles:
        handle.remove()
    (window,) = attention.window.values
    kept = attention.sel(window=window)
    stages = len(network.config.channels)
    for (name, number), calls in seen.items():
        for module, (query, sources, _values, query_code, source_codes) in calls:
            with torch.inference_mode():
                weights = module.weights(query, sources, query_code, source_codes).float().numpy()
            tokens = weights.shape[-1]
            if name == "branch":
                pairs = weights.reshape(-1, tokens, tokens)
                expected = kept.target_to_context.sel(stage=number).values[: len(pairs)]
                assert np.allclose(pairs, expected, atol=1e-3)
            else:
                expected = kept.context_to_target.sel(stage=stages - 1 - number, source=SEMANTIC)
                assert np.allclose(weights[0], expected, atol=1e-3)
    assert len(seen) == 2 * stages - 1


def test_pairs_are_told_apart_in_their_order(session, cohort):
    small = np.random.default_rng(3).random((8, 7, 8), dtype=np.float32)

    def ask(*names):
        other = ICLSession(session.model_name)
        for name in names:
            other.context.add(session.context[name])
        answer = other.predict(small, affine=np.eye(4), classes=[1], record=True)
        return answer.attention.target_to_context

    there, back = ask("one", "two"), ask("two", "one")
    assert back.pair.values.tolist()[:2] == ["two", "one"]
    one, two = there.sel(pair="one").astype(float), there.sel(pair="two").astype(float)
    back_one = back.sel(pair="one").astype(float)
    assert float(abs(one - back_one).max()) < 5e-5 < float(abs(one - two).max())


def test_recording_changes_no_answer_and_leaves_nothing_behind(session, scan, recorded):
    plain = session.predict(scan, classes=[1])
    assert plain.attention is None
    assert plain.steps == ()
    assert np.array_equal(plain.probability, recorded.probability)
    assert hooks_of(session) == 0


def test_chosen_windows_are_those_of_the_whole_record(session, scan, recorded):
    some = session.predict(scan, classes=[1], record={"windows": [4, 0, 4]})
    assert some.attention.window.values.tolist() == [0, 4]
    assert some.attention.equals(recorded.attention.sel(window=[0, 4]))
    assert [step.scale for step in some.steps] == [step.scale for step in recorded.steps]
    none = session.predict(scan, classes=[1], record={"windows": []})
    assert none.attention.sizes["window"] == 0


def test_classes_have_attention_of_their_own(session, scan, recorded):
    both = session.predict(scan, record=True)
    assert both.attention.target_to_context.dims[0] == "class"
    assert both.attention["class"].values.tolist() == [spec.name for spec in both.classes]
    first = both.attention.isel({"class": 0}, drop=True)
    assert first.equals(recorded.attention)
    assert not first.equals(both.attention.isel({"class": 1}, drop=True))


def test_windows_that_a_folder_kept_are_recorded_all_the_same(session, scan, tmp_path, recorded):
    stop, told = threading.Event(), []

    def stop_late(*progress) -> None:
        told.append(progress)
        if len(told) == recorded.attention.sizes["window"] - 2:
            stop.set()

    with pytest.raises(Cancelled):
        session.predict(
            scan, classes=[1], record=True, folder=tmp_path / "run", cancel=stop,
            on_progress=stop_late,
        )  # fmt: skip
    assert hooks_of(session) == 0
    again = session.predict(scan, classes=[1], record=True, folder=tmp_path / "run")
    for name, whole in recorded.attention.data_vars.items():  # threads may round otherwise
        assert np.allclose(again.attention[name], whole, atol=1e-3, equal_nan=True)


def test_windows_skipped_as_empty_have_none(session, scan, monkeypatch):
    monkeypatch.setattr("medverse_nb.inference.engine.EMPTY_BELOW", 2.0)
    attention = session.predict(scan, classes=[1], record=True, skip_empty=True).attention
    skipped = attention.context_to_target.isel(window=attention.scale.values > 1)
    assert skipped.isnull().all()
    assert not attention.context_to_target.isel(window=0, source=0).isnull().any()


def test_much_attention_lies_in_scratch_space_while_it_is_used(
    session, scan, recorded, monkeypatch, tmp_path
):
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("MEDVERSE_NB_SCRATCH", str(place))
    monkeypatch.setattr(recorder_file, "LARGEST_IN_MEMORY", 0)
    lazy = session.predict(scan, classes=[1], record=True)
    assert len(list(place.iterdir())) == 2
    assert lazy.attention.target_to_context.chunks is not None
    assert lazy.attention.compute().equals(recorded.attention)
    session.last = None
    del lazy
    gc.collect()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"windows": [0, 99]}, r"no windows \[99\]; this run has \d+"),
        ({"windows": [-1]}, r"no windows \[-1\]"),
        ({"windows": ["first"]}, r"no windows \['first'\]"),
        ({"window": [1]}, r"record=.* is not True, False or"),
        ("all", r"record='all' is not True, False or"),
    ],
)
def test_what_cannot_be_recorded_is_told_before_the_run(session, scan, record, message):
    told = []
    with pytest.raises(InputError, match=message):
        session.predict(scan, record=record, on_progress=lambda *p: told.append(p))
    assert told == []
    assert session.last is None


def test_a_network_without_attention_has_steps_alone(cohort, tmp_path):
    from medverse_nb.model.config import NetworkConfig
    from medverse_nb.model.network import ICLNetwork

    config = NetworkConfig("neuroverse3d", channels=(4, 8), window=8, output="sigmoid")
    path = tmp_path / "concat.safetensors"
    save_network(ICLNetwork(config), path)
    session = ICLSession(path)
    session.add_context_folder(cohort.images, cohort.labels)
    prediction = session.predict(cohort.scan, classes=[1], record=True)
    assert prediction.attention is None
    assert len(prediction.steps) == 1


def test_another_process_gets_no_recorder(session):
    know("recorded", session.network)
    volumes = ScaleVolumes(np.zeros((8, 8, 8), np.float32), [], [])
    runner = WindowRunner(session.network, "float32", None)
    sent = pickle.loads(pickle.dumps(Recording(runner, volumes, True)))
    assert type(sent) is Predict
    assert sent.skip_empty


# --- what a window read ----------------------------------------------------------------------------


def test_a_window_shows_what_it_read_and_answered(recorded, session):
    for step in recorded.steps:
        for number, window in enumerate(step.windows):
            crops = step.read_window(number)
            assert crops.window is window
            assert crops.target.shape == crops.answer.shape == window.sides
            inside = tuple(
                slice(a, min(a + n, side))
                for a, n, side in zip(window.start, window.sides, step.image.shape, strict=True)
            )
            part = tuple(slice(0, s.stop - s.start) for s in inside)
            # a matrix product may round a part of a volume otherwise than the whole
            assert np.allclose(crops.target[part], step.image.values[inside], atol=1e-6, rtol=0)
            assert np.array_equal(crops.answer[part], step.prediction.values[inside])
            assert len(crops.context_images) == len(crops.context_labels) == len(step.pairs) == 3
            assert (crops.ar_image is None) == (crops.ar_label is None) == (step.scale == 1)


def test_the_network_answers_the_same_for_what_is_shown(recorded, session):
    """A scale of one window is its window's answer, so that can be computed again."""
    first = recorded.steps[0]
    crops = first.read_window(0)
    context = (
        torch.from_numpy(v)[None, :, None] for v in (crops.context_images, crops.context_labels)
    )
    with torch.inference_mode():
        again = session.network(torch.from_numpy(crops.target)[None, None], *context)[0, 0]
    assert len(first.windows) == 1
    x, y, z = first.image.shape  # beyond it the window is padding
    assert np.allclose(again.numpy()[:x, :y, :z], crops.answer[:x, :y, :z], atol=1e-5)


def test_a_truth_that_was_given_is_there_at_every_scale(session, scan):
    truth = np.zeros((24, 10, 9), np.uint8)
    truth[8:16], truth[16:] = 1, 2
    recorded = session.predict(scan, truth=truth, record=True)
    for step in recorded.steps:
        assert step.truth.shape == step.prediction.shape
        assert step.truth.values.mean() == pytest.approx(1 / 3, abs=0.05)
        x = float((step.truth.values * np.arange(step.truth.shape[0])[:, None, None]).sum())
        centre = (x / step.truth.values.sum() + 0.5) / step.truth.shape[0]
        assert centre == pytest.approx(
            {"class 1": 0.5, "class 2": 5 / 6}[step.class_name], abs=0.03
        )
    assert session.predict(scan, record=True).steps[0].truth is None


def test_the_truth_of_an_image_task_is_in_the_answers_units(cohort, scan, tiny_weights):
    images = ICLSession(tiny_weights, task="image")
    images.add_context(cohort.scan, cohort.scan)
    truth = nib.load(scan).get_fdata() * 50
    (step, *_) = images.predict(scan, truth=truth.astype(np.float32), record=True).steps
    assert step.class_name == "image"
    assert 0 <= step.truth.values.min() < step.truth.values.max() <= 1


def test_classes_show_their_own_labels(session, scan):
    steps = session.predict(scan, record=True).steps
    one, two = (next(s for s in steps if s.class_name == name) for name in ("class 1", "class 2"))
    labels = [step.read_window(0).context_labels for step in (one, two)]
    assert not np.array_equal(*labels)


def test_a_window_that_is_not_there_is_told(recorded):
    with pytest.raises(InputError, match="no window 99: scale 1 has 1"):
        recorded.steps[0].read_window(99)
