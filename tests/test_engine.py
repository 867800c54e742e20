"""The engine: graphs of windows and chunks, stores, resuming, bounded memory."""

import errno
import json
import pickle
import threading
import tracemalloc

import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

from medverse_nb import scratch as scratch_file
from medverse_nb.errors import InputError, OutputError
from medverse_nb.inference import crops as crops_file
from medverse_nb.inference import engine as engine_file
from medverse_nb.inference import storage as storage_file
from medverse_nb.inference.autoregressive import run, take_arrays
from medverse_nb.inference.inputs import ArrayInputs
from medverse_nb.inference.recipe import Settings, choose_recipe
from medverse_nb.inference.storage import FolderStore, RunFolder
from medverse_nb.model.config import NetworkConfig
from medverse_nb.regions import read

SHAPE = (70, 20, 11)
ASKED = {"model": "stub", "context": ["a", "b"]}


class Stub(nn.Module):
    """Doubles the target and adds the mean label; may fail at a window, and counts them."""

    def __init__(
        self, fail_at: int | None = None, error: BaseException | None = None, window: int = 8
    ) -> None:
        super().__init__()
        self.config = NetworkConfig(channels=(4, 4), window=window)
        self.anchor = nn.Parameter(torch.zeros(()))
        self.fail_at, self.error, self.asked = fail_at, error, 0

    def forward(self, target, _image, label, _ar_image=None, ar_label=None, **_):
        if self.asked == self.fail_at:
            raise self.error
        self.asked += 1
        return 2 * target + label.mean(1) + (0 if ar_label is None else 0.1 * ar_label[:, 0])


def draw(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


ARRAYS = draw(*SHAPE), draw(2, *SHAPE, seed=1), draw(2, *SHAPE, seed=2)
SETTINGS = Settings(scales=2)


def run_stub(stub: Stub, arrays=ARRAYS, settings=SETTINGS, **options) -> np.ndarray:
    steps = run(stub, take_arrays(stub, *arrays, settings), settings, **options)
    return read(steps[-1].predictions[0])


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return run_stub(Stub())


def count_windows() -> int:
    stub = Stub()
    run_stub(stub)
    return stub.asked


# --- stores and resuming -------------------------------------------------------------------------


def test_a_folder_keeps_what_memory_keeps(tmp_path, whole):
    folder = RunFolder(tmp_path / "run", ASKED)
    assert np.array_equal(run_stub(Stub(), storage=folder.storage), whole)
    again = Stub()
    assert np.array_equal(run_stub(again, storage=folder.storage), whole)
    assert again.asked == 0  # all was there


@pytest.mark.parametrize("fail_at", [0, 3, 30, 60])
@pytest.mark.parametrize("error", [RuntimeError("no power"), KeyboardInterrupt()])
def test_a_run_that_was_cut_short_goes_on(tmp_path, whole, fail_at, error):
    folder = RunFolder(tmp_path / "run", ASKED)
    with pytest.raises(type(error)):
        run_stub(Stub(fail_at, error), storage=folder.storage)
    rest = Stub()
    resumed = RunFolder(tmp_path / "run", ASKED)
    assert np.array_equal(run_stub(rest, storage=resumed.storage), whole)
    total = count_windows()
    assert total - fail_at <= rest.asked <= total
    if fail_at == 60:
        assert rest.asked < 0.6 * total


def test_a_chunk_that_was_not_finished_is_written_again(tmp_path, whole):
    folder = RunFolder(tmp_path / "run", ASKED)
    run_stub(Stub(), storage=folder.storage)
    store = FolderStore(tmp_path / "run" / "scale-2", (1, *SHAPE), (8, 8, 8))
    store.array[:, :32] = 7.0  # half written when the power went
    for number in range(4):  # along x, two windows each
        (tmp_path / "run" / "scale-2" / "finished" / str(number)).unlink()
    stub = Stub()
    assert np.array_equal(run_stub(stub, storage=folder.storage), whole)
    assert 0 < stub.asked < count_windows()


def test_another_run_is_not_gone_on_with(tmp_path):
    RunFolder(tmp_path / "run", ASKED)
    RunFolder(tmp_path / "run", ASKED)
    with pytest.raises(InputError, match="holds another run: context changed since"):
        RunFolder(tmp_path / "run", ASKED | {"context": ["a", "c"]})
    asked = json.loads((tmp_path / "run" / "run.json").read_text())
    assert asked == {**ASKED, "layout": storage_file.LAYOUT}
    (tmp_path / "run" / "run.json").write_text(json.dumps(ASKED))  # of an earlier version
    with pytest.raises(InputError, match="holds another run: layout changed since"):
        RunFolder(tmp_path / "run", ASKED)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(InputError, match="no folder of a run and not empty"):
        RunFolder(tmp_path / "notes", ASKED)


def test_a_full_disk_is_told_and_keeps_what_is_finished(tmp_path, whole, monkeypatch):
    folder = RunFolder(tmp_path / "run", ASKED)
    write, writes = storage_file.write_region, []

    def fill(array, index, voxels) -> None:
        writes.append(index)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(array, index, voxels)

    with monkeypatch.context() as patch:
        patch.setattr(storage_file, "write_region", fill)
        with pytest.raises(OutputError, match=r"No space left on device.*run again to go on"):
            run_stub(Stub(), storage=folder.storage)
    rest = Stub()
    assert np.array_equal(run_stub(rest, storage=folder.storage), whole)
    assert rest.asked < count_windows()


def test_a_store_can_be_sent_to_another_process(tmp_path):
    store = FolderStore(tmp_path / "scale-1", (2, 5, 6, 7), (4, 4, 4))
    store.write(0, (slice(None), slice(0, 5), slice(0, 6), slice(0, 7)), draw(2, 5, 6, 7))
    sent = pickle.loads(pickle.dumps(store))
    assert sent.has(0)
    assert not sent.has(1)
    assert np.array_equal(sent[:], draw(2, 5, 6, 7))


def test_windows_that_the_coarser_scale_found_empty_can_be_skipped():
    class MeanLabel(Stub):
        def forward(self, _target, _image, label, *_feedback, **_):
            self.asked += 1
            return label.mean(1)

    label = np.zeros_like(ARRAYS[2])
    label[:, 3:9, 5:15, 2:9] = 1
    arrays = (*ARRAYS[:2], label)
    every, some = MeanLabel(), MeanLabel()
    expected = run_stub(every, arrays, Settings(scales=3))
    for batch in (1, 4):
        some.asked = 0
        got = run_stub(some, arrays, Settings(scales=3, skip_empty=True, batch=batch))
        assert np.allclose(got, expected, atol=0.02)  # where a faint coarser answer stands
        assert np.array_equal(got > 0.5, expected > 0.5)
        assert 1 < some.asked < every.asked / 3


# --- what is read, and when ----------------------------------------------------------------------


class Watched:
    """An array (L, X, Y, Z) that notes the largest piece that was read of it."""

    def __init__(self, array) -> None:
        self.array, self.shape, self.ndim, self.largest = array, array.shape, array.ndim, 0

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __getitem__(self, index):
        piece = self.array[index]
        self.largest = max(self.largest, piece.size)
        return piece


def test_large_volumes_are_read_by_windows_and_small_ones_once(monkeypatch, whole):
    for largest, limit in [(0, 12**3), (2**28, np.prod(SHAPE))]:
        monkeypatch.setattr(crops_file, "LARGEST_KEPT", largest)
        image = Watched(ARRAYS[1])
        settings = Settings(scales=1)
        got = run_stub(Stub(), (ARRAYS[0], image, ARRAYS[2]), settings)
        assert np.allclose(got, run_stub(Stub(), settings=settings))
        assert 8**3 <= image.largest <= limit


def test_a_coarse_scale_is_set_aside_in_scratch_and_gone_afterwards(monkeypatch, whole, tmp_path):
    monkeypatch.setattr(crops_file, "LARGEST_COARSE", 0)
    monkeypatch.setenv(scratch_file.VARIABLE, str(tmp_path))
    image, seen = Watched(ARRAYS[1]), []
    got = run_stub(Stub(), (ARRAYS[0], image, ARRAYS[2]), on_progress=lambda *_: seen.append(
        len([*tmp_path.glob("medverse_nb-*/voxels")])
    ))  # fmt: skip
    assert np.allclose(got, whole, atol=1e-5)
    assert seen[0] == 5  # the target, two images, two labels
    assert [*tmp_path.iterdir()] == []


def test_no_space_to_set_a_scale_aside_is_our_error(monkeypatch, tmp_path):
    monkeypatch.setattr(crops_file, "LARGEST_COARSE", 0)
    monkeypatch.setenv(scratch_file.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(OutputError, match="scratch"):
        run_stub(Stub())


@pytest.mark.parametrize("kept", [0, 2**28])
def test_reading_by_windows_gives_the_same(monkeypatch, whole, kept):
    monkeypatch.setattr(crops_file, "LARGEST_KEPT", kept)
    lazy = tuple(da.from_array(a, chunks=9) for a in ARRAYS)
    for arrays in (ARRAYS, lazy):
        assert np.allclose(run_stub(Stub(), arrays), whole, atol=1e-5)


def test_one_window_is_run_at_a_time():
    inside, most = [], []

    class Slow(Stub):
        def forward(self, *arguments, **settings):
            inside.append(threading.get_ident())
            most.append(len(inside))
            answer = super().forward(*arguments, **settings)
            inside.pop()
            return answer

    run_stub(Slow())
    assert max(most) == 1


def test_memory_does_not_grow_with_the_volume_or_the_context(tmp_path, monkeypatch):
    """Everything on disk or made on the spot: what is held is windows, not volumes or pairs."""
    tile = 4 * 16**3
    monkeypatch.setattr(crops_file, "LARGEST_KEPT", 0)
    monkeypatch.setattr(crops_file, "LARGEST_READ", 2 * tile)
    monkeypatch.setattr(engine_file, "THREADS", 1)  # two may or may not read at a time

    class Made:
        """An array of any size that holds nothing."""

        def __init__(self, *shape) -> None:
            self.shape, self.ndim = shape, len(shape)

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, index):
            bounds = [range(n)[i] for n, i in zip(self.shape, index, strict=True)]
            return np.full([len(b) for b in bounds if isinstance(b, range)], 0.5, np.float32)

    class OneByOne(Stub):
        def forward(self, target, image, label, *_, **settings):
            for number in range(image.shape[1]):
                part = slice(number, number + 1)
                answer = super().forward(target, image[:, part], label[:, part], **settings)
            self.asked -= image.shape[1] - 1
            return answer

    def peak(shape, pairs, name) -> tuple[int, int]:
        """Return the most bytes held, and the count of windows."""
        stub, settings = OneByOne(window=16), Settings(scales=1)
        recipe = choose_recipe(stub.config, shape, settings)
        inputs = ArrayInputs(Made(*shape), Made(pairs, *shape), Made(pairs, *shape), recipe)
        tracemalloc.start()
        run(stub, inputs, settings, storage=RunFolder(tmp_path / name, ASKED).storage)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, stub.asked

    peak((16, 16, 16), 2, "warm")
    small, few = peak((128, 48, 48), 2, "small")
    long, windows = peak((384, 48, 48), 2, "long")
    many, _ = peak((128, 48, 48), 8, "many")
    assert (long - small) / (windows - few) < tile / 2  # a line of the plan, not its tile
    assert many - small < 2 * tile
