"""How a session's runs are kept, resumed and cancelled, large answers, and cohorts."""

import gc
import json
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medverse_nb import ICLSession, read_volume
from medverse_nb import scratch as scratch_file
from medverse_nb import stored as stored_file
from medverse_nb.errors import Cancelled, ContextError, InputError, OutputError
from medverse_nb.inference import crops as crops_file
from medverse_nb.ui import progress_bar as progress_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scan(cohort):
    """A scan of several windows a scale, stored with permuted and flipped axes."""
    rng = np.random.default_rng(5)
    affine = np.array([[0, 0, -3, 9], [-1.5, 0, 0, 4], [0, 2, 0, 1], [0, 0, 0, 1.0]])
    path = cohort.root / "long.nii.gz"
    nib.save(nib.Nifti1Image(rng.random((40, 12, 10), dtype=np.float32), affine), path)
    return path


def count(session: ICLSession, scan, **options) -> tuple[np.ndarray, int]:
    """Predict; return the mask's probability and how many windows were run."""
    told = []
    prediction = session.predict(scan, on_progress=lambda *p: told.append(p), **options)
    return prediction.probability.values, len(told)


def test_classes_share_the_features_of_the_target(session, scan, monkeypatch):
    one, two = (session.predict(scan, classes=[value]).probability.values[0] for value in (1, 2))
    encoder, calls = session.network.target_encoder, []
    encode = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda target: calls.append(1) or encode(target))
    both, windows = count(session, scan)
    assert np.array_equal(both, np.stack([one, two]))
    assert len(calls) == windows


def test_only_segmentation_can_skip_what_is_empty(session, cohort, scan, tiny_weights, tmp_path):
    prediction = session.predict(scan, skip_empty=True, folder=tmp_path / "run")
    assert prediction.manifest["settings"]["skip_empty"]
    with pytest.raises(InputError, match="settings changed"):
        session.predict(scan, folder=tmp_path / "run")
    images = ICLSession(tiny_weights, task="image")
    images.add_context(cohort.scan, cohort.scan)
    with pytest.raises(InputError, match="an image has no empty parts"):
        images.predict(scan, skip_empty=True)


# --- a run that is kept ----------------------------------------------------------------------------


def test_a_run_that_was_cut_short_goes_on_from_its_folder(session, scan, tmp_path):
    whole, windows = count(session, scan)
    stop, told = threading.Event(), []

    def stop_late(*progress) -> None:
        told.append(progress)
        if len(told) == windows - 3:
            stop.set()

    folder = tmp_path / "run"
    with pytest.raises(Cancelled, match=r"cancelled at scale \d of \d, after \d+ of \d+ windows"):
        session.predict(scan, folder=folder, cancel=stop, on_progress=stop_late)
    again, rest = count(session, scan, folder=folder)
    assert np.array_equal(again, whole)
    assert 0 < rest < windows
    once_more, none = count(session, scan, folder=folder)
    assert np.array_equal(once_more, whole)
    assert none == 0


def test_cancelling_stops_within_a_window(session, scan):
    stop, told = threading.Event(), []

    def note(*progress) -> None:
        told.append(progress)
        stop.set()

    with pytest.raises(Cancelled):
        session.predict(scan, cancel=stop, on_progress=note)
    assert len(told) <= 2  # one more may have been at work
    assert session.last is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda session: session.context.remove("two"), "context changed"),
        (lambda session: setattr(session, "align", "center"), "align changed"),
        (lambda session: next(session.network.parameters()).data.add_(1), "weights changed"),
    ],
)
def test_a_folder_of_another_question_is_refused(session, scan, tmp_path, change, told):
    folder = tmp_path / "run"
    session.predict(scan, folder=folder)
    asked = json.loads((folder / "run.json").read_text())
    assert len(asked["context"]) == 3
    change(session)
    with pytest.raises(InputError, match=told):
        session.predict(scan, folder=folder)
    assert json.loads((folder / "run.json").read_text()) == asked


def test_a_folder_of_another_scan_is_refused(session, scan, cohort, tmp_path):
    session.predict(scan, folder=tmp_path / "run")
    with pytest.raises(InputError, match="target changed"):
        session.predict(cohort.scan, folder=tmp_path / "run")


def test_a_bar_shows_where_someone_watches(session, scan, capsys, monkeypatch):
    monkeypatch.setattr(progress_file, "DELAY_S", 0)
    session.predict(scan)
    assert capsys.readouterr().err == ""  # nobody does
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    session.predict(scan)
    shown = capsys.readouterr().err
    assert "scale 4 of 4" in shown
    session.predict_many([scan])
    shown = capsys.readouterr().err
    assert "1/1" in shown
    assert "scale" not in shown
    session.predict(scan, on_progress=None)
    assert capsys.readouterr().err == ""


# --- answers too large for memory ------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch, tmp_path):
    """Everything is large: read lazily, kept in scratch space."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv(scratch_file.VARIABLE, str(place))
    monkeypatch.setattr(stored_file, "LARGEST_LOADED", 1000)
    monkeypatch.setattr(crops_file, "LARGEST_KEPT", 0)
    return place


@pytest.mark.filterwarnings("ignore:.*is large")
def test_a_large_answer_is_lazy_and_the_same(session, scan, tmp_path, request):
    expected = session.predict(scan)
    place = request.getfixturevalue("small_memory")
    got = session.predict(scan)
    assert isinstance(expected.probability.data, np.ndarray)
    for lazy in (got.probability, got.mask):
        assert not isinstance(lazy.data, np.ndarray)
    assert got.mask.dtype == expected.mask.dtype == np.uint8
    assert np.allclose(got.probability.values, expected.probability.values, atol=1e-6)
    loaded = replace(got, probability=got.probability.compute(), target=got.target.compute())
    assert np.array_equal(got.mask.values, loaded.mask.values)  # near ties are left aside
    pd.testing.assert_frame_equal(got.statistics, loaded.statistics, rtol=1e-9)
    got.write(tmp_path / "got.nii.gz")
    written = nib.load(tmp_path / "got.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), loaded.mask.values)
    assert np.array_equal(written.affine, nib.load(scan).affine)
    assert list(place.iterdir())
    session.last = None
    del got, lazy, loaded
    gc.collect()
    assert not list(place.iterdir())


@pytest.mark.filterwarnings("ignore:.*is large")
def test_a_large_image_answer_is_lazy_and_the_same(cohort, scan, tiny_weights, request):
    session = ICLSession(tiny_weights, task="image", device="cpu", precision="float32")
    session.add_context(cohort.scan, cohort.scan)
    expected = session.predict(scan).image
    request.getfixturevalue("small_memory")
    got = session.predict(scan).image
    assert not isinstance(got.data, np.ndarray)
    assert np.allclose(got.values, expected.values, atol=1e-4 * float(expected.max()))


@pytest.mark.usefixtures("small_memory")
@pytest.mark.filterwarnings("ignore:.*is large")
def test_a_scratch_disk_that_is_full_is_told_before_the_run(session, scan, monkeypatch):
    volume = read_volume(scan)
    usage = scratch_file.shutil.disk_usage("/")
    monkeypatch.setattr(scratch_file.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError, match="set MEDVERSE_NB_SCRATCH to a folder with more space"):
        session.predict(volume)


# --- cohorts ---------------------------------------------------------------------------------------


def test_a_cohort_is_a_table_with_its_bad_case(session, cohort, scan, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    told = []
    table = session.predict_many(
        [scan, broken, cohort.scan],
        out=tmp_path / "out",
        truths={"scan": cohort.labels / "one.nii.gz"},
        on_progress=lambda *progress: told.append(progress),
    )
    assert list(table["case"]) == ["long", "long", "broken", "scan", "scan"]
    assert "broken.nii.gz" in table.loc[2, "error"]
    assert table["error"].isna().tolist() == [True, True, False, True, True]
    lone = session.predict(cohort.scan, truth=cohort.labels / "one.nii.gz")
    assert table["dice"].iloc[3:].tolist() == pytest.approx(lone.score["dice"].tolist())
    assert table["voxels"].iloc[3:].tolist() == lone.statistics["voxels"].tolist()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "long.json", "long.nii.gz", "scan.json", "scan.nii.gz",
    ]  # fmt: skip
    assert told == [("long", 0, 3), ("broken", 1, 3), ("scan", 2, 3), ("", 3, 3)]


def test_a_folder_is_a_cohort_named_as_in_nnunet(session, cohort):
    told = session.predict_many(cohort.images, truths=cohort.labels, classes=[1])
    assert list(told["case"]) == ["one", "three", "two"]
    assert told["dice"].notna().all()
    listed = session.predict_many(sorted(cohort.images.iterdir()), classes=[1])
    assert listed["voxels"].tolist() == told["voxels"].tolist()
    with pytest.raises(InputError, match="none: no such file or folder"):
        session.predict_many(cohort.images, truths=cohort.root / "none")
    with pytest.raises(InputError, match="truths without a scan of that name: one, three, two"):
        session.predict_many([cohort.scan], truths=cohort.labels)


def test_arrays_are_a_cohort_by_name(session):
    rng = np.random.default_rng(0)
    scans = {name: read_volume(rng.random((8, 9, 10)), np.eye(4)) for name in ("a", "b")}
    table = session.predict_many(scans, classes=[1])
    assert table[["case", "number"]].values.tolist() == [["a", 1], ["b", 1]]
    assert table["output"].isna().all()


def test_a_cohort_that_cannot_be_told_apart_is_refused(session, cohort, tiny_weights, tmp_path):
    with pytest.raises(InputError, match="more than one is called 'scan'"):
        session.predict_many([cohort.scan, cohort.scan])
    with pytest.raises(InputError, match="truths without a scan of that name: other"):
        session.predict_many([cohort.scan], truths={"other": cohort.scan})
    with pytest.raises(OutputError, match="is an input"):
        session.predict_many([cohort.scan], out=cohort.root)
    with pytest.raises(ContextError, match="no context"):
        ICLSession(tiny_weights).predict_many([cohort.scan])
    assert not (tmp_path / "out").exists()


def test_a_client_that_is_none_is_refused(tiny_weights):
    with pytest.raises(InputError, match=r"no synchronous dask\.distributed\.Client"):
        ICLSession(tiny_weights, client=object())
