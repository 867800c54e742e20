"""DICOM segmentations out, on series that are made here."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    CORONAL,
    FRAME_OF_REFERENCE,
    OBLIQUES,
    SAGITTAL,
    SERIES,
    SHAPE,
    SLICES,
    STUDY,
    save_enhanced,
    save_series,
    slice_position,
)

from medverse_nb.classes import ClassSpec
from medverse_nb.dicom import read_dicom
from medverse_nb.dicom_seg import write_dicom_seg
from medverse_nb.errors import InputError, OutputError
from medverse_nb.io import read_volume
from medverse_nb.session import ICLSession
from medverse_nb.volume import affine_of, make_volume

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

CLASSES = (ClassSpec(1, "one", (1,), (230, 159, 0)), ClassSpec(2, "two", (2,), (86, 180, 233)))


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

    def strip(header, number):
        for element in list(header):
            if element.keyword not in kept:
                delattr(header, element.keyword)

    folder = save_series(tmp_path / "in", cosines=OBLIQUES[3], change=strip)
    mask = make_mask(read_dicom(folder))
    path = write_dicom_seg(mask, CLASSES, folder, tmp_path / "mask.dcm")
    assert segment_volume(path, 1)[0].sum() == (mask.values == 1).sum()


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_source_that_cannot_be_referred_to_is_our_error(tmp_path, keyword):
    folder = save_series(tmp_path / "in", change=lambda header, _: delattr(header, keyword))
    mask = make_mask(read_dicom(folder))
    with pytest.raises(InputError, match=keyword):
        write_dicom_seg(mask, CLASSES, folder, tmp_path / "mask.dcm")
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


# Through the session.


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
