"""DICOM out: a mask as a DICOM Segmentation of the series it was made on (extra `dicom`).

highdicom knows how a segmentation is laid out; it is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .dicom import SLICE_TOLERANCE, Header, Series, is_framed, read_series, told_as_ours
from .errors import InputError
from .files import check_writable, write_atomically
from .geometry import Affine, Reorientation, Shape, spacing_of
from .volume import affine_of, values_of

MAY_BE_EMPTY = (  # in every DICOM file by the standard, in many de-identified ones missing
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
SEGMENTATION_SERIES_NUMBER = 1000


class Segment(Protocol):
    """What a segmentation says of a class: its number in the mask, its name and its colour."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def colour(self) -> tuple[int, int, int]: ...


def write_dicom_seg(
    mask: xr.DataArray, classes: Sequence[Segment], source: Path, path: Path
) -> Path:
    """Write a mask as a DICOM Segmentation that refers to the series it was made on.

    Segments are binary and, as the standard demands, numbered 1..n in the order of the
    classes' numbers; each carries its class's name, colour and, in SegmentDescription, its
    number in the mask. An empty mask gives a segmentation whose every frame is empty. The
    file appears whole or not at all.

    Parameters
    ----------
    mask : (x, y, z) integers, on the source's grid; axes may be permuted or flipped.
    source : the folder that `read_dicom` read.

    Raises
    ------
    InputError : a mask off the source's grid or with numbers of no class, no class, or a
        source that is not as it was or lacks what a segmentation must refer to.
    OutputError : the place cannot be written.
    """
    path, source = check_writable(Path(path)), Path(source)
    segments = sorted(classes, key=lambda segment: segment.number)
    if not segments:
        raise InputError(f"{path.name}: a DICOM segmentation needs a class, none was given")
    series = read_series(source, source.name)
    numbers = _segment_numbers(_on_grid(mask, series, path, source), segments, path)
    with told_as_ours(f"{path.name}: no segmentation can refer to the series in {source}"):
        segmentation = _make_segmentation(numbers, segments, series)
        return write_atomically(path, segmentation.save_as)


def _on_grid(mask: xr.DataArray, series: Series, path: Path, source: Path) -> NDArray[Any]:
    """Return the mask's voxels in the series' axis order, if it lies on the series' grid."""
    values, affine = values_of(mask), affine_of(mask)
    if values.ndim == 3 and values.dtype.kind in "biu":
        x, y, z = values.shape
        turn = Reorientation.onto(affine, (x, y, z), series.affine)
        turned = turn.apply(values)
        away = _farthest_mm(turn.affine(affine), series.affine, series.shape)
        if turned.shape == series.shape and away < SLICE_TOLERANCE * min(spacing_of(series.affine)):
            return turned
    raise InputError(
        f"{path.name}: a DICOM segmentation needs an integer mask on its source's grid; this one is "
        f"{values.shape} of {values.dtype}, the series in {source} {series.shape}, or lies "
        "elsewhere: give the mask as it was predicted on that series"
    )


def _farthest_mm(first: Affine, second: Affine, shape: Shape) -> float:
    """Return how far apart, at most, two affines place a point of the box of this shape."""
    corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in shape))).reshape(3, -1)
    off = first[:3] - second[:3]
    return float(np.linalg.norm(off[:, :3] @ corners + off[:, 3:], axis=0).max())


def _segment_numbers(
    labels: NDArray[Any], segments: Sequence[Segment], path: Path
) -> NDArray[np.uint16]:
    """Turn class numbers into 1..n."""
    known = [segment.number for segment in segments]
    unknown = sorted(set(np.unique(labels).tolist()) - {0, *known})
    if unknown:
        raise InputError(
            f"{path.name}: the mask has {unknown}, which are none of the classes {known}"
        )
    numbers = np.zeros(labels.shape, np.uint16)
    for number, segment in enumerate(segments, 1):
        numbers[labels == segment.number] = number
    return numbers


def _make_segmentation(
    numbers: NDArray[np.uint16], segments: Sequence[Segment], series: Series
) -> Any:
    import highdicom as hd

    sources = _source_images(series)
    planes = numbers.T
    if len(sources) < len(planes):  # one multi-frame file: in the order of its frames
        planes = planes[np.argsort([one.frame for one in series.slices])]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(*entry) for entry in enumerate(segments, 1)],
        series_instance_uid=hd.UID(),
        series_number=SEGMENTATION_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="medverse_nb",
        manufacturer_model_name="medverse_nb",
        software_versions=version("medverse_nb"),
        device_serial_number="none",
        series_description="medverse_nb segmentation",
        omit_empty_frames=bool(numbers.any()),
        specific_character_set="ISO_IR 192",  # class names are Unicode
    )


def _describe(number: int, segment: Segment) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="medverse_nb",
        family=codes.cid7162.ArtificialIntelligence,
        version=version("medverse_nb"),
    )
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name.replace("\\", "/").strip()[:64] or f"class {segment.number}",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
    described.SegmentDescription = f"class number {segment.number}"
    return described


def _source_images(series: Series) -> list[Header]:
    """Return the headers a segmentation refers to, with gaps filled that mean nothing.

    Raises
    ------
    ValueError : no frame of reference, or a multi-frame file and more.
    """
    first = series.slices[0]
    headers = list({id(one.header): one.header for one in series.slices}.values())
    if not first.header.get("FrameOfReferenceUID"):
        raise ValueError("it has no FrameOfReferenceUID")
    framed = any(is_framed(header) for header in headers)
    if framed and len(headers) > 1:
        raise ValueError("it has a multi-frame file and more")
    for header in headers:
        for keyword in MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, None)
        if framed:
            _share_groups(header)
        else:  # alike up to rounding, as checked
            header.ImageOrientationPatient = first.header.ImageOrientationPatient
            header.setdefault("SliceThickness", spacing_of(series.affine)[2])
    return headers


def _share_groups(header: Header) -> None:
    """Make groups that are alike in all frames shared ones, where highdicom looks for them."""
    shared = header.SharedFunctionalGroupsSequence[0]
    for group in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if group not in shared:
            setattr(shared, group, header.PerFrameFunctionalGroupsSequence[0][group].value)
