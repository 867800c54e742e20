"""DICOM folders in, DICOM segmentations out; every series is made here."""

import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from medverse_nb.classes import ClassSpec
from medverse_nb.dicom import holds_dicom, read_dicom, write_dicom_seg
from medverse_nb.errors import InputError, MedverseError, OutputError
from medverse_nb.geometry import orientation_of
from medverse_nb.io import name_of, read_volume, write_volume
from medverse_nb.session import ICLSession
from medverse_nb.volume import affine_of, make_volume

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

COLUMNS, ROWS, SLICES = 12, 16, 9
SHAPE = (COLUMNS, ROWS, SLICES)
BETWEEN_ROWS, BETWEEN_COLUMNS, BETWEEN_SLICES = 0.9, 0.7, 3.0
ORIGIN = np.array([-100.0, -80.0, 10.0])  # LPS mm
AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
MR, CT, ENHANCED_MR = (
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4.1",
)
STUDY, SERIES, FRAME_OF_REFERENCE = "1.2.3.1", "1.2.3.2", "1.2.3.3"
OTHER = ClassSpec(1, "one", (1,), (230, 159, 0))
CLASSES = (OTHER, ClassSpec(2, "two", (2,), (86, 180, 233)))


def turned(*degrees) -> tuple[float, ...]:
    """Return oblique direction cosines: the axial ones turned about x, then y, then z."""
    x, y, z = np.radians(degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    rotation = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
    return tuple(rotation[:, :2].T.ravel().round(9).tolist())


def straight() -> list[tuple[int, ...]]:
    """Return the 24 ways in which rows and columns can run along the patient's axes."""
    axes = [sign * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (1, -1)]
    pairs = itertools.product(axes, axes)
    return [tuple(np.concatenate([a, b]).tolist()) for a, b in pairs if not a @ b]


OBLIQUES = [turned(20, 0, 0), turned(0, -35, 0), turned(10, 25, -40), turned(100, 5, 170)]
ORIENTATIONS = [*straight(), *OBLIQUES]


def stored_values(dtype=np.int16) -> np.ndarray:
    """Voxels (column, row, slice), each slice and corner different."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 1000, SHAPE).astype(dtype)


def slice_position(cosines, number, spacing=BETWEEN_SLICES) -> np.ndarray:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    return ORIGIN + number * spacing * np.cross(row, column)


def blank(sop_class: str, series=SERIES, number=1):
    """Return an image without voxels and without a place."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = sop_class
    uid = f"{series}.{number}"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
    header.StudyInstanceUID, header.SeriesInstanceUID = STUDY, series
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE
    header.Modality = "CT" if sop_class == CT else "MR"
    header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = "T1w", 3, number
    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName, header.PatientID = "Müller^Jörg", "42"
    header.PatientBirthDate, header.PatientSex = "19700101", "O"
    header.StudyDate, header.StudyTime = "20240229", "120000"
    header.StudyID, header.AccessionNumber = "7", ""
    header.Rows, header.Columns = ROWS, COLUMNS
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    return header


def set_pixels(header, array) -> None:
    header.BitsAllocated = header.BitsStored = 8 * array.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(array.dtype.kind == "i")
    header.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()


def make_slice(data, number, cosines=AXIAL, sop_class=MR, series=SERIES, **fields):
    header = blank(sop_class, series, number + 1)
    header.ImageOrientationPatient = list(cosines)
    header.ImagePositionPatient = slice_position(cosines, number).round(6).tolist()
    header.PixelSpacing = [BETWEEN_ROWS, BETWEEN_COLUMNS]
    header.SliceThickness = BETWEEN_SLICES
    set_pixels(header, np.ascontiguousarray(data[..., number].T))
    for keyword, value in fields.items():
        setattr(header, keyword, value)
    return header


def save(header, path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def save_series(folder, data=None, cosines=AXIAL, suffix=".dcm", **fields) -> Path:
    """Write one file a slice, named so that the names' order is not the slices'."""
    data = stored_values() if data is None else data
    for number in range(data.shape[2]):
        name = f"IM{(number * 5) % 11:02d}{suffix}"
        save(make_slice(data, number, cosines, **fields), folder / name)
    return folder


def save_enhanced(folder, data=None, cosines=AXIAL, order=None, per_frame=False, **rescale) -> Path:
    """Write one multi-frame file, its frames in `order`."""
    data = stored_values() if data is None else data
    order = range(SLICES) if order is None else order
    header = blank(ENHANCED_MR)
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [BETWEEN_ROWS, BETWEEN_COLUMNS], 3
    orientation.ImageOrientationPatient = list(cosines)
    shared = pydicom.Dataset()
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for number in order:
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = slice_position(cosines, number).round(6).tolist()
        frame.PlanePositionSequence = [place]
        header.PerFrameFunctionalGroupsSequence.append(frame)
    for groups in header.PerFrameFunctionalGroupsSequence if per_frame else [shared]:
        groups.PixelMeasuresSequence, groups.PlaneOrientationSequence = [measures], [orientation]
        if rescale:
            groups.PixelValueTransformationSequence = [pydicom.Dataset()]
            for keyword, value in rescale.items():
                setattr(groups.PixelValueTransformationSequence[0], keyword, value)
    header.NumberOfFrames = len(order)
    set_pixels(header, np.ascontiguousarray(data[..., list(order)].T))
    save(header, folder / "enhanced")
    return folder


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
    for number in range(SLICES):
        header = make_slice(stored_values(), number, np.round(cosines, 3).tolist())
        header.ImagePositionPatient = slice_position(cosines, number).round(2).tolist()
        save(header, tmp_path / str(number))
    affine = affine_of(read_dicom(tmp_path))
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
    for number in range(SLICES):
        header = make_slice(stored_values(), number, RescaleSlope=number + 0.5, RescaleIntercept=0)
        save(header, tmp_path / str(number))
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
    write_dicom_seg(mask, [OTHER], folder, folder / "mask.dcm")
    assert np.array_equal(read_dicom(folder).values, volume.values)


def test_the_files_are_found_without_the_library(tmp_path):
    assert not holds_dicom(tmp_path)
    (tmp_path / "a.txt").write_text("no")
    assert not holds_dicom(tmp_path)
    save_series(tmp_path / "deep" / "er")
    assert holds_dicom(tmp_path)


def test_a_compressed_series_reads_like_the_plain_one(tmp_path):
    for number in range(SLICES):
        header = make_slice(stored_values(), number)
        header.compress(pydicom.uid.RLELossless)
        save(header, tmp_path / str(number))
    assert np.array_equal(read_dicom(tmp_path).values, stored_values())


def claim_syntax(folder, uid) -> None:
    for number in range(SLICES):
        header = make_slice(stored_values(), number)
        header.file_meta.TransferSyntaxUID = uid
        header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no image"])
        save(header, folder / str(number))


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
    for number in range(SLICES):
        header = make_slice(stored_values(), number)
        header.ImagePositionPatient = (ORIGIN + shift(number)).tolist()
        save(header, folder / f"IM{number}")


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
    with pytest.raises(InputError, match=rf'{package}: pip install "medverse_nb\[dicom\]"'):
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


# Segmentations.


class Source(NamedTuple):
    folder: Path
    volume: object


def make_mask(volume, dtype=np.uint8):
    """Return two blocks that touch neither each other nor the first and last slice."""
    values = np.zeros(SHAPE, dtype)
    values[1:5, 2:9, 2:6] = 1
    values[6:10, 3:14, 4:8] = 2
    return make_volume(values, affine_of(volume))


def segment_volume(path, number) -> tuple[np.ndarray, np.ndarray]:
    """Read a segment back on the axes of the file: (column, row, slice) and its RAS affine."""
    seg = hd.seg.segread(path)
    stack = seg.get_volume(segment_numbers=[number], combine_segments=False)
    stack = stack.permute_spatial_axes((2, 1, 0))
    return stack.array[..., 0], stack.get_affine("RAS")


@pytest.mark.parametrize("save_as", [save_series, save_enhanced])
@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, SAGITTAL, *OBLIQUES], ids=str)
def test_a_segmentation_lies_on_its_mask(tmp_path, cosines, save_as):
    folder = save_as(tmp_path / "in", cosines=cosines)
    volume = read_dicom(folder)
    mask = make_mask(volume)
    path = write_dicom_seg(mask, CLASSES, folder, tmp_path / "out" / "mask.dcm")
    for number in (1, 2):
        found, affine = segment_volume(path, number)
        places = (affine @ [*np.argwhere(found).T, np.ones(found.sum())])[:3]
        wanted = np.argwhere(mask.values == number)
        expected = (affine_of(mask) @ [*wanted.T, np.ones(len(wanted))])[:3]
        assert len(wanted) == found.sum()
        assert np.allclose(
            sorted(places.T.round(2).tolist()), sorted(expected.T.round(2).tolist()), atol=0.011
        )


def frames_of(path) -> list[tuple[int, str, int | None, list[float]]]:
    """Return segment, source file, source frame and position of every frame."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    found = []
    for frame in seg.PerFrameFunctionalGroupsSequence:
        segment = frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        found.append(
            (
                segment[0].ReferencedSegmentNumber,
                image.ReferencedSOPInstanceUID,
                image.get("ReferencedFrameNumber"),
                [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient],
            )
        )
    return found


def test_every_frame_refers_to_the_slice_it_was_made_on(tmp_path):
    folder = save_series(tmp_path / "in", cosines=OBLIQUES[2])
    path = write_dicom_seg(make_mask(read_dicom(folder)), CLASSES, folder, tmp_path / "mask.dcm")
    positions = {}
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        positions[header.SOPInstanceUID] = header.ImagePositionPatient
    frames = frames_of(path)
    assert sorted({uid for number, uid, *_ in frames if number == 1}) == [
        f"{SERIES}.{slice_ + 1}" for slice_ in range(2, 6)
    ]
    for _, uid, frame, position in frames:
        assert frame is None
        assert position == positions[uid]
    seg = pydicom.dcmread(path)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SLICES


@pytest.mark.parametrize("per_frame", [False, True])
def test_every_frame_refers_to_its_frame(tmp_path, per_frame):
    order = np.random.default_rng(3).permutation(SLICES).tolist()
    folder = save_enhanced(tmp_path / "in", order=order, per_frame=per_frame)
    path = write_dicom_seg(make_mask(read_dicom(folder)), CLASSES, folder, tmp_path / "mask.dcm")
    for number, slices in ((1, range(2, 6)), (2, range(4, 8))):
        frames = [frame for segment, _, frame, _ in frames_of(path) if segment == number]
        assert sorted(frames) == sorted(order.index(slice_) + 1 for slice_ in slices)
    for _, _, frame, position in frames_of(path):
        assert position == slice_position(AXIAL, order[frame - 1]).tolist()


@pytest.fixture
def source(tmp_path) -> Source:
    folder = save_series(tmp_path / "in")
    return Source(folder, read_volume(folder))


def test_what_a_segmentation_says(tmp_path, source):
    classes = [
        ClassSpec(53, "Größe\\海馬 " + "x" * 80, (53,), (1, 2, 3)),
        ClassSpec(17, "hippocampus", (17,), (230, 159, 0)),
    ]
    mask = make_mask(source.volume)
    mask = mask.copy(data=np.select([mask == 1, mask == 2], [17, 53]))
    path = write_dicom_seg(mask, classes, source.folder, tmp_path / "mask.dcm")
    seg = hd.seg.segread(path)
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert (seg.SegmentationType, seg.Modality) == ("BINARY", "SEG")
    assert seg.StudyInstanceUID == STUDY
    assert seg.FrameOfReferenceUID == FRAME_OF_REFERENCE
    assert str(seg.PatientName) == "Müller^Jörg"
    assert (seg.PatientID, seg.StudyDate) == ("42", "20240229")
    one, two = seg.SegmentSequence
    assert (one.SegmentNumber, one.SegmentLabel) == (1, "hippocampus")
    assert one.SegmentDescription == "class number 17"
    assert (two.SegmentNumber, two.SegmentDescription) == (2, "class number 53")
    assert two.SegmentLabel.startswith("Größe/海馬 xxx")
    assert len(two.SegmentLabel) == 64
    assert one.SegmentAlgorithmType == "AUTOMATIC"
    assert one.SegmentAlgorithmName == "medverse_nb"
    assert one.segmented_property_category.meaning == "Anatomical Structure"
    shown = hd.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue).to_rgb()
    assert np.allclose(shown, (230, 159, 0), atol=2)
    for number, value in ((1, 17), (2, 53)):
        assert segment_volume(path, number)[0].sum() == (mask.values == value).sum()
    again = write_dicom_seg(mask, classes, source.folder, tmp_path / "again.dcm")
    assert pydicom.dcmread(again).SOPInstanceUID != seg.SOPInstanceUID


def test_an_empty_mask_is_a_segmentation_of_empty_frames(tmp_path, source, caplog):
    mask = make_volume(np.zeros(SHAPE, np.uint8), affine_of(source.volume))
    path = write_dicom_seg(mask, CLASSES, source.folder, tmp_path / "mask.dcm")
    seg = hd.seg.segread(path)
    assert not caplog.records  # asked for, not fallen back on
    assert seg.NumberOfFrames == len(CLASSES) * SLICES
    assert not seg.pixel_array.any()
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["one", "two"]


def test_a_class_that_was_not_found_is_described_all_the_same(tmp_path, source):
    mask = make_mask(source.volume)
    mask = mask.where(mask == 1, 0).astype(np.uint8)
    path = write_dicom_seg(mask, CLASSES, source.folder, tmp_path / "mask.dcm")
    assert len(pydicom.dcmread(path).SegmentSequence) == 2
    assert segment_volume(path, 1)[0].sum() == (mask.values == 1).sum()
    assert {segment for segment, *_ in frames_of(path)} == {1}


def test_a_turned_mask_is_turned_back(tmp_path, source):
    mask = make_mask(source.volume)
    plain = write_dicom_seg(mask, CLASSES, source.folder, tmp_path / "a.dcm")
    turned_mask = mask.transpose("z", "x", "y")[::-1, :, ::-1]
    other = write_dicom_seg(turned_mask, CLASSES, source.folder, tmp_path / "b.dcm")
    assert pydicom.dcmread(plain).PixelData == pydicom.dcmread(other).PixelData


def moved(volume):
    affine = affine_of(volume)
    affine[:3, 3] += 1
    return make_volume(np.ones(SHAPE, np.uint8), affine)


@pytest.mark.parametrize(
    ("make", "classes", "message"),
    [
        (moved, CLASSES, "on its source's grid"),
        (lambda v: make_mask(v)[1:], CLASSES, r"\(11, 16, 9\) of uint8.*\(12, 16, 9\)"),
        (lambda v: make_mask(v, np.float32), CLASSES, "integer mask"),
        (make_mask, CLASSES[:1], r"the mask has \[2\], which are none of the classes \[1\]"),
        (make_mask, (), "needs a class"),
    ],
)
def test_a_mask_that_does_not_fit_is_our_error(tmp_path, source, make, classes, message):
    with pytest.raises(InputError, match=message):
        write_dicom_seg(make(source.volume), classes, source.folder, tmp_path / "out" / "mask.dcm")
    assert not (tmp_path / "out").exists()


def test_a_source_stripped_of_what_may_be_empty_still_serves(tmp_path):
    kept = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
            "FrameOfReferenceUID", "Modality", "Rows", "Columns", "SamplesPerPixel",
            "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
            "PixelRepresentation", "PixelData", "ImagePositionPatient",
            "ImageOrientationPatient", "PixelSpacing"}  # fmt: skip
    for number in range(SLICES):
        header = make_slice(stored_values(), number, OBLIQUES[3])
        for element in list(header):
            if element.keyword not in kept:
                delattr(header, element.keyword)
        save(header, tmp_path / "in" / str(number))
    mask = make_mask(read_dicom(tmp_path / "in"))
    path = write_dicom_seg(mask, CLASSES, tmp_path / "in", tmp_path / "mask.dcm")
    assert segment_volume(path, 1)[0].sum() == (mask.values == 1).sum()


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_source_that_cannot_be_referred_to_is_our_error(tmp_path, keyword):
    for number in range(SLICES):
        header = make_slice(stored_values(), number)
        delattr(header, keyword)
        save(header, tmp_path / "in" / str(number))
    mask = make_mask(read_dicom(tmp_path / "in"))
    with pytest.raises(InputError, match=keyword):
        write_dicom_seg(mask, CLASSES, tmp_path / "in", tmp_path / "mask.dcm")
    assert not (tmp_path / "mask.dcm").exists()


def test_a_source_that_has_gone_is_our_error(tmp_path, source):
    mask = make_mask(source.volume)
    for path in source.folder.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no DICOM image"):
        write_dicom_seg(mask, CLASSES, source.folder, tmp_path / "mask.dcm")


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
def test_a_segmentation_half_written_is_never_left(tmp_path, source, monkeypatch, stop):
    path = tmp_path / "mask.dcm"
    path.write_bytes(b"old")

    def half(self, partial, **_):
        Path(partial).write_bytes(b"half")
        raise stop

    monkeypatch.setattr(hd.seg.Segmentation, "save_as", half)
    with pytest.raises(OutputError if isinstance(stop, OSError) else KeyboardInterrupt):
        write_dicom_seg(make_mask(source.volume), CLASSES, source.folder, path)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "mask.dcm"]


# Through the session and the command line.


@pytest.fixture
def session(cohort, tiny_weights) -> ICLSession:
    session = ICLSession(tiny_weights, device="cpu")
    session.add_context_folder(cohort.images, cohort.labels)
    return session


def test_a_prediction_of_a_series_is_written_as_a_segmentation(tmp_path, source, session):
    prediction = session.predict(source.folder)
    assert prediction.target.name == "in"
    path = prediction.write(tmp_path / "out" / "scan_seg.DCM")
    sidecar = json.loads((tmp_path / "out" / "scan_seg.json").read_text(encoding="utf-8"))
    for spec in sidecar["classes"]:
        found, _ = segment_volume(path, spec["number"])
        assert found.sum() == (prediction.mask.values == spec["number"]).sum()
    nifti = read_volume(prediction.write(tmp_path / "out" / "scan_seg.nii.gz"))
    assert np.allclose(affine_of(nifti), affine_of(source.volume), atol=1e-4)


def test_a_prediction_of_another_file_is_not(tmp_path, cohort, session):
    prediction = session.predict(cohort.scan)
    with pytest.raises(InputError, match=r"scan\.nii\.gz was not read from a DICOM folder"):
        prediction.write(tmp_path / "out" / "mask.dcm")
    assert not (tmp_path / "out").exists()


def test_an_image_is_not_written_as_a_segmentation(tmp_path, cohort, source, tiny_weights):
    session = ICLSession(tiny_weights, task="image", device="cpu")
    session.add_context_folder(cohort.images, cohort.labels)
    prediction = session.predict(source.folder)
    with pytest.raises(InputError, match="image task has no mask"):
        prediction.write(tmp_path / "out" / "mask.dcm")
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_series(cli, cohort, source, tiny_weights):
    outcome = cli(
        "predict", source.folder, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights, "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    written = read_volume(cohort.out / "in.nii.gz")
    assert np.allclose(affine_of(written), affine_of(source.volume), atol=1e-4)
    told = cli("info", source.folder, "--json")
    assert json.loads(told.out)["shape"] == list(SHAPE)


def test_a_folder_without_scans_is_still_refused(cli, cohort, tmp_path, tiny_weights):
    (tmp_path / "nothing").mkdir()
    outcome = cli(
        "predict", tmp_path / "nothing", "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights,
    )  # fmt: skip
    assert outcome.code == 2
    assert "no NIfTI file" in outcome.err
