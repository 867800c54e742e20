"""DICOM folders in; every series is made here."""

import json
import sys
import warnings

import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    BETWEEN_COLUMNS,
    BETWEEN_ROWS,
    CORONAL,
    CT,
    OBLIQUES,
    ORIENTATIONS,
    ORIGIN,
    ROWS,
    SAGITTAL,
    SHAPE,
    SLICES,
    blank,
    make_slice,
    save,
    save_enhanced,
    save_series,
    slice_position,
    stored_values,
    turned,
)

from medverse_nb.classes import ClassSpec
from medverse_nb.dicom import holds_dicom, read_dicom
from medverse_nb.dicom_seg import write_dicom_seg
from medverse_nb.errors import InputError, MedverseError
from medverse_nb.geometry import orientation_of
from medverse_nb.io import name_of, read_volume, write_volume
from medverse_nb.volume import affine_of, make_volume

pydicom = pytest.importorskip("pydicom")

# Where the voxels are.

GOLDENS = {
    # x: right to left (+L), y: front to back (+P), z: feet to head; RAS turns the first two.
    "axial": (
        AXIAL,
        [[-0.7, 0, 0, 100], [0, -0.9, 0, 80], [0, 0, 3, 10], [0, 0, 0, 1]],
        "LPS",
    ),
    # rows +L, columns head to feet; the normal L x (-S) = +P in LPS.
    "coronal": (
        CORONAL,
        [[-0.7, 0, 0, 100], [0, 0, -3, 80], [0, -0.9, 0, 10], [0, 0, 0, 1]],
        "LIP",
    ),
    # rows +P, columns head to feet; the normal P x (-S) = -L, which is +R.
    "sagittal": (
        SAGITTAL,
        [[0, 0, 3, 100], [-0.7, 0, 0, 80], [0, -0.9, 0, 10], [0, 0, 0, 1]],
        "PIR",
    ),
    # feet first as some scanners store it: rows -L, columns +P, the normal -S.
    "axial-down": (
        (-1, 0, 0, 0, 1, 0),
        [[0.7, 0, 0, 100], [0, -0.9, 0, 80], [0, 0, -3, 10], [0, 0, 0, 1]],
        "RPI",
    ),
    # columns tilted by the angle of the 3-4-5 triangle: (0, 0.8, 0.6), the normal (0, -0.6, 0.8).
    "tilted": (
        (1, 0, 0, 0, 0.8, 0.6),
        [[-0.7, 0, 0, 100], [0, -0.72, 1.8, 80], [0, 0.54, 2.4, 10], [0, 0, 0, 1]],
        "LPS",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
def test_affines_computed_by_hand(tmp_path, name):
    cosines, affine, codes = GOLDENS[name]
    volume = read_dicom(save_series(tmp_path, cosines=cosines))
    assert np.allclose(affine_of(volume), affine, atol=1e-6)
    assert orientation_of(affine_of(volume)) == codes
    assert np.array_equal(volume.values, stored_values())


@pytest.mark.parametrize("save_as", [save_series, save_enhanced])
@pytest.mark.parametrize("cosines", ORIENTATIONS, ids=str)
def test_every_voxel_lies_where_its_slice_says(tmp_path, cosines, save_as):
    volume = read_dicom(save_as(tmp_path, cosines=cosines))
    assert volume.shape == SHAPE
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    rng = np.random.default_rng(0)
    for x, y, z in rng.integers(0, SHAPE, (20, 3)):
        # Equation C.7.6.2.1-1 of the standard, one voxel at a time.
        lps = slice_position(cosines, z) + row * BETWEEN_COLUMNS * x + column * BETWEEN_ROWS * y
        ras = affine_of(volume) @ [x, y, z, 1]
        assert np.allclose(ras[:3], lps * (-1, -1, 1), atol=1e-4)
        assert volume.values[x, y, z] == stored_values()[x, y, z]


def test_the_order_of_files_and_frames_changes_nothing(tmp_path):
    plain = read_dicom(save_series(tmp_path / "plain"))
    rng = np.random.default_rng(1)
    for number in range(3):
        order = rng.permutation(SLICES).tolist()
        framed = read_dicom(save_enhanced(tmp_path / f"{number}", order=order))
        assert np.array_equal(framed.values, plain.values)
        assert np.allclose(affine_of(framed), affine_of(plain))


def test_rounded_text_moves_no_slice(tmp_path):
    cosines = turned(10, 25, -40)

    def put(header, number):
        header.ImagePositionPatient = slice_position(cosines, number).round(2).tolist()

    folder = save_series(tmp_path, cosines=np.round(cosines, 3).tolist(), change=put)
    affine = affine_of(read_dicom(folder))
    for number in (0, SLICES - 1):
        lps = slice_position(cosines, number).round(2)
        assert np.allclose((affine @ [0, 0, number, 1])[:3], lps * (-1, -1, 1), atol=1e-6)
    assert np.allclose(np.linalg.norm(affine[:3, :2], axis=0), [0.7, 0.9], atol=1e-9)


def test_it_survives_nifti(tmp_path):
    volume = read_volume(save_series(tmp_path / "in", cosines=OBLIQUES[2]))
    again = read_volume(write_volume(volume, tmp_path / "out.nii.gz"))
    assert np.array_equal(again.values, volume.values)
    assert np.allclose(affine_of(again), affine_of(volume), atol=1e-4)


# What the voxels are worth.


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_integers_stay_as_they_are_stored(tmp_path, dtype):
    data = stored_values() % 200
    volume = read_dicom(save_series(tmp_path, data.astype(dtype)))
    assert volume.dtype == dtype
    assert np.array_equal(volume.values, data)


@pytest.mark.parametrize(
    ("dtype", "top", "expected"),
    [(np.uint16, 4000, np.int16), (np.uint16, 65535, np.int32), (np.int16, 3071, np.int16)],
)
def test_a_whole_intercept_keeps_integers(tmp_path, dtype, top, expected):
    data = stored_values(dtype)
    data[0, 0, 0] = top
    fields = {"RescaleSlope": 1, "RescaleIntercept": -1024, "sop_class": CT}
    volume = read_dicom(save_series(tmp_path, data, **fields))
    assert volume.dtype == expected
    assert np.array_equal(volume.values, data.astype(int) - 1024)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1000), (1, 0.25), (2.5, 0)])
def test_other_slopes_and_intercepts_give_floats(tmp_path, slope, intercept):
    volume = read_dicom(save_series(tmp_path, RescaleSlope=slope, RescaleIntercept=intercept))
    assert volume.dtype == np.float32
    assert np.allclose(volume.values, stored_values() * slope + intercept, rtol=1e-6)


def test_each_slice_has_its_own_slope(tmp_path):  # as in PET
    def scale(header, number):
        header.RescaleSlope, header.RescaleIntercept = number + 0.5, 0

    save_series(tmp_path, change=scale)
    expected = stored_values() * (np.arange(SLICES) + 0.5)
    assert np.allclose(read_dicom(tmp_path).values, expected)


@pytest.mark.parametrize("per_frame", [False, True])
def test_multi_frame_slopes_and_groups_in_either_place(tmp_path, per_frame):
    folder = save_enhanced(
        tmp_path, per_frame=per_frame, RescaleSlope=2.0, RescaleIntercept=-3, RescaleType="US"
    )
    volume = read_dicom(folder)
    assert np.allclose(volume.values, stored_values() * 2.0 - 3)


def test_empty_slope_and_intercept_change_nothing(tmp_path):
    volume = read_dicom(save_series(tmp_path, RescaleSlope=None, RescaleIntercept=None))
    assert np.array_equal(volume.values, stored_values())


def test_a_modality_table_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [1000, 0, 16], "US"
    table.LUTData = (3 * np.arange(1000) + 7).astype("<u2").tobytes()
    data = stored_values(np.uint16)
    volume = read_dicom(save_series(tmp_path, data, ModalityLUTSequence=[table]))
    assert np.array_equal(volume.values, 3 * data + 7)


def test_monochrome1_is_not_inverted(tmp_path):
    volume = read_dicom(save_series(tmp_path, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(volume.values, stored_values())


def test_what_comes_with_the_volume(tmp_path):
    folder = save_series(tmp_path / "sub-09_T1w")
    volume = read_volume(folder)
    assert volume.name == "sub-09_T1w"
    assert volume.attrs == {"changes": [], "dicom_folder": str(folder.resolve())}
    assert read_volume(folder, name="scan").name == "scan"


def test_a_folder_has_a_name(tmp_path, monkeypatch):
    folder = save_series(tmp_path / "scan.1")
    assert name_of(folder) == name_of(f"{folder}/") == "scan.1"
    monkeypatch.chdir(folder)
    assert name_of(".") == read_volume(".").name == "scan.1"
    assert read_volume(".").attrs["dicom_folder"] == str(folder.resolve())


# What lies in a folder.


@pytest.mark.parametrize("suffix", ["", ".dcm", ".IMA"])
def test_files_of_any_name_and_depth(tmp_path, suffix):
    save_series(tmp_path / "DICOM" / "ST000" / "SE000", suffix=suffix)
    (tmp_path / "notes.txt").write_text("left knee")
    (tmp_path / "DICOM" / "preview.png").write_bytes(b"\x89PNG" * 50)
    (tmp_path / "DICOM" / "._IM00.dcm").write_bytes(b"a Mac's file fork")
    (tmp_path / "empty").touch()
    assert np.array_equal(read_dicom(tmp_path).values, stored_values())


def test_a_directory_a_report_and_a_segmentation_are_passed_over(tmp_path):
    folder = save_series(tmp_path)
    from pydicom.fileset import FileSet

    directory = FileSet()
    directory.add(folder / "IM00.dcm")
    directory.write(tmp_path / "disc")
    save(directory._ds, folder / "DICOMDIR")
    report = blank("1.2.840.10008.5.1.4.1.1.88.33", series="1.2.3.9")
    del report.Rows, report.Columns
    save(report, folder / "report.dcm")
    for path in (tmp_path / "disc").rglob("*"):
        if path.is_file():
            path.unlink()
    volume = read_dicom(folder)
    mask = make_volume(np.ones(SHAPE, np.uint8), affine_of(volume))
    write_dicom_seg(mask, [ClassSpec(1, "one", (1,), (0, 0, 0))], folder, folder / "mask.dcm")
    assert np.array_equal(read_dicom(folder).values, volume.values)


def test_the_files_are_found_without_the_library(tmp_path):
    assert not holds_dicom(tmp_path)
    (tmp_path / "a.txt").write_text("no")
    assert not holds_dicom(tmp_path)
    save_series(tmp_path / "deep" / "er")
    assert holds_dicom(tmp_path)


def test_a_compressed_series_reads_like_the_plain_one(tmp_path):
    def compress(header, number):
        header.compress(pydicom.uid.RLELossless)

    save_series(tmp_path, change=compress)
    assert np.array_equal(read_dicom(tmp_path).values, stored_values())


def claim_syntax(folder, uid) -> None:
    def claim(header, number):
        header.file_meta.TransferSyntaxUID = uid
        header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no image"])

    save_series(folder, change=claim)


def damage_one(change):
    """Return a maker of a series of which one slice is changed."""

    def make(folder) -> None:
        save_series(folder)
        header = pydicom.dcmread(folder / "IM04.dcm")
        with pydicom.config.disable_value_validation():
            change(header)
            save(header, folder / "IM04.dcm")

    return make


def several_series(folder) -> None:
    save_series(folder / "a")
    header = make_slice(stored_values(), 0, series="1.2.3.8", SeriesDescription="scout")
    save(header, folder / "b" / "IM00")


def shift_slices(folder, shift) -> None:
    def put(header, number):
        header.ImagePositionPatient = (ORIGIN + shift(number)).tolist()

    save_series(folder, change=put)


def several_times(folder) -> None:
    for number in range(2 * SLICES):
        data = np.concatenate([stored_values()] * 2, axis=2)
        header = make_slice(data, number)
        header.ImagePositionPatient = slice_position(AXIAL, number % SLICES).tolist()
        save(header, folder / f"IM{number}")


def place(header):
    header.ImagePositionPatient = [-100, -80, 1000]


BAD = {
    "empty": (lambda f: f.mkdir(exist_ok=True), "no DICOM image in"),
    "notes-only": (lambda f: (f / "a.txt").write_text("notes"), "give the folder of one"),
    "reports-only": (
        lambda f: save(blank("1.2.840.10008.5.1.4.1.1.66.4"), f / "a"), "only MR; give"),
    "text.dcm": (lambda f: (f / "a.dcm").write_text("notes"), "a.dcm: damaged or not a DICOM"),
    "single": (lambda f: save(make_slice(stored_values(), 0), f / "a.dcm"), "a single slice"),
    "missing": (
        lambda f: save_series(f) / "IM03.dcm" and (f / "IM04.dcm").unlink(),
        "missing or unevenly spaced: 3 mm apart for the most part, but 6 mm between",
    ),
    "far": (damage_one(place), "missing or unevenly spaced"),
    "uneven": (
        lambda f: shift_slices(f, lambda n: (0, 0, 3 * n + 0.02 * n**2)), "from its place in an"),
    "tilted": (
        lambda f: shift_slices(f, lambda n: (0, 1.0 * n, 3 * n)), "sideways against each other"),
    "times": (several_times, "18 of 18 slices share"),
    "copy": (
        lambda f: save_series(f) and save(pydicom.dcmread(f / "IM04.dcm"), f / "copy"),
        "2 of 10 slices share their place with another, such as .*IM04",
    ),
    "several": (several_series, r"2 series in .*1\.2\.3\.2 \(T1w, MR, 9 files\); 1\.2\.3\.8 \(scou"),
    "shape": (
        damage_one(lambda h: setattr(h, "Rows", ROWS - 1)), "slices of different shape"),
    "spacing": (
        damage_one(lambda h: setattr(h, "PixelSpacing", [1, 1])), "different pixel spacing"),
    "turned": (
        damage_one(lambda h: setattr(h, "ImageOrientationPatient", list(OBLIQUES[3]))),
        "different orientation",
    ),
    "frame": (
        damage_one(lambda h: setattr(h, "FrameOfReferenceUID", "1.9")),
        "different frame of reference",
    ),
    "no-position": (
        damage_one(lambda h: delattr(h, "ImagePositionPatient")),
        "IM04.dcm: has no ImagePositionPatient",
    ),
    "short-position": (
        damage_one(lambda h: setattr(h, "ImagePositionPatient", [1, 2])), "must be 3 numbers"),
    "no-spacing": (damage_one(lambda h: delattr(h, "PixelSpacing")), "has no PixelSpacing"),
    "skewed": (
        lambda f: save_series(f, ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]), "orthogonal"),
    "no-size": (damage_one(lambda h: delattr(h, "Rows")), "IM04.dcm: damaged"),
    "no-pixels": (damage_one(lambda h: delattr(h, "PixelData")), "IM04.dcm: damaged"),
    "no-uid": (damage_one(lambda h: delattr(h, "SOPClassUID")), "IM04.dcm: damaged"),
    "no-series": (damage_one(lambda h: delattr(h, "SeriesInstanceUID")), "IM04.dcm: damaged"),
    "nan": (
        damage_one(lambda h: setattr(h, "RescaleIntercept", "nan")), "must be 1 numbers, is nan"),
    "slope-0": (damage_one(lambda h: setattr(h, "RescaleSlope", 0)), "RescaleSlope is 0"),
    "colour": (damage_one(lambda h: setattr(h, "SamplesPerPixel", 3)), "colour"),
    "frames": (
        damage_one(lambda h: setattr(h, "NumberOfFrames", 2)), "does not say where its frames lie"),
    "cut": (
        lambda f: save_series(f) and (f / "IM04.dcm").write_bytes(
            (f / "IM04.dcm").read_bytes()[:-100]),
        "IM04.dcm: damaged or cut short",
    ),
    "cut-header": (
        lambda f: save_series(f) and (f / "IM04.dcm").write_bytes(
            (f / "IM04.dcm").read_bytes()[:500]),
        "IM04.dcm: damaged or cut short",
    ),
    "mpeg": (
        lambda f: claim_syntax(f, pydicom.uid.MPEG2MPML),
        r"cannot decode the transfer syntax MPEG2 Main Profile .*convert the series",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_our_error(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(InputError, match=message) as told:
        read_volume(tmp_path, name="scan")
    assert str(told.value).count("\n") == 0


def test_a_compression_that_needs_more_packages_is_named(tmp_path):
    syntax = pydicom.uid.JPEGLosslessSV1
    if pydicom.pixels.get_decoder(syntax).is_available:
        pytest.skip("a decoder for lossless JPEG is installed here")
    claim_syntax(tmp_path, syntax)
    with pytest.raises(InputError, match=r'JPEG Lossless.*4\.70.*pip install "pylibjpeg\[all\]"'):
        read_dicom(tmp_path)


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, package):
    save_series(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'{package}: \S+ -m pip install "medverse_nb\[dicom\]"'):
        read_volume(tmp_path)


def test_a_single_file_asks_for_its_folder(tmp_path):
    save_series(tmp_path)
    with pytest.raises(InputError, match="give the folder"):
        read_volume(tmp_path / "IM00.dcm")


def test_an_affine_beside_a_dicom_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="brings its own affine"):
        read_volume(save_series(tmp_path), np.eye(4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("save_as", [save_series, save_enhanced])
def test_scrambled_files_are_read_or_refused_but_never_crash(tmp_path, seed, save_as):
    save_as(tmp_path)
    path = min(tmp_path.iterdir())
    sound = path.read_bytes()
    end = sound.index(b"\xe0\x7f\x10\x00")  # where the voxels begin
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(40):
        content = bytearray(sound)
        for where in rng.integers(132, end + 8, 6):
            content[where] = rng.integers(256)
        path.write_bytes(bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                volume = read_volume(tmp_path)
            except MedverseError:
                refused += 1
            else:
                assert np.isfinite(affine_of(volume)).all()
    assert refused > 0


# Through the command line.


def test_the_command_line_takes_a_series(cli, cohort, tmp_path, tiny_weights):
    folder = save_series(tmp_path / "in")
    outcome = cli(
        "predict", folder, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights, "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    written = read_volume(cohort.out / "in.nii.gz")
    assert np.allclose(affine_of(written), affine_of(read_volume(folder)), atol=1e-4)
    told = cli("info", folder, "--json")
    assert json.loads(told.out)["shape"] == list(SHAPE)


def test_a_folder_without_scans_is_still_refused(cli, cohort, tmp_path, tiny_weights):
    (tmp_path / "nothing").mkdir()
    outcome = cli(
        "predict", tmp_path / "nothing", "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights,
    )  # fmt: skip
    assert outcome.code == 2
    assert "no NIfTI file" in outcome.err
