"""Banks: what is saved comes back bit for bit, and what no bank holds is refused whole."""

import copy
import gc
import hashlib
import itertools
import json
import pickle
import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import zarr

from medverse_nb import ICLSession, affine_of, bank_file, read_volume, scratch, stored
from medverse_nb.bank import open_bank
from medverse_nb.context import ContextSet
from medverse_nb.errors import InputError, MedverseError, OutputError, WeightsError
from medverse_nb.geometry import Grid
from medverse_nb.io import VolumeWarning
from medverse_nb.model.weights import save_network
from medverse_nb.pair import ContextPair, make_pair
from medverse_nb.regions import read
from medverse_nb.volume import make_volume, view_of

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (5, 4, 6)
TILTED = np.array([[0.1, 0.02, -2.7, 30], [1.1, 0.3, 0.2, -2], [-0.1, 0.7, 0, 8], [0, 0, 0, 1.0]])
UNPACKED = "ignore:.*unpacked into:medverse_nb.io.VolumeWarning"


def draw(seed=0, shape=SHAPE, dtype=np.float32):
    """Return an image and a label with the values 1 and 2."""
    rng = np.random.default_rng(seed)
    return (100 * rng.random(shape)).astype(dtype), rng.integers(0, 3, shape).astype(np.uint8)


def new_pair(name="a", image=None, label=None, **options):
    drawn = draw()
    options.setdefault("affine", TILTED)
    scan = drawn[0] if image is None else image
    return make_pair(scan, drawn[1] if label is None else label, name=name, **options)


def memory_order(volume) -> list[int]:
    """Return the axes with more than one voxel, those first whose neighbours are far apart."""
    strides = read(view_of(volume)).strides
    axes = [axis for axis in range(3) if volume.shape[axis] > 1]
    return sorted(axes, key=lambda axis: -abs(strides[axis]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "banks" / "bank.mvctx"


@pytest.fixture
def load(path):
    """Load the bank on the CPU."""
    return lambda **options: ICLSession.load(path, **{"device": "cpu", **options})


@pytest.fixture
def again(tiny_weights, path):
    """Save pairs in a new session and load them."""

    def run(*pairs: ContextPair, **settings) -> ContextSet:
        session = ICLSession(tiny_weights, device="cpu", precision="float32", **settings)
        session.context.add(*pairs)
        session.save(path)
        return ICLSession.load(path, device="cpu").context

    return run


def bits(array) -> tuple[str, tuple[int, ...], bytes]:
    return np.asarray(array).dtype.str, np.shape(array), np.asarray(array).tobytes()


def assert_same_volume(one, other):
    assert bits(one.values) == bits(other.values)
    assert one.dims == other.dims
    assert one.name == other.name
    assert set(one.coords) == set(other.coords)
    for dim in one.dims:
        assert bits(one.coords[dim].values) == bits(other.coords[dim].values)
    assert str(one.coords["geometry"].values) == str(other.coords["geometry"].values)
    assert bits(affine_of(one)) == bits(affine_of(other))


def assert_same_pair(one: ContextPair, other: ContextPair):
    assert_same_volume(one.image, other.image)
    assert_same_volume(one.label, other.label)
    assert (one.name, one.task, one.changes) == (other.name, other.task, other.changes)
    assert one.provenance == other.provenance
    assert (one.values, one.hash) == (other.values, other.hash)


# --- there and back -----------------------------------------------------------------------------


def test_all_48_orientations_come_back_to_the_last_bit(again):
    signs = itertools.product((1, -1), repeat=3)
    affines = []
    for order, flips in itertools.product(itertools.permutations(range(3)), signs):
        affine = TILTED.copy()
        affine[:, :3] = (TILTED[:, :3] * flips)[:, list(order)]
        affines.append(affine)
    pairs = [new_pair(f"pair-{n}", affine=affine) for n, affine in enumerate(affines)]
    loaded = again(*pairs)
    assert len(affines) == len({affine.tobytes() for affine in affines}) == 48
    assert loaded.names == [pair.name for pair in pairs]
    for before, after in zip(pairs, loaded, strict=True):
        assert_same_pair(before, after)


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", ">i2", ">f4", ">f8"]


def test_every_dtype_comes_back(again):
    pairs = []
    for dtype in map(np.dtype, DTYPES):
        values = np.zeros(SHAPE, dtype)
        limits = (
            np.finfo(dtype) if dtype.kind == "f" else None if dtype.kind == "b" else np.iinfo(dtype)
        )
        values[0, 0, :2] = (False, True) if limits is None else (limits.min, limits.max)
        pairs.append(new_pair(dtype.str, make_volume(values, TILTED, name="scan")))
    for before, after in zip(pairs, again(*pairs), strict=True):
        assert after.image.dtype == np.dtype(before.name)
        assert_same_volume(before.image, after.image)


def test_a_dtype_that_nifti_cannot_hold_is_refused(again, path):
    scan = make_volume(np.zeros(SHAPE, np.longdouble), TILTED, name="scan")
    with pytest.raises(InputError, match=r"scan: a bank cannot keep (float|longdouble).*float64"):
        again(new_pair(image=scan))
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: volume[1:, ::-1, ::2],
        lambda volume: volume.transpose("z", "x", "y"),
        lambda volume: volume.isel(y=slice(2, 3)),
        lambda volume: volume.copy(data=np.asfortranarray(volume.values)),
        lambda volume: volume.copy(data=np.asfortranarray(volume.values.T).T[:, ::-1]),
    ],
    ids=["sliced", "transposed", "one plane", "other memory order", "flipped in memory"],
)
def test_a_computed_volume_keeps_its_place_and_layout(again, change):
    scan = change(make_volume(draw()[0], TILTED, name="scan"))
    label = change(make_volume(draw()[1], TILTED, name="label"))
    before = make_pair(scan, label, name="a")
    (after,) = again(before)
    assert_same_pair(before, after)
    assert memory_order(after.image) == memory_order(before.image)


@pytest.mark.parametrize("order", "CF")
def test_sums_over_what_was_read_are_equal_bit_for_bit(again, order):
    """Sums of products depend on the order of the voxels in memory."""
    scan, label = draw(0, (40, 37, 33))
    before = new_pair("a", scan.copy(order), label.copy(order))
    (after,) = again(before)
    grid = Grid((32, 32, 32), np.eye(4))
    for place in (lambda p: p.image_on(grid, "box"), lambda p: p.label_on(grid, "box", [1])):
        assert bits(read(place(before))) == bits(read(place(after)))


def test_label_values_are_exact(again):
    label = np.zeros(SHAPE, np.int64)
    label[0, 0, :3] = 1, 70_000, 2**31 - 1
    (after,) = again(make_pair(draw()[0], label, name="a", affine=TILTED))
    assert after.values == (1, 70_000, 2**31 - 1)


def test_an_image_task_keeps_its_labels(again):
    (after,) = again(
        make_pair(draw()[0], draw(1)[0], name="a", affine=TILTED, task="image"), task="image"
    )
    assert after.task == "image"
    assert np.array_equal(after.label.values, draw(1)[0])


def test_an_empty_context_can_be_saved(again):
    assert len(again()) == 0


def test_class_names_colours_and_the_nifti_codes_come_back(session, path, load):
    session.context.table.names |= {1: "Leber", 2: "Niere µ"}
    session.context.table.colours |= {2: (1, 2, 255)}
    session.save(path)
    loaded = load()
    assert loaded.context.table == session.context.table
    before, after = session.context["one"], loaded.context["one"]
    for key in ("changes", "nifti_grid", "nifti_pixdim"):
        assert after.image.attrs[key] == before.image.attrs[key]


def test_a_bank_opens_as_zip_and_nifti(session, path, tmp_path):
    session.save(path)
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "bank.json").read_text())
    assert index["format"] == 1
    assert index["session"]["weights_sha256"] == session.weights_hash
    for number, pair in enumerate(session.context, 1):
        folder = tmp_path / "out" / "pairs" / f"{number:04d}"
        for name, volume in (("image.nii", pair.image), ("label.nii", pair.label)):
            image = nib.load(folder / name)
            assert np.array_equal(np.asarray(image.dataobj), volume.values)
            assert np.allclose(image.affine, affine_of(volume))
            told = index["members"][f"pairs/{number:04d}/{name}"]
            assert told["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {"align": "box"}, {"align": "center"}, {"align": "world"}, {"task": "image"},
        {"precision": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_predictions_are_equal_bit_for_bit(tiny_weights, path, load, settings):
    session = ICLSession(tiny_weights, **{"device": "cpu", "precision": "float32", **settings})
    for number, order in enumerate("CF"):
        scan, label = draw(number, (9 + number, 10, 7))
        affine = TILTED * [[1 + number / 9], [1], [1], [1]]
        session.add_context(scan.copy(order), label.copy(order), affine=affine, name=order)
    target = make_volume(draw(2, (9, 8, 11))[0], np.diag([-1.7, 1, 1.2, 1]), name="target")
    session.predict(target)
    session.accept()
    before = session.predict(target)
    session.save(path)
    loaded = load()
    after = loaded.predict(target)
    answers = [p.image if session.task == "image" else p.probability for p in (before, after)]
    assert bits(answers[0].values) == bits(answers[1].values)
    assert bits(before.answer.values) == bits(after.answer.values)
    assert after.manifest["context"] == before.manifest["context"]
    assert loaded.settings == session.settings


def test_settings_can_be_chosen_anew(session, path, load):
    session.save(path)
    assert load().precision == "float32"  # as it was saved, not as the hardware would have it
    assert load(precision="bfloat16").precision == "bfloat16"


# --- large volumes --------------------------------------------------------------------------------


@pytest.fixture
def lazily(monkeypatch, tmp_path):
    """Read everything lazily, with a scratch folder of the test's own."""
    monkeypatch.setattr(stored, "LARGEST_LOADED", 0)
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**16)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv(scratch.VARIABLE, str(folder))
    return folder


def save_large(folder: Path, shape, name="large") -> tuple[Path, Path]:
    scan, label = draw(3, shape, np.int16)
    for kind, voxels in (("scan", scan), ("label", label)):
        nib.save(nib.Nifti1Image(voxels, TILTED), folder / f"{name}-{kind}.nii")
    return folder / f"{name}-scan.nii", folder / f"{name}-label.nii"


@pytest.mark.filterwarnings(UNPACKED)
def test_large_volumes_stay_lazy_and_predict_the_same(tiny_weights, lazily, path, load, tmp_path):
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.add_context(*save_large(tmp_path, (19, 12, 14)))
    target = save_large(tmp_path, (17, 9, 11), "target")[0]
    before = session.predict(target).probability.values
    session.save(path)
    in_use = set(lazily.iterdir())  # by the answer
    loaded = load()
    (pair,) = loaded.context
    assert not isinstance(pair.image.data, np.ndarray)
    assert not isinstance(pair.label.data, np.ndarray)
    assert_same_pair(session.context.pairs[0], pair)
    assert memory_order(pair.image) == memory_order(session.context.pairs[0].image)
    assert bits(loaded.predict(target).probability.values) == bits(before)
    loaded.save(path)  # from scratch space, over the file it came from
    assert len(set(lazily.iterdir()) - in_use) > 2
    del loaded, pair
    gc.collect()
    assert set(lazily.iterdir()) == in_use


def test_large_volumes_are_saved_without_being_loaded(tiny_weights, lazily, path, tmp_path):
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.add_context(*save_large(tmp_path, (128, 128, 160)))  # 5 MB, labels read as 10 MB
    tracemalloc.start()
    session.save(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5e6


@pytest.mark.filterwarnings(UNPACKED)
def test_a_bad_large_bank_leaves_no_scratch(tiny_weights, lazily, path, load, tmp_path):
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.add_context(*save_large(tmp_path, SHAPE, "one"))
    session.add_context(*save_large(tmp_path, SHAPE, "two"))
    session.save(path)
    contents = unzip(path)
    contents["pairs/0002/label.nii"] = contents["pairs/0002/label.nii"][:-1] + b"\x05"
    write_zip(path, contents)
    with pytest.raises(InputError, match="checksum"):
        load()
    assert list(lazily.iterdir()) == []


# --- without images -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, tiny_weights):
    """A session whose images came from NIfTI, `.npy` with an affine given, zarr and an answer."""
    scan, label = draw()
    nib.save(nib.Nifti1Image(scan, TILTED), tmp_path / "scan.nii.gz")
    np.save(tmp_path / "scan.npy", scan)
    zarr.save(str(tmp_path / "scan.zarr"), scan)
    nib.save(nib.Nifti1Image(draw(1)[0], TILTED), tmp_path / "target.nii")
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.add_context(tmp_path / "scan.nii.gz", label, name="nifti")
    session.add_context(tmp_path / "scan.npy", label, name="npy", affine=TILTED)
    session.add_context(tmp_path / "scan.zarr", label, name="zarr", affine=TILTED)
    session.predict(tmp_path / "target.nii")
    session.accept()
    return session


def test_without_images_only_labels_are_stored(files, path, load, tmp_path):
    files.save(path, images=False)
    assert sorted(unzip(path)) == ["bank.json", *(f"pairs/000{n}/label.nii" for n in (1, 2, 3, 4))]
    loaded = load()
    assert loaded.context.names == ["nifti", "npy", "zarr", "target"]
    for before, after in zip(files.context, loaded.context, strict=True):
        assert_same_pair(before, after)
    target = read_volume(tmp_path / "target.nii")
    before, after = (each.predict(target).probability.values for each in (files, loaded))
    assert bits(before) == bits(after)


def swap(path: Path, **changes):
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] += changes.get("voxel", 0)
    affine = image.affine + changes.get("shift", 0) * np.eye(4)[:, 3:] @ np.eye(4)[3:]
    affine[0, 3] += changes.get("shift", 0)
    affine[3, 3] = 1
    nib.save(nib.Nifti1Image(voxels.astype(changes.get("dtype", voxels.dtype)), affine), path)


@pytest.mark.parametrize(
    "changes", [{"voxel": 1e-5}, {"shift": 1e-4}, {"dtype": np.float64}], ids=str
)
def test_an_image_that_changed_is_refused(files, path, load, tmp_path, changes):
    files.save(path, images=False)
    swap(tmp_path / "scan.nii.gz", **changes)
    with pytest.raises(InputError, match=r"pair 'nifti'.*scan.nii.gz is not the one"):
        load()
    with pytest.raises(InputError, match="is not the one"):
        files.save(path.with_name("b.mvctx"), images=False)
    assert [p.name for p in path.parent.iterdir()] == ["bank.mvctx"]


def test_an_image_that_is_gone_is_told(files, path, load, tmp_path):
    files.save(path, images=False)
    (tmp_path / "scan.npy").unlink()
    with pytest.raises(InputError, match=r"pair 'npy'.*not at .*scan.npy any more"):
        load()


def test_an_image_from_no_file_cannot_be_left_out(session, path):
    session.context.add(new_pair("drawn"))
    with pytest.raises(InputError, match=r"'drawn'.*images=True"):
        session.save(path, images=False)
    assert list(path.parent.glob("*")) == []


# --- history and provenance -----------------------------------------------------------------------


def test_undo_goes_on_after_loading(session, cohort, path, load):
    (cohort.root / "dataset.json").write_text('{"labels": {"liver": 1}}')
    session.context.undo()
    session.add_context_folder(cohort.images, cohort.labels)
    session.predict(cohort.scan)
    accepted = session.accept()
    session.remove_context("two")
    session.save(path)
    loaded = load()
    assert loaded.context.names == ["one", "three", "scan"]
    assert_same_pair(accepted, loaded.context["scan"])
    assert accepted.provenance.how == "accepted"
    assert loaded.undo().kind == "removed"
    assert_same_pair(loaded.context["two"], session.context.history[-1].pairs[0])
    assert loaded.undo().kind == "accepted"
    assert loaded.context.names == ["one", "three", "two"]
    assert loaded.context.table.names == {1: "liver"}
    assert loaded.undo().kind == "added"
    assert (loaded.context.names, loaded.context.table.names) == ([], {})


@pytest.mark.parametrize("options", [{"removed": False}, {"images": False}], ids=str)
def test_removed_pairs_can_be_left_out(session, cohort, path, load, options):
    session.remove_context("two")
    session.add_context(cohort.scan, cohort.labels / "one.nii.gz", name="last")
    session.save(path, **options)
    with zipfile.ZipFile(path) as file:
        names = [pair["name"] for pair in json.loads(file.read("bank.json"))["pairs"]]
    assert names == ["one", "three", "last"]
    assert sum(name.endswith("label.nii") for name in unzip(path)) == 3
    loaded = load()
    assert loaded.undo().pairs[0].name == "last"
    assert loaded.context.history == []
    assert len(session.context.history) == 3


def test_a_history_that_does_not_fit_any_more_is_left_out(session, path, load):
    session.context.add(new_pair("b"))
    session.context.pairs.reverse()
    session.context.add(new_pair("c"))
    session.save(path)
    loaded = load()
    assert loaded.context.names == ["b", "two", "three", "one", "c"]
    assert [change.pairs[0].name for change in loaded.context.history] == ["c"]
    session.context.pairs.append(new_pair("c"))
    with pytest.raises(InputError, match=r"names of their own; taken: \['c'\]"):
        session.save(path)


def test_a_name_may_have_been_taken_anew(session, path, load):
    before = session.remove_context("two")
    session.context.add(new_pair("two"))
    session.save(path)
    loaded = load()
    loaded.undo()
    loaded.undo()
    assert_same_pair(loaded.context["two"], before)


def test_other_weights_are_told(session, tiny_weights, path, load, tmp_path):
    session.save(path)
    copied = shutil.copy(tiny_weights, tmp_path / "other.safetensors")
    assert load(model=copied).weights_hash == session.weights_hash  # and no warning
    save_network(session.network, copied, note="now another file")
    with pytest.warns(VolumeWarning, match=r"other weights, sha256 \w{12}\.\.\., now \w{12}"):
        assert load(model=copied).context.names == session.context.names


def test_a_model_that_moved_is_asked_for(session, tiny_weights, path, load, tmp_path):
    moved = shutil.copy(tiny_weights, tmp_path / "here.safetensors")
    session.model_name = str(moved)
    session.save(path)
    moved = Path(moved).rename(tmp_path / "there.safetensors")
    with pytest.raises(WeightsError, match=r"bank.mvctx: no model .*here.*pass model="):
        load()
    assert load(model=moved).context.names == session.context.names


def test_a_model_of_the_registry_goes_by_its_name(path):
    session = ICLSession("medverse-tiny", device="cpu")
    session.save(path)
    assert json.loads(unzip(path)["bank.json"])["session"]["model"] == "medverse-tiny"


def test_tuned_weights_are_not_kept_aloud(session, path, load):
    session.tuning = SimpleNamespace(to_dict=lambda: {"score": "dice", "after": 0.9})
    with pytest.warns(VolumeWarning, match="does not keep the tuned network"):
        session.save(path)
    with pytest.warns(VolumeWarning, match="saved with a tuned network"):
        loaded = load()
    assert loaded.tuning is None


# --- writing --------------------------------------------------------------------------------------


def failing(error):
    def parts(*_arguments):
        yield b"half of it"
        raise error

    return parts


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left"), InputError()])
def test_an_interrupted_save_leaves_the_old_bank(session, path, load, monkeypatch, error):
    session.save(path)
    before = path.read_bytes()
    session.remove_context("one")
    monkeypatch.setattr("medverse_nb.bank_volumes.nifti_parts", failing(error))
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        session.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert load().context.names == ["one", "three", "two"]


def test_a_source_that_changed_under_a_lazy_pair_is_told(tiny_weights, lazily, path, tmp_path):
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    scan, label = save_large(tmp_path, SHAPE)
    session.add_context(scan, label)
    scan.write_bytes(scan.read_bytes() + b"more")
    with pytest.raises(InputError, match="has changed since it was read"):
        session.save(path)
    assert list(path.parent.glob("*")) == []


def test_saving_over_a_bank_replaces_it(session, path, load):
    session.save(path)
    session.remove_context("one")
    assert session.save(path) == path
    assert load().context.names == ["three", "two"]


def test_where_no_bank_can_be_written(session, cohort):
    scan = cohort.scan.read_bytes()
    with pytest.raises(OutputError, match=r"as \.mvctx, such as scan\.nii\.mvctx"):
        session.save(cohort.scan)
    assert cohort.scan.read_bytes() == scan
    (cohort.root / "folder.mvctx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        session.save(cohort.root / "folder.mvctx")


def test_an_index_that_could_not_be_read_again_is_not_written(session, path, monkeypatch):
    monkeypatch.setattr(bank_file, "LARGEST_INDEX", 1000)
    with pytest.raises(InputError, match="too many pairs"):
        session.save(path)
    assert not path.exists()


# --- banks from others ----------------------------------------------------------------------------


def unzip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_zip(path: Path, contents: dict[str, bytes], *extra, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in (*contents.items(), *extra):
            file.writestr(name, content)


def seal(contents: dict[str, bytes], index: dict) -> dict[str, bytes]:
    """Give an index with the right sizes and checksums to these members, as an attacker would."""
    members = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
        if name != "bank.json"
    }
    return {**contents, "bank.json": json.dumps({**index, "members": members}).encode()}


@pytest.fixture
def saved(tiny_weights, path):
    """A small bank with a history: its members, and its index as JSON."""
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.context.add(new_pair("a"), new_pair("b"))
    session.context.table.names[1] = "liver"
    session.context.remove("b")
    session.save(path)
    contents = unzip(path)
    return SimpleNamespace(contents=contents, index=json.loads(contents["bank.json"]))


@pytest.fixture
def refused(path, load, monkeypatch, tmp_path):
    """Load what should be refused; nothing may be left anywhere."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path / "empty"))

    def run(match, **options):
        with pytest.raises(InputError, match=match) as caught:
            load(**options)
        assert "bank.mvctx" in str(caught.value)
        assert list((tmp_path / "empty").iterdir()) == []
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    return run


@pytest.mark.parametrize("part", [0, 1, 30, 0.3, 0.6, 0.9, 0.999])
def test_a_bank_cut_short(saved, path, refused, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content)) if isinstance(part, float) else part])
    refused("not a bank, or cut short")


def test_no_bank_at_all(path, load, refused):
    with pytest.raises(InputError, match="no such bank"):
        load()
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"format": 1}))
    refused("not a bank")
    write_zip(path, {"data.pkl": b"cos\nsystem\n"})
    refused("has no bank.json")


@pytest.mark.parametrize(
    ("version", "message"),
    [(2, "format 2.*update medverse_nb"), (0, "format 0"), ("1", "whole number"), (True, "whole")],
)
def test_another_version(saved, path, refused, version, message):
    write_zip(path, seal(saved.contents, {**saved.index, "format": version}))
    refused(message)


@pytest.mark.parametrize(
    "name",
    ["../evil.nii", "pairs/../../evil.nii", "/etc/evil", "..\\evil", "C:\\evil", "\\\\host\\evil"],
)
def test_a_member_outside_the_bank(saved, path, refused, name):
    write_zip(path, seal({**saved.contents, name: b"evil"}, saved.index))
    refused("lies outside the bank")


def test_a_link(saved, path, refused):
    link = zipfile.ZipInfo("pairs/0001/image.nii")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    del saved.contents["pairs/0001/image.nii"]
    write_zip(path, saved.contents, (link, b"/etc/passwd"))
    refused("is a link")


def test_members_that_nobody_declared_or_nobody_brought(saved, path, refused):
    write_zip(path, {**saved.contents, "run.py": b"import os"})
    refused("its index does not name: .*run.py")
    write_zip(path, {**saved.contents, "folder/": b""})
    refused("its index does not name")
    write_zip(path, seal({**saved.contents, "run.py": b"import os"}, saved.index))
    refused("pairs and members do not fit")
    del saved.contents["pairs/0002/label.nii"]
    write_zip(path, saved.contents)
    refused("lacks members")
    write_zip(path, seal(saved.contents, saved.index))
    refused("pairs and members do not fit")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(saved, path, refused):
    for name in ("pairs/0001/label.nii", "bank.json"):
        write_zip(path, saved.contents, (name, saved.contents[name]))
        refused("two members of one name")


def test_one_member_for_two_volumes(saved, path, refused):
    """A thousand pairs could stand on one large member."""
    for pair in saved.index["pairs"]:
        pair["image"]["member"] = "pairs/0001/image.nii"
    del saved.contents["pairs/0002/image.nii"]
    write_zip(path, seal(saved.contents, saved.index))
    refused("pairs and members do not fit")


@pytest.mark.parametrize("name", ["pairs/0001/image.nii", "pairs/0002/label.nii"])
def test_a_checksum_that_differs(saved, path, refused, name):
    voxels = bytearray(saved.contents[name])
    voxels[-3] ^= 1
    write_zip(path, {**saved.contents, name: bytes(voxels)})
    refused(f"{name}: has another checksum")


def test_damage_inside_the_zip(saved, path, refused):
    write_zip(path, saved.contents, method=zipfile.ZIP_STORED)
    content = path.read_bytes()
    for name in ("pairs/0002/image.nii", "bank.json"):
        start = content.index(saved.contents[name])
        damaged = content[: start + 400] + b"\xff\xfe" + content[start + 402 :]
        path.write_bytes(damaged)
        refused("damaged")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packing(saved, path, refused, method):
    write_zip(path, saved.contents, method=method)
    refused("packed in a way that banks are not")


def central(path: Path, **fields: int) -> None:
    """Overwrite fields of every entry of the zip's central directory."""
    places = {"flags": (8, 2), "size": (24, 4)}
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    while (start := content.find(b"PK\x01\x02", start)) >= 0:
        for field, value in fields.items():
            offset, width = places[field]
            content[start + offset : start + offset + width] = value.to_bytes(width, "little")
        start += 4
    path.write_bytes(content)


def test_ten_gigabytes_inside(saved, path, refused):
    central(path, size=2**31)
    refused(r"has 10\.7 GB inside, at most 8\.6 GB are read.*pass max_bytes=10737418240")


def test_the_limit_can_be_moved(saved, path, load, refused):
    size = sum(map(len, saved.contents.values()))
    refused("at most 0.0 MB are read", max_bytes=size - 1)
    assert load(max_bytes=size).context.names == ["a"]


def test_a_bomb_is_refused_before_it_is_unpacked(saved, path, refused):
    bomb = {**saved.contents, "pairs/0001/image.nii": bytes(40_000_000)}
    write_zip(path, seal(bomb, saved.index))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    refused("has 40.0 MB inside", max_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_sizes_that_lie(saved, path, refused):
    """The directory says less than there is; then the index joins in, then both say more."""
    name = "pairs/0001/image.nii"
    size = len(saved.contents[name])
    central(path, size=size - 40)
    refused("bytes, saved were|damaged")
    write_zip(path, seal({name: saved.contents[name], **saved.contents}, saved.index))
    for lie in (size - 40, size + 40):
        index = json.loads(unzip(path)["bank.json"])
        index["members"][name]["bytes"] = lie
        write_zip(path, {**saved.contents, "bank.json": json.dumps(index).encode()})
        refused("saved were")


def test_a_member_that_is_longer_than_its_volume(saved, path, refused):
    name = "pairs/0001/image.nii"
    for content in (saved.contents[name] + b"more", saved.contents[name][:-4]):
        write_zip(path, seal({**saved.contents, name: content}, saved.index))
        refused("its index says float32 of shape")


def test_an_encrypted_member(saved, path, refused):
    central(path, flags=1)
    refused("damaged .*(encrypted|password)")


def header_with(content: bytes, **fields) -> bytes:
    header = nib.Nifti1Header(content[:348])
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + content[348:]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: header_with(c, datatype=16, bitpix=32, dim=[3, 4, 5, 6, 1, 1, 1, 1]),
        lambda c: header_with(c, datatype=8, bitpix=32),
        lambda c: header_with(c, datatype=1792, bitpix=128),
        lambda c: header_with(c, datatype=999),
        lambda c: header_with(c, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        lambda c: header_with(c, dim=[3, -1, 4, 6, 1, 1, 1, 1]),
        lambda c: header_with(c, vox_offset=0),
        lambda c: header_with(c, vox_offset=400),
        lambda c: header_with(c, scl_slope=2, scl_inter=0),
        lambda c: c[:348] + b"\1\0\0\0" + c[352:],
        lambda c: b"\0" * 352 + c[352:],
        lambda c: c[:100],
        lambda c: c[:0],
    ],
)
def test_a_member_that_is_no_nifti_of_ours(saved, path, refused, change):
    name = "pairs/0001/image.nii"
    changed = change(saved.contents[name])
    if changed == saved.contents[name]:
        pytest.skip("the header says so already")
    write_zip(path, seal({**saved.contents, name: changed}, saved.index))
    refused(r"not NIfTI|its index says|ends too early|ends too|lists|finite")


def test_voxels_that_are_no_image_or_label(saved, path, refused):
    def with_last(name: str, value) -> dict[str, bytes]:
        content = saved.contents[name]
        return {**saved.contents, name: content[:-4] + value.tobytes()}

    for value, message in ((np.float32("nan"), "not finite"), (np.float32("inf"), "not finite")):
        write_zip(path, seal(with_last("pairs/0001/image.nii", value), saved.index))
        refused(message)
    write_zip(path, seal(with_last("pairs/0001/label.nii", np.int32(-1)), saved.index))
    refused("label values from -1 to 2, not 0")
    saved.index["pairs"][0]["image"]["dtype"] = "<f2"  # kept as float32, which may hold more
    write_zip(path, seal(with_last("pairs/0001/image.nii", np.float32(1e9)), saved.index))
    refused("not finite")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b"{}", "format is missing"),
        (b'{"format": 1}', "members is missing"),
    ],
)
def test_an_index_that_is_none(saved, path, refused, content, message):
    write_zip(path, {**saved.contents, "bank.json": content})
    refused(message)


def test_a_huge_index_is_not_read(saved, path, refused, monkeypatch):
    monkeypatch.setattr(bank_file, "LARGEST_INDEX", 1000)
    refused("bank.json has .* MB, at most")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("context", [0, 0], "each once"),
        ("context", [7], "numbers of the 2 pairs"),
        ("context", [0, 1], "no possible context"),
        ("context", [], "no possible context"),
        ("history/0/pairs", [-1], "numbers of the 2 pairs"),
        ("history/1/position", -1, "not be negative"),
        ("history/1/position", 5, "no possible context"),
        ("history/1/kind", "moved", "must be one of accepted, added, removed"),
        ("pairs/1/name", "a", "no possible context"),
        ("pairs/0/name", 5, r"pairs\[0\]\.name must be text, is 5"),
        ("pairs/0/label/dtype", "<f4", "must be of whole numbers"),
        ("pairs/0/label/member", None, "pairs and members do not fit"),
        ("pairs/0/image/dtype", "|O", "must be one of"),
        ("pairs/0/image/shape", [10**12, 1, 1], "from 1 to 32767"),
        ("pairs/0/image/shape", [4, 5, 6], "two grids|shape"),
        ("pairs/0/image/order", [0, 0, 1], "must have 0, 1 and 2"),
        ("pairs/0/image/geometry/dims", ["x", "x", "z"], "must be x, y and z"),
        ("pairs/0/image/geometry/axes_to_ras/3", [0, 0, 0, 2], "0 0 0 1|two grids"),
        ("pairs/0/image/geometry/axes_to_ras/0/0", 1e300, "finite numbers"),
        ("pairs/0/image/geometry/axes_to_ras/0/0", 10**400, "finite numbers"),
        ("pairs/0/image/geometry/axes_to_ras", np.zeros((4, 4)).tolist(), "row 0 0 0 1"),
        ("pairs/0/image/geometry/axes_to_ras/0/3", 500, "two grids"),
        ("pairs/0/image/geometry/positions_mm/0", [0, 1, 2, 3, 99], "evenly spaced"),
        ("pairs/0/image/geometry/positions_mm/0/step", 0, "evenly spaced"),
        ("session/task", "detection", "must be one of image, segmentation"),
        ("session/align", ["box"], "must be text"),
        ("session/precision", "int8", "must be one of"),
        ("classes/0/colour", [1, 2], "must have 3 entries"),
        ("members", [], "must be an object"),
    ],
)
def test_an_index_that_makes_no_sense(saved, path, refused, place, value, message):
    *folders, last = place.split("/")
    part = saved.index
    for key in folders:
        part = part[int(key) if isinstance(part, list) else key]
    part[int(last) if isinstance(part, list) else last] = value
    contents = seal(saved.contents, saved.index)
    if place == "members":
        contents["bank.json"] = json.dumps(saved.index).encode()
    write_zip(path, contents)
    refused(message)


def places_in(value, place=()):
    """Yield the place of every entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        yield (*place, key)
        if isinstance(entry, dict | list):
            yield from places_in(entry, (*place, key))


def test_no_entry_of_the_index_is_taken_on_trust(saved, path):
    """Each entry is missing or of another kind in its turn: a clear error, or a bank all the same."""
    places = list(places_in(saved.index))
    rng, refusals = np.random.default_rng(0), 0
    others = [None, -1, 1e308, 10**30, True, "x", "\ud800", [], [[]], {}, {"start": 1}]
    for place in places:
        for other in ["missing", others[rng.integers(len(others))]]:
            index = copy.deepcopy(saved.index)
            part = index
            for key in place[:-1]:
                part = part[key]
            if other == "missing":
                del part[place[-1]]
            else:
                part[place[-1]] = other
            contents = {**saved.contents, "bank.json": json.dumps(index).encode()}
            write_zip(path, contents, method=zipfile.ZIP_STORED)
            try:
                with open_bank(path) as bank:
                    context = bank.read_context()
                while context.history:
                    context.undo()
            except MedverseError as error:
                refusals += isinstance(error, InputError) and len(str(error)) < 1000
    assert len(places) > 150
    assert refusals > 1.5 * len(places)


def test_a_failed_load_changes_no_session(saved, path, session, load):
    before = (session.context.names, len(session.context.history), session.weights_hash)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError):
        session.load(path)
    assert before == (session.context.names, len(session.context.history), session.weights_hash)


def test_a_failed_save_changes_no_session(session, path):
    session.context.add(new_pair("drawn"))
    before = (session.context.names, list(session.context.history))
    with pytest.raises(InputError):
        session.save(path, images=False)
    assert before == (session.context.names, session.context.history)


# --- the command line -----------------------------------------------------------------------------


def test_info_tells_what_is_inside(cli, session, cohort, path):
    session.predict(cohort.scan)
    session.accept()
    session.context.table.names[1] = "liver"
    session.save(path)
    facts = json.loads(cli("info", path, "--json").out)
    assert (facts["task"], facts["align"]) == ("segmentation", "box")
    assert [pair["name"] for pair in facts["pairs"]] == ["one", "three", "two", "scan"]
    assert facts["pairs"][0]["spacing_mm"] == [2, 1.5, 3]
    assert facts["pairs"][3]["how"] == "accepted"
    assert facts["classes"][0]["name"] == "liver"
    assert [change["kind"] for change in facts["history"]] == ["added", "accepted"]
    table = cli("info", path)
    assert table.code == 0
    assert "name one, shape [9, 10, 8]" in table.out
    path.write_bytes(b"no")
    outcome = cli("info", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "cut short" in outcome.err


def test_predict_with_a_bank(cli, cohort, tiny_weights, path):
    session = ICLSession(tiny_weights, device="cpu")  # as the command line
    session.add_context_folder(cohort.images, cohort.labels)
    session.save(path)
    with_folders = cli(
        "predict", cohort.scan, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out / "a", "--model", session.model_name, "--device", "cpu",
    )  # fmt: skip
    outcome = cli("predict", cohort.scan, "--bank", path, "--out", cohort.out / "b", "--json")
    assert (with_folders.code, outcome.code) == (0, 0)
    assert json.loads(outcome.out)["context"] == ["one", "three", "two"]
    one, other = (nib.load(cohort.out / name / "scan.nii.gz") for name in "ab")
    assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    assert np.array_equal(one.affine, other.affine)


def test_predict_with_a_bank_keeps_the_target_out_of_it(cli, session, cohort, path):
    session.save(path)
    target = cohort.images / "two_0000.nii.gz"
    outcome = cli("predict", target, "--bank", path, "--out", cohort.out, "--json")
    summary = json.loads(outcome.out)
    assert summary["context"] == ["one", "three"]
    (case,) = summary["cases"]
    assert [pair["name"] for pair in case["manifest"]["context"]] == ["one", "three"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images=x", "--labels=y"], "--bank brings pairs"),
        (["--align=world"], "--bank brings pairs"),
        (["--task=image"], "--bank brings pairs"),
        (["--context-size=9"], "3 labelled cases"),
    ],
)
def test_what_does_not_go_with_a_bank(cli, session, cohort, path, options, message):
    session.save(path)
    outcome = cli("predict", cohort.scan, "--bank", path, "--out", cohort.out, *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert not cohort.out.exists()
