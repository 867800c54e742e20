"""Whole runs when the world breaks underneath: killed, files gone or damaged, a disk that is full."""

import errno
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import ICLSession, read_volume, zarr_files, zarr_volumes
from medverse_nb import scratch as scratch_file
from medverse_nb import stored as stored_file
from medverse_nb.errors import Cancelled, InputError, OutputError
from medverse_nb.inference import crops as crops_file
from medverse_nb.inference import engine
from medverse_nb.inference import storage as storage_file
from medverse_nb.inference.recipe import Settings
from medverse_nb.inference.windows import plan_windows
from medverse_nb.io import write_volume
from medverse_nb.volume import make_volume

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (56, 8, 8)
CHUNK = 14  # along x, of the four chunks of windows at the finest scale
IN_LAST = 2  # windows that only the last chunk needs
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def draw(shape=SHAPE, seed=5):
    image = 100 * np.random.default_rng(seed).random(shape, dtype=np.float32)
    return make_volume(image.astype(np.int16), np.diag([2.0, 1.5, 3.0, 1.0]), name="scan")


@pytest.fixture
def scan(cohort):
    """A scan of several windows a scale."""
    return write_volume(draw(), cohort.root / "long.nii")


def run(session, scan, **options):
    """Predict; return the probability and what was told of each window."""
    told = []
    prediction = session.predict(scan, on_progress=lambda *p: told.append(p), **options)
    return prediction.probability.values, told


def late(act):
    """Return a progress that acts once: at the finest scale, before its last chunk."""
    acted = []

    def progress(scale, done, count) -> None:
        number, of = scale.split()[1::2]
        if number == of and done >= count - IN_LAST and not acted:
            acted.append(scale)
            act()

    return progress


def finished(folder):
    """Return how many chunks of each scale a run's folder has."""
    return [len(list(marks.iterdir())) for marks in sorted(folder.glob("*/finished"))]


def contents(folder):
    """Return every file in a folder, hidden ones too, and what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def chunks_in(folder):
    hidden = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in hidden)


def check_goes_on(session, scan, folder, whole):
    """Check that a run goes on with the missing windows of the finest scale, to the right end."""
    edge = CHUNK * finished(folder)[-1]
    again, told = run(session, scan, folder=folder)
    assert np.array_equal(again, whole)
    (scale,) = {scale for scale, _, _ in told}
    assert scale == f"scale {len(finished(folder))} of {len(finished(folder))}"
    windows = plan_windows(SHAPE, 8, Settings.overlap)
    missing = [window for window in windows if window.start[0] + window.sides[0] > edge]
    assert 0 < len(missing) < len(windows)
    assert sorted(done for _, done, _ in told) == [*range(len(windows) + 1)][-len(missing) :]


# --- a run that is killed --------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch
from medverse_nb import ICLSession

weights, images, labels, scan, folder = sys.argv[1:]
torch.set_num_threads(1)
session = ICLSession(weights, device="cpu", precision="float32")
session.add_context_folder(images, labels)

def kill_late(scale, done, count):
    number, of = scale.split()[1::2]
    if number == of and done == count - 1:
        os.kill(os.getpid(), signal.SIGKILL)

session.predict(scan, folder=folder, on_progress=kill_late)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_run_that_was_killed_goes_on_from_its_folder(
    session, cohort, scan, tiny_weights, tmp_path
):
    folder = tmp_path / "run"
    given = [tiny_weights, cohort.images, cohort.labels, scan, folder]
    command = [sys.executable, "-c", KILLED, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert finished(folder) == [1, 1, 2, 3]
    check_goes_on(session, scan, folder, run(session, scan)[0])
    assert finished(folder) == [1, 1, 2, 4]


def test_a_run_that_was_killed_at_its_very_start_is_begun_anew(session, scan, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".4711.partial.run.json").write_text('{"medverse')
    got, told = run(session, scan, folder=folder)
    whole, all_told = run(session, scan)
    assert np.array_equal(got, whole)
    assert len(told) == len(all_told)


@pytest.mark.parametrize("text", ["", '{"medverse', "[1]", "null"])
def test_a_folder_that_does_not_know_its_question_any_more_is_refused(
    session, scan, tmp_path, text
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: damaged, .* delete this folder"):
        session.predict(scan, folder=tmp_path / "run")
    assert contents(tmp_path / "run") == {"run.json": text.encode()}


def test_what_a_run_kept_and_was_damaged_since_is_told(session, scan, tmp_path):
    def stop() -> None:
        raise Cancelled

    folder = tmp_path / "run"
    with pytest.raises(Cancelled):
        session.predict(scan, folder=folder, on_progress=late(stop))
    chunks_in(folder / "scale-3" / "voxels.zarr")[0].write_bytes(b"garbage" * 9)
    with pytest.raises(InputError, match=r"scale-3: .* cannot be read back .* delete this folder"):
        session.predict(scan, folder=folder)
    shutil.rmtree(folder / "scale-3")
    again, told = run(session, scan, folder=folder)
    assert np.array_equal(again, run(session, scan)[0])
    assert {scale for scale, _, _ in told} == {"scale 3 of 4", "scale 4 of 4"}


# --- files that go, change or are damaged while they are read ---------------------------------------


@pytest.fixture
def lazily(monkeypatch, tmp_path):
    """Everything stays in its file and is read window by window; answers go to scratch."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv(scratch_file.VARIABLE, str(place))
    monkeypatch.setattr(stored_file, "LARGEST_LOADED", 1000)
    monkeypatch.setattr(crops_file, "LARGEST_KEPT", 0)
    monkeypatch.setattr(zarr_volumes, "LAZY_CHUNK", (8, 8, 8))
    return place


def lazy_session(cohort, weights, kind):
    """Return a session whose one pair, `image` and `label`, stays in files of this kind."""
    files = {"image": cohort.images / "one_0000.nii.gz", "label": cohort.labels / "one.nii.gz"}
    for name, path in files.items():
        image = nib.load(path)
        volume = make_volume(np.asarray(image.dataobj).astype(np.int16), image.affine)
        write_volume(volume, cohort.root / f"{name}{kind}")
    return add_pair(ICLSession(weights, device="cpu", precision="float32"), cohort, kind)


def add_pair(session, cohort, kind):
    session.add_context(cohort.root / f"image{kind}", cohort.root / f"label{kind}", name="one")
    return session


class Fault:
    """What happens to a file, or to a zarr folder; it can be undone."""

    def __init__(self, path, kind):
        self.path, self.kind = path, kind
        self.before = path.with_name(f"before-{path.name}")

    def __call__(self):
        zarr_files._chunk.cache_clear()  # decoded before: as if they had been others since
        if self.kind == "removed":
            self.path.rename(self.before)
            return
        copy = shutil.copytree if self.path.is_dir() else shutil.copy2  # with their times
        copy(self.path, self.before)
        if self.kind == "damaged":
            for chunk in chunks_in(self.path):
                chunk.write_bytes(chunk.read_bytes()[:9])
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stored_file, "LARGEST_LOADED", 2**28)
                volume = read_volume(self.path)
            write_volume(volume + 1, self.path)

    def undo(self):
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.before.replace(self.path)


FAULTS = [
    (".nii", "image", "removed", "image.nii: is gone since it was read; put it back"),
    (".nii", "label", "changed", "label.nii: has changed since it was read; read it again"),
    (".zarr", "image", "changed", "image.zarr/0: has changed since it was read; read it again"),
    (".zarr", "label", "removed", "label.zarr/0: is gone since it was read; put it back"),
    (".zarr", "image", "damaged", r"image.zarr/0: damaged, the voxels \[.* cannot be decoded"),
    (".zarr", "long", "damaged", r"long.zarr/0: damaged, the voxels \[.* cannot be decoded"),
]


@pytest.mark.parametrize("largest", [2**23, 0], ids=["before", "meanwhile"])
@pytest.mark.parametrize(
    ("kind", "what", "fault", "message"), FAULTS, ids=["-".join(f[:3])[1:] for f in FAULTS]
)
def test_a_fault_of_a_file_mid_run_is_told_and_the_run_goes_on_once_it_is_mended(
    cohort, tiny_weights, lazily, tmp_path, monkeypatch, kind, what, fault, message, largest
):
    """Pairs are read before the network runs, or meanwhile."""
    monkeypatch.setattr(crops_file, "LARGEST_READ", largest)
    session, folder = lazy_session(cohort, tiny_weights, kind), tmp_path / "run"
    scan = write_volume(draw(), cohort.root / f"long{kind}")
    whole, _ = run(session, scan)
    session.last = None
    there = sorted(path.name for path in cohort.root.iterdir())
    happens = Fault(cohort.root / f"{what}{kind}", fault)
    with pytest.raises(InputError, match=message):
        session.predict(scan, folder=folder, on_progress=late(happens))
    assert session.last is None
    assert finished(folder) == [1, 1, 2, 3]
    if fault != "damaged" or what != "long":  # a damaged target is found before any window
        with pytest.raises(InputError, match=message):
            session.predict(scan, folder=folder)
    happens.undo()
    check_goes_on(session, scan, folder, whole)
    assert sorted(path.name for path in cohort.root.iterdir()) == sorted([*there, "run"])
    session.last = None
    gc.collect()
    assert not list(lazily.iterdir())


def test_a_file_that_was_copied_back_is_read_again_and_the_run_goes_on(
    cohort, tiny_weights, lazily, scan, tmp_path
):
    session, folder = lazy_session(cohort, tiny_weights, ".nii"), tmp_path / "run"
    whole, _ = run(session, scan)
    happens = Fault(cohort.root / "image.nii", "removed")
    with pytest.raises(InputError, match="is gone"):
        session.predict(scan, folder=folder, on_progress=late(happens))
    shutil.copy(happens.before, happens.path)  # the same voxels, another time
    with pytest.raises(InputError, match="has changed since it was read; read it again"):
        session.predict(scan, folder=folder)
    session.context.remove("one")
    check_goes_on(add_pair(session, cohort, ".nii"), scan, folder, whole)


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        (lambda path: os.truncate(path, 400), "damaged or cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "has changed since it was read"),
    ],
    ids=["cut", "changed"],
)
def test_what_happens_to_a_file_while_it_is_read_is_told(
    cohort, tiny_weights, lazily, scan, monkeypatch, happens, message
):
    """A memory map would give the new voxels, or take the process down."""
    monkeypatch.setattr(engine, "THREADS", 1)  # else a second window meets the changed file first
    session = lazy_session(cohort, tiny_weights, ".nii")
    image = cohort.root / "image.nii"

    def open_late(path, mode):
        if Path(path) == image:
            happens(image)
        return open(path, mode)

    def replace_open() -> None:
        monkeypatch.setattr(stored_file, "open", open_late, raising=False)

    with pytest.raises(InputError, match=rf"image\.nii: {message}"):
        session.predict(scan, on_progress=late(replace_open))


def test_an_array_that_goes_while_it_is_read_does_not_pass_for_empty(
    cohort, tiny_weights, lazily, scan, monkeypatch
):
    monkeypatch.setattr(engine, "THREADS", 1)  # else a second window may take it away once more
    session = lazy_session(cohort, tiny_weights, ".zarr")
    whole, _ = run(session, scan)
    image = Fault(cohort.root / "image.zarr", "removed")
    real = zarr_files._native

    def go_first(stored):
        with suppress(FileNotFoundError):
            image()
        return real(stored)

    def happens() -> None:
        zarr_files._chunk.cache_clear()
        monkeypatch.setattr(zarr_files, "_native", go_first)

    with pytest.raises(InputError, match=r"image\.zarr/0: is gone since it was read"):
        session.predict(scan, on_progress=late(happens))
    monkeypatch.setattr(zarr_files, "_native", real)
    image.undo()
    assert np.array_equal(run(session, scan)[0], whole)


def test_a_small_file_is_read_once_and_may_change_or_go(cohort, tiny_weights, scan):
    session = lazy_session(cohort, tiny_weights, ".nii")
    whole = session.predict(scan)

    def blank(path) -> None:
        size = path.stat().st_size
        with open(path, "r+b") as file:  # in place
            file.seek(352)
            file.write(bytes(size - 352))

    again = lazy_session(cohort, tiny_weights, ".nii")
    blank(cohort.root / "image.nii")
    (cohort.root / "label.nii").unlink()
    changed = again.predict(scan)
    blank(scan)
    assert np.array_equal(changed.probability.values, whole.probability.values)
    assert np.array_equal(changed.target.values, draw().values)


@pytest.mark.parametrize("then", ["removed", "replaced"])
def test_an_answer_whose_folder_is_gone_is_not_read_as_empty(
    cohort, tiny_weights, lazily, scan, tmp_path, then
):
    session, folder = lazy_session(cohort, tiny_weights, ".nii"), tmp_path / "run"
    prediction = session.predict(scan, folder=folder)
    shutil.rmtree(folder)
    if then == "replaced":
        session.predict(write_volume(draw(seed=6), cohort.root / "other.nii"), folder=folder)
    (tmp_path / "out").mkdir()
    told = {"removed": "is gone", "replaced": "has changed"}[then]
    with pytest.raises(InputError, match=rf"scale-4.*: {told} since it was read"):
        prediction.write(tmp_path / "out" / "mask.nii.gz")
    assert contents(tmp_path / "out") == {}


# --- the same through the command line ----------------------------------------------------------------


@pytest.fixture
def predict(cli, cohort, tiny_weights):
    def call(*targets, **options):
        given = {"images": cohort.images, "labels": cohort.labels, "out": cohort.out} | options
        flags = [part for name, value in given.items() for part in (f"--{name}", value)]
        return cli("predict", *targets, *flags, "--model", tiny_weights, "--device", "cpu")

    return call


def errors_in(outcome):
    """Return the lines that tell an error; there is no traceback beside them."""
    assert "Traceback" not in outcome.err
    return [line for line in outcome.err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("moment", ["before", "mid-run"])
def test_a_damaged_chunk_of_a_scan_is_told_in_a_line(predict, cohort, lazily, monkeypatch, moment):
    scan = write_volume(draw(), cohort.root / "long.zarr")
    damage = Fault(scan, "damaged")
    if moment == "before":
        damage()
    else:
        real = ICLSession._run
        monkeypatch.setattr(ICLSession, "_run", lambda *a, **k: [damage(), real(*a, **k)][1])
    outcome = predict(scan)
    assert outcome.code == 2
    (line,) = errors_in(outcome)
    assert "long.zarr/0: damaged, the voxels [" in line
    assert not cohort.out.exists()
    gc.collect()
    assert not list(lazily.iterdir())


def test_a_damaged_chunk_of_one_scan_leaves_the_others(predict, cohort):
    scan = write_volume(draw(), cohort.root / "long.zarr")
    Fault(scan, "damaged")()
    outcome = predict(scan, cohort.scan)
    assert outcome.code == 1
    (line,) = errors_in(outcome)
    assert line.startswith("error: long: ")
    assert sorted(contents(cohort.out)) == ["predictions.json", "scan.json", "scan.nii.gz"]


# --- objects in the place of numbers: nothing is decoded -------------------------------------------


class Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


PICKLE = {"id": "pickle", "protocol": 5}
OBJECTS = {
    "object": (
        ".zarray",
        {
            "zarr_format": 2, "shape": [9, 10, 8], "chunks": [9, 10, 8], "dtype": "|O",
            "order": "C", "compressor": None, "filters": [PICKLE], "fill_value": 0,
        },
    ),
    "codec": (
        ".zarray",
        {
            "zarr_format": 2, "shape": [9, 10, 8], "chunks": [9, 10, 8], "dtype": "<i2",
            "order": "C", "compressor": PICKLE, "filters": None, "fill_value": 0,
        },
    ),
}  # fmt: skip
if zarr_files.FORMAT == 3:
    OBJECTS["codec-3"] = (
        "zarr.json",
        {
            "zarr_format": 3, "node_type": "array", "shape": [9, 10, 8], "data_type": "int16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [9, 10, 8]}},
            "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "attributes": {},
            "codecs": [{"name": "numcodecs.pickle", "configuration": {}}],
        },
    )  # fmt: skip


@pytest.fixture(params=OBJECTS.values(), ids=OBJECTS.keys())
def stranger(request, cohort):
    """A zarr array that would run a stranger's code if a chunk of it were decoded."""
    mark, document = request.param
    path, ran = cohort.root / "stranger.zarr", cohort.root / "ran"
    path.mkdir()
    (path / mark).write_text(json.dumps(document))
    for chunk in ("0.0.0", "c/0/0/0"):
        (path / chunk).parent.mkdir(parents=True, exist_ok=True)
        (path / chunk).write_bytes(pickle.dumps(Bomb(ran)))
    yield path
    assert not ran.exists()
    pickle.loads((path / "0.0.0").read_bytes())
    assert ran.exists(), "the bomb is live"


def test_a_zarr_of_objects_is_refused_as_scan_and_as_pair(session, cohort, stranger, tmp_path):
    pairs = session.context.names
    for use in (
        lambda: session.predict(stranger, affine=np.eye(4), folder=tmp_path / "run"),
        lambda: session.add_context(stranger, cohort.labels / "one.nii.gz", affine=np.eye(4)),
        lambda: session.add_context(cohort.scan, stranger, affine=np.eye(4)),
        lambda: session.predict(cohort.scan, truth=stranger),
        lambda: session.estimate(stranger),
    ):
        with pytest.raises(InputError, match=r"stranger\.zarr: refused"):
            use()
    assert session.context.names == pairs
    assert not (tmp_path / "run").exists()


def test_a_zarr_of_objects_is_refused_by_the_command_line(predict, cli, cohort, stranger):
    for outcome in (predict(stranger), cli("info", stranger)):
        assert outcome.code == 2
        (line,) = errors_in(outcome)
        assert "stranger.zarr: refused" in line
    outcome = predict(cohort.scan, images=stranger.parent)  # pairs are NIfTI alone there
    assert outcome.code == 2
    assert errors_in(outcome)
    assert not cohort.out.exists()


# --- a disk that is full ---------------------------------------------------------------------------


@pytest.fixture
def disk():
    """A disk that can be filled: no file grows beyond so many bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Disk:
        @staticmethod
        def fill(room):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

        @staticmethod
        def free():
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield Disk
    Disk.free()


@pytest.fixture
def predictions(cohort, tiny_weights, scan, monkeypatch):
    """An answer and another one of the same scan; as images, which fill a file."""
    monkeypatch.setattr(zarr_volumes, "LAZY_CHUNK", (20, 8, 8))
    session = ICLSession(tiny_weights, task="image", device="cpu", precision="float32")
    session.add_context(cohort.scan, cohort.scan)
    older = session.predict(scan)
    return older, replace(older, image=older.image + 1)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel's file
def test_a_disk_that_is_full_leaves_the_older_answer(predictions, disk, tmp_path, name):
    older, newer = predictions
    path, fresh = tmp_path / "out" / name, tmp_path / "fresh" / name
    older.write(path)
    fresh.parent.mkdir()
    before = contents(path.parent)
    assert max(map(len, before.values())) > 1500  # of an image or a chunk of it
    for place, room in product((path, fresh), (0, 100, 1500)):
        disk.fill(room)
        with pytest.raises(OutputError, match=r"^\S*/a\.\S+: could not be written \([^()]+\)$"):
            newer.write(place)
        disk.free()
    assert contents(path.parent) == before
    assert list(fresh.parent.iterdir()) == []
    newer.write(path)
    newer.write(fresh)
    assert contents(path.parent).keys() == before.keys()
    assert contents(path.parent) != before


def test_an_answer_is_never_beside_the_sidecar_of_another(predictions, disk, tmp_path):
    older, newer = predictions
    path = older.write(tmp_path / "out" / "a.nii.gz")
    before = contents(path.parent)
    newer.manifest["notes"] = "x" * 10**5  # the image has room, this has not
    disk.fill(5 * 10**4)
    with pytest.raises(OutputError, match=r"a\.json: could not be written \(File too large\)"):
        newer.write(path)
    disk.free()
    assert contents(path.parent) == before


def test_an_answer_that_cannot_be_described_is_not_written(cohort, tiny_weights, lazily, scan):
    session = lazy_session(cohort, tiny_weights, ".nii")
    prediction = session.predict(scan)
    scan.unlink()
    with pytest.raises(InputError, match=r"long\.nii: is gone since it was read"):
        prediction.write(cohort.out / "a.nii.gz")
    assert not cohort.out.exists()


def test_chunks_that_are_still_being_written_do_not_come_back(tmp_path, monkeypatch):
    """A chunk fails at once, the others are slow: none is written into what was removed."""
    monkeypatch.setattr(zarr_volumes, "LAZY_CHUNK", (8, 8, 8))
    make, asked = Path.mkdir, []

    def slow(path, *arguments, **options):
        if "c" in path.parts and path.parts[path.parts.index("c") - 1] == "0":
            asked.append(path)
            if len(asked) == 1:
                raise NO_SPACE
            time.sleep(0.02)
        return make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", slow)
    with pytest.raises(OutputError, match=r"No space left"):
        write_volume(draw(), tmp_path / "out" / "a.zarr")
    if not asked:
        pytest.skip("this zarr makes folders in another way")
    time.sleep(0.3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("room", [0, 100])
def test_the_command_line_tells_a_full_disk_and_keeps_what_is_there(predict, cohort, disk, room):
    assert predict(cohort.scan).code == 0
    before = contents(cohort.out)
    for out in (cohort.out, cohort.root / "fresh"):
        disk.fill(room)
        outcome = predict(cohort.scan, classes="1", out=out)
        disk.free()
        assert outcome.code == 2
        (line,) = errors_in(outcome)
        assert f"{out}/scan." in line
        assert "could not be written (File too large)" in line
        assert outcome.out == ""
    assert contents(cohort.out) == before
    assert not (cohort.root / "fresh").exists()


def test_the_scans_before_a_disk_was_full_are_kept(predict, cohort, disk, monkeypatch):
    for name in ("a", "b"):
        shutil.copy(cohort.scan, cohort.root / f"{name}.nii.gz")
    real = ICLSession.predict

    def fill_late(session, target, **options):
        if Path(target).name == "b.nii.gz":
            disk.fill(100)
        return real(session, target, **options)

    monkeypatch.setattr(ICLSession, "predict", fill_late)
    outcome = predict(cohort.root / "a.nii.gz", cohort.root / "b.nii.gz")
    disk.free()
    assert outcome.code == 2
    assert len(errors_in(outcome)) == 1
    assert sorted(contents(cohort.out)) == ["a.json", "a.nii.gz"]
    assert nib.load(cohort.out / "a.nii.gz").shape == (9, 10, 8)


@pytest.mark.parametrize("room", [0, 1000])
def test_a_run_whose_folder_has_no_room_goes_on_where_there_is(session, scan, disk, tmp_path, room):
    folder = tmp_path / "run"
    with pytest.raises(OutputError, match=r"could not be written \(File too large\)"):
        session.predict(scan, folder=folder, on_progress=late(lambda: disk.fill(room)))
    disk.free()
    check_goes_on(session, scan, folder, run(session, scan)[0])


def test_a_scale_that_finds_no_room_is_told(session, scan, lazily, tmp_path, monkeypatch):
    def full(*_):
        raise NO_SPACE

    monkeypatch.setattr(storage_file, "create_array", full)
    volume = draw()
    with pytest.raises(OutputError, match=r"scale-1: .*No space left.*run again to go on"):
        session.predict(volume, folder=tmp_path / "run")
    with pytest.raises(OutputError, match=r"No space left.*; set MEDVERSE_NB_SCRATCH to a folder"):
        session.predict(volume)
    gc.collect()
    assert not list(lazily.iterdir())
