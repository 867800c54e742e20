import gzip
import pickle
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import io
from medverse_nb.errors import GeometryError, InputError, MedverseError, OutputError
from medverse_nb.files import check_writable, write_atomically
from medverse_nb.io import VolumeWarning, check_output, read_volume, stem_of, write_volume
from medverse_nb.volume import affine_of, make_volume

SHAPE = (4, 5, 6)
ANGLE = np.radians(25)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array(
    [[-np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), -np.cos(ANGLE), 0], [0, 0, 1]]
) @ np.diag([1, 1, 1.5])
OBLIQUE[:3, 3] = 90, 126, -72
THIN = np.array([[0, 0, -5, 30], [0.4, 0, 0, -2], [0, 0.7, 0, 8], [0, 0, 0, 1.0]])
AFFINES = {"plain": np.diag([1.0, 1, 1, 1]), "oblique": OBLIQUE, "thin": THIN}
CODES = {"sform": (4, 0), "qform": (0, 1), "both": (2, 1), "neither": (0, 0)}


def voxels(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def save_nifti(path, data, affine=OBLIQUE, codes=(2, 1), units="mm", endian="<", **header_fields):
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(data.dtype.newbyteorder(endian))
    header.set_data_shape(data.shape)
    sform, qform = codes
    header.set_qform(affine, qform)
    header.set_sform(affine if sform else None, sform)
    header.set_xyzt_units(units, "sec")
    for field, value in header_fields.items():
        header[field] = value
    nib.save(nib.Nifti1Image(data, None, header), path)
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("affine", AFFINES)
def test_a_header_survives_reading_and_writing(tmp_path, affine, codes, suffix):
    path = save_nifti(tmp_path / f"in{suffix}", voxels(), AFFINES[affine], CODES[codes])
    written = nib.load(write_volume(read_volume(path), tmp_path / f"out{suffix}"))
    source = nib.load(path)
    assert written.shape == source.shape
    assert np.array_equal(written.affine, source.affine)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj))
    assert written.get_data_dtype() == np.int16
    for field in (*io.GRID_FIELDS, "pixdim"):
        assert np.array_equal(written.header[field], source.header[field]), field


def test_an_sform_and_a_qform_that_differ_are_both_kept(tmp_path):
    path = save_nifti(tmp_path / "in.nii", voxels(), THIN, (0, 1))
    image = nib.load(path)
    image.header.set_sform(OBLIQUE, 4)  # say, MNI space beside the scanner's
    nib.save(nib.Nifti1Image(voxels(), None, image.header), path)
    volume = read_volume(path)
    assert np.allclose(affine_of(volume), OBLIQUE, atol=1e-5)
    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    assert np.allclose(written.get_sform(), OBLIQUE, atol=1e-5)
    assert np.allclose(written.get_qform(), THIN, atol=1e-5)
    assert (written.header["sform_code"], written.header["qform_code"]) == (4, 1)


@pytest.mark.parametrize("units", ["mm", "micron", "unknown"])
def test_units_are_kept(tmp_path, units):
    path = save_nifti(tmp_path / "in.nii.gz", voxels(), units=units)
    written = nib.load(write_volume(read_volume(path), tmp_path / "out.nii.gz"))
    assert written.header.get_xyzt_units() == (units, "sec")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_every_dtype_and_byte_order(tmp_path, dtype, endian):
    data = voxels(dtype)
    path = save_nifti(tmp_path / "in.nii", data, endian=endian)
    volume = read_volume(path)
    assert volume.dtype.kind == np.dtype(dtype).kind
    assert np.array_equal(volume.values, data)
    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    assert np.array_equal(np.asarray(written.dataobj), data)
    expected = np.float32 if dtype is np.float64 else dtype
    assert written.get_data_dtype() == np.dtype(expected)


def test_stored_scaling_is_applied_and_not_written_twice(tmp_path):
    image = nib.Nifti1Image(voxels(), OBLIQUE)
    image.header.set_slope_inter(0.5, -1000)
    raw = tmp_path / "in.nii"
    nib.save(image, raw)
    assert np.array_equal(np.asarray(nib.load(raw).dataobj.get_unscaled()), voxels())
    volume = read_volume(raw)
    assert np.array_equal(volume.values, 0.5 * voxels() - 1000)
    again = read_volume(write_volume(volume, tmp_path / "out.nii.gz"))
    assert np.array_equal(again.values, volume.values)


def test_a_changed_volume_keeps_its_place_though_not_the_old_header(tmp_path):
    path = save_nifti(tmp_path / "in.nii", voxels(), OBLIQUE, (0, 1))
    part = read_volume(path)[1:, ::-1, ::2]
    written = nib.load(write_volume(part, tmp_path / "out.nii"))
    assert np.allclose(written.affine, affine_of(part), atol=1e-4)
    assert np.array_equal(np.asarray(written.dataobj), voxels()[1:, ::-1, ::2])


def test_a_crop_of_a_file_without_forms_keeps_its_place(tmp_path):
    path = save_nifti(tmp_path / "in.nii", voxels(), np.diag([2.0, 3, 4, 1]), (0, 0))
    part = read_volume(path)[:-1]  # nibabel centres such files, so the header alone would move it
    written = nib.load(write_volume(part, tmp_path / "out.nii"))
    assert np.allclose(written.affine, affine_of(part), atol=1e-5)


def test_a_fourth_axis_of_one_is_dropped_and_told(tmp_path):
    data = voxels()
    path = tmp_path / "in.nii.gz"
    nib.save(nib.Nifti1Image(data[..., None], THIN), path)
    volume = read_volume(path)
    assert volume.shape == SHAPE
    assert np.array_equal(volume.values, data)
    assert volume.attrs["changes"] == ["dropped the fourth axis, of size 1"]
    assert nib.load(write_volume(volume, tmp_path / "out.nii.gz")).shape == SHAPE


@pytest.mark.parametrize("shape", [(1, 5, 6), (4, 1, 6), (4, 5, 1), (1, 1, 1)])
def test_an_axis_of_one_voxel_stays(tmp_path, shape):
    path = tmp_path / "in.nii"
    nib.save(nib.Nifti1Image(voxels(shape=shape), THIN), path)
    volume = read_volume(path)
    assert volume.shape == shape
    assert np.allclose(affine_of(volume), THIN, atol=1e-6)
    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    assert written.shape == shape
    assert np.allclose(written.affine, THIN, atol=1e-6)


def test_non_finite_voxels_become_the_minimum_with_a_warning(tmp_path):
    data = voxels(np.float32) + 10
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
    lowest = data[np.isfinite(data)].min()
    path = tmp_path / "holes.nii"
    nib.save(nib.Nifti1Image(data, THIN), path)
    with pytest.warns(VolumeWarning, match=r"holes\.nii: replaced 3 non-finite voxels"):
        volume = read_volume(path)
    assert np.isfinite(volume.values).all()
    assert volume.values[0, 0, 0] == volume.values[1, 1, 1] == volume.values[2, 2, 2] == lowest
    assert volume.values[3, 3, 3] == data[3, 3, 3]
    assert volume.attrs["changes"] == ["replaced 3 non-finite voxels by the minimum"]


def test_a_sound_file_is_read_without_a_word(tmp_path, recwarn):
    path = save_nifti(tmp_path / "in.nii", voxels(np.float32))
    assert read_volume(path).attrs["changes"] == []
    assert not list(recwarn)


def test_npy_with_an_affine_beside_it_round_trips(tmp_path):
    volume = make_volume(voxels(np.float32), OBLIQUE)
    path = write_volume(volume, tmp_path / "scan.npy")
    assert left_in(tmp_path) == ["scan.affine.npy", "scan.npy"]
    again = read_volume(path)
    assert np.array_equal(again.values, volume.values)
    assert np.allclose(affine_of(again), OBLIQUE)


def test_npy_takes_an_affine_and_misses_none(tmp_path):
    np.save(tmp_path / "bare.npy", voxels())
    assert np.array_equal(affine_of(read_volume(tmp_path / "bare.npy", THIN)), THIN)
    with pytest.warns(VolumeWarning, match=r"bare\.npy: no affine given"):
        volume = read_volume(tmp_path / "bare.npy")
    assert np.array_equal(affine_of(volume), np.eye(4))


def test_arrays_images_and_volumes_are_read_alike():
    data = voxels()
    image = nib.Nifti1Image(data, THIN)
    from_array, from_image = read_volume(data, THIN, name="a"), read_volume(image)
    assert np.array_equal(from_array.values, from_image.values)
    assert np.allclose(affine_of(from_array), affine_of(from_image))
    assert from_array.name == "a"
    assert read_volume(from_array) is from_array
    with pytest.warns(VolumeWarning, match="1 mm voxels"):
        read_volume(data)


def test_a_mask_of_bools_is_written_as_bytes(tmp_path):
    mask = make_volume(voxels() > 60, THIN)
    written = nib.load(write_volume(mask, tmp_path / "mask.nii.gz"))
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), voxels() > 60)


def test_wide_integers_are_narrowed_only_where_nothing_is_lost(tmp_path):
    volume = make_volume(voxels(np.int64), THIN)
    written = nib.load(write_volume(volume, tmp_path / "labels.nii"))
    assert written.get_data_dtype() == np.int32
    assert np.array_equal(np.asarray(written.dataobj), voxels())
    with pytest.raises(InputError, match="32"):
        write_volume(volume + 2**40, tmp_path / "wide.nii")
    assert left_in(tmp_path) == ["labels.nii"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "A.NII.GZ", "A.NPY"])
def test_suffixes_in_any_case(tmp_path, name):
    volume = make_volume(voxels(), THIN)
    write_volume(volume, tmp_path / name)
    assert name in left_in(tmp_path)
    assert not [left for left in left_in(tmp_path) if "partial" in left]
    assert np.array_equal(read_volume(tmp_path / name).values, volume.values)


def test_stems():
    names = ("a/b.nii.gz", "b.nii", "b.NII.GZ", "b.npy", "b.dcm", "b.tar.gz", "b.c.nii", "a/b/")
    assert [stem_of(name) for name in names] == ["b", "b", "b", "b", "b", "b.tar.gz", "b.c", "b"]
    assert [stem_of(name) for name in ("b.zarr", "a/b.ome.zarr/", "B.OME.ZARR")] == ["b", "b", "B"]


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def header_with(path: Path, offset: int, values, dtype) -> Path:
    save_nifti(path, voxels())
    content = bytearray(path.read_bytes())
    planted = np.array(values, dtype).tobytes()
    content[offset : offset + len(planted)] = planted
    return write_bytes(path, bytes(content))


def zipped(path: Path) -> Path:
    return write_bytes(path.with_suffix(".nii.gz"), gzip.compress(path.read_bytes()))


def truncated(path: Path) -> Path:
    save_nifti(path, voxels(shape=(20, 20, 20)))
    return write_bytes(path, path.read_bytes()[:-2000])


def pickled(path: Path) -> Path:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path


def archive(path: Path) -> Path:
    with open(path, "wb") as file:
        np.savez(file, a=voxels())
    return path


def saved(path: Path, data, affine=THIN) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def rgb(path: Path) -> Path:
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return saved(path, colours)


BAD = {
    "missing": (lambda t: t / "none.nii.gz", "no such file"),
    "cut-gz": (lambda t: truncated(t / "a.nii.gz"), "damaged or cut short"),
    "cut-nii": (lambda t: truncated(t / "a.nii"), "damaged or cut short"),
    "text": (lambda t: write_bytes(t / "a.nii.gz", b"patient,age\n1,54\n"), "a.nii.gz"),
    "text-nii": (lambda t: write_bytes(t / "a.nii", b"patient,age\n" * 99), "not a NIfTI"),
    "empty-nii": (lambda t: write_bytes(t / "a.nii", b""), "a.nii"),
    "picture": (lambda t: write_bytes(t / "a.png", b"\x89PNG"), "unknown kind"),
    "dicom": (lambda t: write_bytes(t / "IM01.dcm", b""), "give the folder"),
    "2D": (lambda t: saved(t / "a.nii", voxels(shape=(4, 5))), r"is 2D \(shape \(4, 5\)\)"),
    "5D": (lambda t: saved(t / "a.nii", voxels(shape=(4, 5, 6, 1, 3))), "is 5D"),
    "series": (lambda t: saved(t / "a.nii", voxels(shape=(4, 5, 6, 7))), "holds 7 volumes"),
    "zero": (lambda t: header_with(t / "a.nii", 42, [0, 0, 0], "<i2"), "empty"),
    "no-finite": (lambda t: saved(t / "a.nii", np.full(SHAPE, np.nan)), "no finite voxel"),
    "rgb": (lambda t: rgb(t / "a.nii"), "not numbers"),
    "complex": (lambda t: saved(t / "a.nii", voxels(np.complex64)), "not numbers"),
    "huge": (lambda t: header_with(t / "a.nii", 42, [32767] * 3, "<i2"), "damaged"),
    "huge-gz": (lambda t: zipped(header_with(t / "a.nii", 42, [32767] * 3, "<i2")), "damaged"),
    "dtype": (lambda t: header_with(t / "a.nii", 70, [9999], "<i2"), "a.nii"),
    "pickle": (lambda t: pickled(t / "a.npy"), "refused"),
    "npz": (lambda t: archive(t / "a.npy"), "archive"),
    "empty-npy": (lambda t: write_bytes(t / "a.npy", b""), "a.npy"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_our_error(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(InputError, match=message):
        read_volume(path)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_singular_affine_in_a_file_is_our_error(tmp_path, column):
    image = nib.load(save_nifti(tmp_path / "a.nii", voxels(), np.eye(4), (2, 0)))
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row][column] = 0
    nib.save(nib.Nifti1Image(voxels(), None, image.header), tmp_path / "a.nii")
    with pytest.raises(GeometryError, match=r"a\.nii: .*singular"):
        read_volume(tmp_path / "a.nii")


def test_a_nan_in_the_sform_is_our_error(tmp_path):
    path = header_with(tmp_path / "a.nii", 280, [np.nan], "<f4")
    with pytest.raises(GeometryError, match="non-finite"):
        read_volume(path)


@pytest.mark.parametrize(
    ("source", "affine", "message"),
    [
        ([[1, 2]], None, "list"),
        (None, None, "NoneType"),
        (np.zeros((3, 3)), np.eye(4), "is 2D"),
        (np.zeros((0, 3, 3)), np.eye(4), "is empty"),
        (np.full((2, 2, 2), "x"), np.eye(4), "not numbers"),
        (nib.Nifti1Image(voxels(), THIN), THIN, "brings its own affine"),
    ],
)
def test_bad_sources_are_our_error(source, affine, message):
    with pytest.raises(InputError, match=message):
        read_volume(source, affine)


def test_a_lazy_nibabel_image_of_a_damaged_file_is_our_error(tmp_path):
    image = nib.load(truncated(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        read_volume(image)


@pytest.mark.parametrize("seed", range(4))
def test_scrambled_headers_are_read_or_refused_but_never_crash(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sound = save_nifti(tmp_path / "a.nii", voxels(), codes=[(2, 0), (0, 1)][seed % 2]).read_bytes()
    refused = 0
    for _ in range(60):
        content = bytearray(sound)
        for place in rng.integers(0, 352, 4):
            content[place] = rng.integers(256)
        write_bytes(tmp_path / "a.nii", bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                volume = read_volume(tmp_path / "a.nii")
            except MedverseError:
                refused += 1
            else:
                assert volume.ndim == 3
                assert np.isfinite(affine_of(volume)).all()
    assert 0 < refused < 60


def test_an_unpickled_npy_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="refused"):
        read_volume(tmp_path / "a.npy", np.eye(4))
    assert not (tmp_path / "ran").exists()


# Writing: whole or not at all.


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, stop, before):
    path = tmp_path / "result.json"
    if before:
        path.write_bytes(before)

    def write(partial):
        partial.write_bytes(b"half")
        raise stop

    expected = OutputError if isinstance(stop, OSError) else type(stop)
    with pytest.raises(expected):
        write_atomically(path, write)
    assert left_in(tmp_path) == (["result.json"] if before else [])
    assert not before or path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_image_half_written_is_never_left(tmp_path, monkeypatch, suffix, stop):
    volume = make_volume(voxels(), THIN)
    path = write_volume(volume, tmp_path / f"mask{suffix}")
    before = path.read_bytes()

    def half(image, partial):
        Path(partial).write_bytes(b"\x1f\x8b half")
        raise stop

    monkeypatch.setattr(io.nib, "save", half)
    with pytest.raises(OutputError if isinstance(stop, OSError) else KeyboardInterrupt):
        write_volume(volume + 1, path)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == [path.name]


def test_the_partial_file_is_named_so_that_readers_pass_it_over(tmp_path):
    seen = []
    write_atomically(tmp_path / "a.nii.gz", lambda partial: (seen.append(partial), partial.touch()))
    assert seen[0].parent == tmp_path  # one file system, so that the rename is one step
    assert seen[0].name.startswith(".")
    assert seen[0].name.endswith(".nii.gz")


@pytest.mark.parametrize("write", [check_writable, check_output])
def test_a_place_that_cannot_be_written_is_our_error(tmp_path, write):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write(tmp_path / "file" / "mask.nii.gz")
    (tmp_path / "mask.nii.gz").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path / "mask.nii.gz")
    assert left_in(tmp_path) == ["file", "mask.nii.gz"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that refuses even root")
def test_a_folder_that_refuses_even_root_is_our_error():
    volume = make_volume(voxels(), THIN)
    for name in ("mask.nii.gz", "mask.npy"):
        with pytest.raises(OutputError, match="could not be written"):
            write_volume(volume, Path("/proc/medverse_nb") / name)


def test_writing_below_a_file_is_our_error_too(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "file" / "a.txt", lambda partial: partial.write_text("x"))


def test_other_suffixes_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(OutputError, match=r"\.nii"):
        check_output(tmp_path / "new" / "mask.png")
    assert left_in(tmp_path) == []


def test_a_stack_of_volumes_is_not_written(tmp_path):
    stack = make_volume(np.zeros((2, *SHAPE)), THIN, leading={"class": ["a", "b"]})
    with pytest.raises(InputError, match="pick one"):
        write_volume(stack, tmp_path / "a.nii")


def test_a_dtype_nifti_lacks_is_our_error(tmp_path):
    with pytest.raises(MedverseError, match="float16"):
        write_volume(make_volume(voxels(), THIN), tmp_path / "a.nii", dtype=np.float16)
    assert left_in(tmp_path) == []


def test_a_folder_of_nifti_files_is_no_dicom_folder(tmp_path):
    for name in ("a.nii.gz", "b.nii"):
        write_volume(make_volume(np.zeros((3, 3, 3)), np.eye(4)), tmp_path / name)
    with pytest.raises(InputError, match=r"2 NIfTI files, where one scan is wanted.*predict_many"):
        read_volume(tmp_path)
