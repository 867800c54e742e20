"""Large files: what is read lazily is what would have been read at once, and so is what is written."""

import gzip
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from contextlib import contextmanager
from itertools import permutations, product
from types import SimpleNamespace
from typing import ClassVar

import dask.array as da
import nibabel as nib
import numpy as np
import pytest

from medverse_nb import scratch, stored, zarr_files
from medverse_nb.errors import GeometryError, InputError, MedverseError, OutputError
from medverse_nb.io import VolumeWarning, read_volume, write_volume
from medverse_nb.regions import read, slabs
from medverse_nb.views import as_dask
from medverse_nb.volume import affine_of, make_volume, view_of

SHAPE = (130, 5, 140)  # several chunks along two axes
THIN = np.array([[0, 0, -5, 30], [0.4, 0, 0, -2], [0, 0.7, 0, 8], [0, 0, 0, 1.0]])
UNPACKED = "ignore:.*unpacked into:medverse_nb.io.VolumeWarning"


@pytest.fixture
def lazily(monkeypatch, tmp_path):
    """Read everything lazily, a few planes at a time, with a scratch folder of the test's own."""
    monkeypatch.setattr(stored, "LARGEST_LOADED", 0)
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**16)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv(scratch.VARIABLE, str(folder))
    return folder


@contextmanager
def loaded_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "LARGEST_LOADED", 2**28)
        yield


def eager(path, affine=None):
    with loaded_at_once():
        return read_volume(path, affine)


def voxels(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def save(path, data, affine=THIN, slope=None, inter=None, endian="<"):
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(data.dtype.newbyteorder(endian))
    image = nib.Nifti1Image(data, affine, header)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


def is_lazy(volume):
    return isinstance(volume.data, da.Array)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings(UNPACKED)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        (np.int16, None, None), (np.uint8, None, None), (np.float32, None, None),
        (np.float64, None, None), (np.int16, 0.5, -1000), (np.uint8, 2, 0),
        (np.float32, 1.5, 3), (np.int32, 1, -7), (np.uint16, None, None),
    ],
)  # fmt: skip
def test_a_large_nifti_has_the_voxels_of_a_small_one(
    lazily, tmp_path, dtype, slope, inter, endian, suffix
):
    path = save(tmp_path / f"a{suffix}", voxels(dtype), slope=slope, inter=inter, endian=endian)
    whole, large = eager(path), read_volume(path)
    assert is_lazy(large)
    assert not is_lazy(whole)
    assert large.dtype == whole.dtype.newbyteorder("=")
    assert np.array_equal(large.values, whole.values)
    assert large.attrs == whole.attrs
    assert large.name == whole.name
    assert np.array_equal(affine_of(large), affine_of(whole))
    part = (slice(100, 130), slice(1, 2), slice(3, 139))
    assert np.array_equal(read(view_of(large), part), whole.values[part])
    assert np.array_equal(np.concatenate(list(slabs(view_of(large)))), whole.values)


ORIENTATIONS = [
    (order, flips) for order in permutations(range(3)) for flips in product([1, -1], repeat=3)
]


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_every_orientation_is_kept(lazily, tmp_path, order, flips):
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([0.5, 2, 3]) * flips)[:, order]
    affine[:3, 3] = 4, -5, 6
    path = save(tmp_path / "a.nii", voxels(shape=(3, 4, 5)), affine)
    whole, large = eager(path), read_volume(path)
    assert np.array_equal(affine_of(large), affine_of(whole))
    for name in ("b.nii", "b.zarr"):
        again = read_volume(write_volume(large, tmp_path / name))
        assert np.array_equal(again.values, whole.values)
        assert np.allclose(affine_of(again), affine, atol=1e-6)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, bool, np.uint8])
def test_a_large_npy(lazily, tmp_path, dtype, fortran):
    data = np.asarray(voxels(dtype), order="F" if fortran else "C")
    np.save(tmp_path / "a.npy", data)
    whole, large = eager(tmp_path / "a.npy", THIN), read_volume(tmp_path / "a.npy", THIN)
    assert is_lazy(large)
    assert large.dtype == whole.dtype
    assert np.array_equal(large.values, whole.values)


def test_a_large_npy_has_its_affine_beside_it_or_a_warning(lazily, tmp_path):
    np.save(tmp_path / "a.npy", voxels())
    with pytest.warns(VolumeWarning, match="1 mm voxels"):
        read_volume(tmp_path / "a.npy")
    np.save(tmp_path / "a.affine.npy", THIN)
    assert np.allclose(affine_of(read_volume(tmp_path / "a.npy")), THIN)


@pytest.mark.filterwarnings(UNPACKED)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_a_fourth_axis_of_one_is_dropped(lazily, tmp_path, suffix):
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", voxels()[..., None])
        volume = read_volume(tmp_path / "a.npy", THIN)
    else:
        volume = read_volume(save(tmp_path / f"a{suffix}", voxels()[..., None]))
    assert np.array_equal(volume.values, voxels())
    assert volume.attrs["changes"] == ["dropped the fourth axis, of size 1"]


def test_only_a_large_file_is_lazy(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii", voxels())
    monkeypatch.setattr(stored, "LARGEST_LOADED", 4 * voxels().size)
    assert not is_lazy(read_volume(path))
    monkeypatch.setattr(stored, "LARGEST_LOADED", 4 * voxels().size - 1)
    assert is_lazy(read_volume(path))


@pytest.mark.filterwarnings(UNPACKED)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
def test_a_lazy_volume_can_be_pickled(lazily, tmp_path, name):
    data = voxels(np.float32)
    data[0, 0, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        volume = read_volume(write_volume(make_volume(data, THIN), tmp_path / name))
    content = pickle.dumps(volume)
    assert len(content) < 20_000 < data.nbytes
    again = pickle.loads(content)
    assert is_lazy(again)
    assert np.array_equal(again.values, np.nan_to_num(data, nan=0))
    assert np.array_equal(read(view_of(again)), volume.values)


@pytest.mark.parametrize("name", ["a.nii", "a.npy", "a.zarr"])
def test_a_file_that_changed_since_is_told(lazily, tmp_path, name):
    volume = read_volume(write_volume(make_volume(voxels(), THIN), tmp_path / name))
    write_volume(volume + 1, tmp_path / name)  # from the file into the file
    assert np.array_equal(eager(tmp_path / name).values, voxels() + 1)
    with pytest.raises(InputError, match="has changed since it was read"):
        volume.values  # noqa: B018
    write_volume(read_volume(tmp_path / name)[1:], tmp_path / "b.nii")
    volume = read_volume(tmp_path / name)
    if name.endswith(".zarr"):
        shutil.rmtree(tmp_path / name)
    else:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"{name}\S*: is gone since it was read"):
        write_volume(volume, tmp_path / "c.nii")
    assert not (tmp_path / "c.nii").exists()


# Voxels that are not finite.


@pytest.mark.parametrize("name", ["a.nii", "a.npy", "a.zarr"])
def test_non_finite_voxels_are_replaced_where_they_are_read(lazily, tmp_path, name):
    data = voxels(np.float32) + 10
    data[0, 0, 0], data[129, 4, 139], data[2, 2, 2] = np.nan, np.inf, -np.inf
    write_volume(make_volume(data, THIN), tmp_path / name)
    with pytest.warns(VolumeWarning, match="replaced 3 non-finite voxels by the minimum") as told:
        large = read_volume(tmp_path / name)
    assert told[0].filename == __file__
    with pytest.warns(VolumeWarning, match="replaced 3"):
        whole = eager(tmp_path / name)
    assert is_lazy(large)
    assert large.dtype == whole.dtype == np.float32
    assert np.array_equal(large.values, whole.values)
    assert large.attrs == whole.attrs
    assert large.attrs["non_finite"] == 3


class Counted:
    """A volume that notes how much of it is read."""

    shape = (40, 30, 20)
    sizes: ClassVar = []

    def __getitem__(self, region):
        part = np.zeros(self.shape, np.float32)[region]
        self.sizes.append(part.size)
        return part


def test_the_check_reads_every_chunk_once_and_never_the_whole():
    volume = make_volume(as_dask(Counted(), (16, 16, 16)), np.eye(4))
    Counted.sizes.clear()
    assert read_volume(volume) is volume
    assert sum(Counted.sizes) == 40 * 30 * 20
    assert max(Counted.sizes) == 16**3


def test_a_lazy_volume_without_a_finite_voxel_is_refused(lazily, tmp_path):
    path = save(tmp_path / "a.nii", np.full((4, 5, 6), np.nan))
    with pytest.raises(InputError, match="no finite voxel"):
        read_volume(path)


# Compressed files: unpacked into scratch space.


def test_size_and_place_are_told_and_the_place_is_emptied(lazily, tmp_path):
    path = save(tmp_path / "a.nii.gz", voxels())
    with pytest.warns(VolumeWarning, match=r"a\.nii\.gz: is large; .*0\.2 MB") as told:
        volume = read_volume(path)
    (place,) = lazily.iterdir()
    assert str(place) in str(told[0].message)
    assert scratch.VARIABLE in str(told[0].message)
    assert told[0].filename == __file__
    flipped = volume[::-1]
    del volume
    assert np.array_equal(flipped.values, voxels()[::-1])  # still in use
    del flipped
    assert names_in(lazily) == []


def test_the_scratch_goes_when_the_process_ends(lazily, tmp_path):
    path = save(tmp_path / "a.nii.gz", voxels(shape=(8, 9, 10)))
    code = (
        "import sys, os, warnings; warnings.simplefilter('ignore')\n"
        "from medverse_nb import stored; stored.LARGEST_LOADED = 0\n"
        "from medverse_nb.io import read_volume\n"
        "volume = read_volume(sys.argv[1])\n"
        "assert len(os.listdir(os.environ['MEDVERSE_NB_SCRATCH'])) == 1\n"
        "if hasattr(os, 'fork') and os.fork() == 0: sys.exit()\n"  # the child removes nothing
        "os.wait() if hasattr(os, 'fork') else None\n"
        "print(float(volume.values.mean()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == voxels(shape=(8, 9, 10)).mean()
    assert names_in(lazily) == []


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # of the checksum at the end
    path.write_bytes(content)


def end_early(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


@pytest.mark.filterwarnings(UNPACKED)
@pytest.mark.parametrize("damage", [cut, flip_a_byte, end_early, garble])
def test_a_damaged_gz_leaves_no_scratch(lazily, tmp_path, damage):
    path = save(tmp_path / "a.nii.gz", voxels())
    damage(path)
    with pytest.raises(InputError, match=r"a\.nii\.gz: damaged or cut short"):
        read_volume(path)
    assert names_in(lazily) == []


def cut_nii(folder):
    cut(save(folder / "a.nii", voxels()))
    return folder / "a.nii"


def bad_affine(folder, suffix):
    image = nib.Nifti1Image(voxels(), THIN)
    image.header["srow_x"][0:3] = 0
    image.header["sform_code"] = 2
    nib.save(nib.Nifti1Image(voxels(), None, image.header), folder / f"a{suffix}")
    return folder / f"a{suffix}"


def big_npy(folder, data):
    np.save(folder / "a.npy", data, allow_pickle=True)
    return folder / "a.npy"


REFUSED = {
    "cut-nii": (cut_nii, InputError, "damaged or cut short"),
    "4D": (lambda t: save(t / "a.nii.gz", voxels(shape=(4, 5, 6, 7))), InputError, "7 volumes"),
    "2D": (lambda t: save(t / "a.nii", voxels(shape=(4, 5))), InputError, "is 2D"),
    "complex": (lambda t: save(t / "a.nii", voxels(np.complex64)), InputError, "not numbers"),
    "complex-gz": (lambda t: save(t / "a.nii.gz", voxels(np.complex64)), InputError, "not numbers"),
    "affine": (lambda t: bad_affine(t, ".nii"), GeometryError, r"a\.nii: .*singular"),
    "affine-gz": (lambda t: bad_affine(t, ".nii.gz"), GeometryError, r"a\.nii\.gz: .*singular"),
    "pickle": (lambda t: big_npy(t, np.full((4, 5, 6), {})), InputError, "pickled objects"),
    "text-npy": (lambda t: big_npy(t, voxels().astype("S4")), InputError, "not numbers"),
}


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_leaves_nothing_behind(lazily, tmp_path, recwarn, make, kind, message):
    with pytest.raises(kind, match=message):
        read_volume(make(tmp_path))
    assert names_in(lazily) == []
    assert not list(recwarn), "not even a word of unpacking"


def test_too_little_space_is_told_before_anything_is_unpacked(lazily, tmp_path, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _: usage)
    path = save(tmp_path / "a.nii.gz", voxels())
    with pytest.raises(OutputError, match=r"0\.2 MB .* free; set MEDVERSE_NB_SCRATCH to a folder"):
        read_volume(path)
    assert names_in(lazily) == []


def test_a_scratch_folder_that_is_not_there_is_our_error(lazily, tmp_path, monkeypatch):
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(OutputError, match="set MEDVERSE_NB_SCRATCH"):
        read_volume(save(tmp_path / "a.nii.gz", voxels()))


@pytest.mark.filterwarnings(UNPACKED)
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_disk_that_fills_while_unpacking_leaves_no_scratch(lazily, tmp_path, monkeypatch, stop):
    def fill(*_):
        raise stop

    monkeypatch.setattr(scratch, "write_region", fill)
    path = save(tmp_path / "a.nii.gz", voxels())
    with pytest.raises(OutputError if isinstance(stop, OSError) else KeyboardInterrupt) as caught:
        read_volume(path)
    assert not isinstance(stop, OSError) or "No space left" in str(caught.value)
    assert names_in(lazily) == []


# Writing.


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(np.int16, None), (np.float64, None), (np.float32, np.uint8), (np.int64, None), (np.uint8, np.float32)],
)  # fmt: skip
def test_a_lazy_volume_is_written_byte_for_byte_as_a_loaded_one(
    tmp_path, monkeypatch, dtype, wanted, suffix
):
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**16)
    grid = {"nifti_grid": {}, "nifti_pixdim": []}
    source = read_volume(save(tmp_path / "source.nii", voxels()))
    for attrs in ({}, {key: source.attrs[key] for key in grid}):
        loaded = make_volume(voxels(dtype), affine_of(source), attrs=attrs)
        lazy = loaded.copy(data=as_dask(voxels(dtype), (64, 64, 64)))
        write_volume(loaded, tmp_path / f"loaded{suffix}", dtype=wanted)
        write_volume(lazy, tmp_path / f"lazy{suffix}", dtype=wanted)
        one, other = (tmp_path / f"{name}{suffix}" for name in ("loaded", "lazy"))
        assert unzipped(one) == unzipped(other)


def unzipped(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.name.endswith(".gz") else content


def test_a_lazy_mask_of_bools_is_written_as_bytes(tmp_path):
    mask = make_volume(da.from_array(voxels() > 60, chunks=64), THIN)
    for name in ("a.nii", "a.npy", "a.zarr"):
        again = read_volume(write_volume(mask, tmp_path / name))
        assert again.dtype == np.uint8
        assert np.array_equal(again.values, voxels() > 60)


def test_wide_integers_and_types_nifti_lacks_are_our_errors(tmp_path):
    wide = make_volume(da.from_array(voxels(np.int64) + 2**40, chunks=64), THIN)
    with pytest.raises(InputError, match="32-bit"):
        write_volume(wide, tmp_path / "a.nii")
    with pytest.raises(MedverseError, match="float16"):
        write_volume(wide, tmp_path / "a.nii", dtype=np.float16)
    assert names_in(tmp_path) == []


def test_a_chunk_is_computed_once_for_all_its_planes(tmp_path):
    computed = []

    def count(block):
        computed.append(block.shape)
        return block

    # dask tries the function on an empty block
    data = da.from_array(voxels(), chunks=(130, 5, 128)).map_blocks(count, dtype=np.int16)
    for name in ("a.nii", "a.zarr"):
        computed.clear()
        write_volume(make_volume(data, THIN), tmp_path / name)
        assert len(computed) == 2


@contextmanager
def largest_file(size):
    """Let the operating system refuse a file that grows larger, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, name, before):
    noise = np.random.default_rng(0).integers(0, 2**15, SHAPE).astype(np.int16)
    volume = make_volume(da.from_array(noise, chunks=64), THIN)
    if before:
        write_volume(make_volume(voxels(), THIN), tmp_path / name)
    listed = names_in(tmp_path)
    with largest_file(20_000), pytest.raises(OutputError, match="could not be written"):
        write_volume(volume, tmp_path / name)
    assert names_in(tmp_path) == listed
    if before:
        assert np.array_equal(read_volume(tmp_path / name).values, voxels())


class Stops:
    """A volume whose reading ends in an error half-way."""

    shape = (8, 8, 300)

    def __init__(self, error):
        self.error = error

    def __getitem__(self, region):
        if region[0].start > 4 or region[2].start > 100:
            raise self.error
        return np.zeros(self.shape, np.int16)[region]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), InputError("damaged")])
def test_a_source_that_fails_half_way_leaves_nothing(tmp_path, name, stop, monkeypatch):
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**12)
    volume = make_volume(as_dask(Stops(stop), (8, 8, 32)), THIN)
    with pytest.raises(type(stop)):
        write_volume(volume, tmp_path / name)
    assert names_in(tmp_path) == []


# Memory.


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings(UNPACKED)
def test_a_spooled_file_is_never_whole_in_memory(lazily, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**19)
    monkeypatch.setattr(zarr_files, "LARGEST_BOX", 0)  # decoded chunks have a limit of their own
    small = save(tmp_path / "small.nii.gz", voxels(np.uint8, (9, 9, 9)))
    for name in ("small.nii", "small2.nii.gz", "small.npy", "small.zarr"):  # what is imported late
        write_volume(read_volume(small), tmp_path / name)
    shape = (128, 128, 512)
    data = np.broadcast_to(np.arange(128, dtype=np.int16)[:, None, None], shape)
    path = save(tmp_path / "large.nii.gz", data)
    whole = 2 * 128 * 128 * 512
    kept = []
    assert peak_of(lambda: kept.append(read_volume(path))) < whole / 2
    (volume,) = kept
    for name in ("b.nii", "b.nii.gz", "b.npy", "b.zarr"):
        assert peak_of(lambda name=name: write_volume(volume, tmp_path / name)) < whole / 2, name
    assert np.array_equal(
        np.asarray(nib.load(tmp_path / "b.nii").dataobj[..., 500]), data[..., 500]
    )


# Through the command line.


@pytest.mark.filterwarnings("ignore::medverse_nb.io.VolumeWarning")
def test_a_scan_and_pairs_that_stay_in_their_files_give_the_same_mask(
    cli, cohort, tiny_weights, request
):
    masks = []
    for fixture in (None, "lazily"):
        if fixture:
            request.getfixturevalue(fixture)
        outcome = cli(
            "predict", cohort.scan, "--images", cohort.images, "--labels", cohort.labels,
            "--out", cohort.out, "--model", tiny_weights,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        masks.append(unzipped(cohort.out / "scan.nii.gz"))
    assert masks[0] == masks[1]
