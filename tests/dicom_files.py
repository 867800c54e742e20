"""DICOM series, made by hand, for the tests of reading and of segmentations."""

import itertools
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

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


def save_series(folder, data=None, cosines=AXIAL, suffix=".dcm", change=None, **fields) -> Path:
    """Write one file a slice, named so that the names' order is not the slices'.

    `change(header, number)` is called on each slice before it is saved.
    """
    data = stored_values() if data is None else data
    for number in range(data.shape[2]):
        header = make_slice(data, number, cosines, **fields)
        if change:
            change(header, number)
        save(header, folder / f"IM{(number * 5) % 11:02d}{suffix}")
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
