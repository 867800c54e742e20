"""DICOM: a folder with one image series in, a DICOM Segmentation out (extra `dicom`).

pydicom reads and decodes files; highdicom knows which slices make a volume, where they lie
and how a segmentation is laid out. Both are imported where they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import InputError, MedverseError, first_line
from .files import check_writable, write_atomically
from .geometry import Affine, Array, Reorientation, Shape, spacing_of
from .volume import affine_of, make_volume, values_of

Header = Any  # a pydicom Dataset without voxels
SLICE_TOLERANCE = 0.1  # of a voxel: positions are decimal text, and often rounded
ROUNDING = 1e-4  # of direction cosines and pixel spacings, between slices
SAME_PLACE_MM = 0.01
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
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


@dataclass(frozen=True)
class Slice:
    """One plane of a series: a file, or one frame of a multi-frame file.

    `position` (3,) in LPS mm is the centre of the first voxel, `cosines` (6,) are those of
    the row and the column direction, `spacing` (2,) is between rows, then between columns.
    """

    header: Header
    path: Path
    frame: int
    position: NDArray[np.float64]
    cosines: NDArray[np.float64]
    spacing: NDArray[np.float64]
    slope: float
    intercept: float

    @property
    def label(self) -> str:
        """The file's name, with the frame's number in a multi-frame file."""
        framed = "PerFrameFunctionalGroupsSequence" in self.header
        return f"{self.path.name} frame {self.frame + 1}" if framed else self.path.name


@dataclass(frozen=True)
class Series:
    """The slices of a volume, in order, and the affine from (column, row, slice) to RAS."""

    slices: tuple[Slice, ...]
    affine: Affine

    @property
    def shape(self) -> Shape:
        """Columns, rows, slices."""
        header = self.slices[0].header
        return int(header.Columns), int(header.Rows), len(self.slices)


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies in a folder or below it; needs no library."""
    return any(os.access(path, os.R_OK) and _is_dicom(path) for path in _visible_files(folder))


def read_dicom(folder: Path, name: str | None = None) -> xr.DataArray:
    """Read the one image series that lies in a folder and its sub-folders.

    Files of any name are recognised by content; those without an image (notes, DICOMDIR,
    reports) and segmentations are passed over. Slices are sorted along their normal;
    enhanced multi-frame files with functional groups are read frame by frame.

    Returns
    -------
    DataArray (x, y, z) = (column, row, slice), slices ascending along row x column
        direction. RescaleSlope and RescaleIntercept (or the modality LUT) are applied;
        integers stay integers where the slope is 1 and the intercept whole. Values are as
        measured: MONOCHROME1, which only asks for a display with low as white, is not
        inverted, and real world value maps are not applied. `attrs["dicom_folder"]` is the
        folder's full path.

    Raises
    ------
    InputError : no series or several, a single slice, slices that are missing, unevenly
        spaced or unlike each other, colour, a compression that cannot be decoded here, a
        damaged file, or pydicom and highdicom not installed.

    Source: DICOM PS3.3 C.7.6.2.1.1, through highdicom.
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    series = read_series(folder, name)
    stored = _stored_values(series, name)
    slopes = np.array([one.slope for one in series.slices])
    intercepts = np.array([one.intercept for one in series.slices])
    attrs = {"changes": [], "dicom_folder": str(folder.resolve())}
    return make_volume(_rescaled(stored, slopes, intercepts), series.affine, name=name, attrs=attrs)


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
    with _told_as_ours(f"{path.name}: no segmentation can refer to the series in {source}"):
        segmentation = _make_segmentation(numbers, segments, series)
        return write_atomically(path, segmentation.save_as)


def read_series(folder: Path, name: str) -> Series:
    """Find the slices of the one series in a folder and how they lie; reads no voxel.

    Raises
    ------
    InputError : as `read_dicom`.
    """
    _check_installed()
    with _told_as_ours(f"{name}: damaged or cut short"):
        files = _one_series(_read_headers(folder, name), folder, name)
        slices = [one for path, header in files for one in _slices_of(path, header, name)]
        _check_alike(slices, name)
        return _stacked(slices, name)


def _check_installed() -> None:
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f'DICOM needs {error.name}: pip install "medverse_nb[dicom]"') from error


@contextmanager
def _told_as_ours(what: str) -> Iterator[None]:
    """Turn the libraries' errors into an `InputError` that begins with `what`.

    pydicom's remarks on values that bend the standard and do no harm are kept quiet.
    """
    from pydicom.config import disable_value_validation

    try:
        with disable_value_validation():
            yield
    except MedverseError:
        raise
    except Exception as error:  # pydicom's own have no other base in common
        raise InputError(f"{what} ({first_line(error)})") from error


# Finding the series.


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_headers(folder: Path, name: str) -> dict[str, list[tuple[Path, Header]]]:
    """Return files and headers of all images by series; segmentations are no images."""
    import pydicom

    series: dict[str, list[tuple[Path, Header]]] = {}
    others = set()
    for path in _visible_files(folder):
        with _told_as_ours(f"{name}: {path.name}: damaged or cut short"):
            if not _is_dicom(path):
                if path.suffix.lower() == ".dcm":
                    raise InputError(
                        f"{name}: {path.name}: damaged or not a DICOM file (no DICM at byte 128)"
                    )
                continue
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if _is_image(header):
                series.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
            else:
                others.add(str(header.get("Modality", "DICOMDIR")))
    if not series:
        passed = f", only {', '.join(sorted(others))}" if others else ""
        raise InputError(
            f"{name}: no DICOM image in {folder}{passed}; give the folder of one CT, MR or PET series"
        )
    return series


def _is_image(header: Header) -> bool:
    if "DirectoryRecordSequence" in header:
        return False
    kind = header.SOPClassUID
    if "Rows" not in header and "Image Storage" in kind.name:
        raise ValueError(f"an image of kind {kind.name} without Rows")
    return "Rows" in header and kind not in SEGMENTATIONS


def _one_series(
    series: dict[str, list[tuple[Path, Header]]], folder: Path, name: str
) -> list[tuple[Path, Header]]:
    if len(series) > 1:
        listed = [
            f"{uid} ({header.get('SeriesDescription') or 'no description'}, "
            f"{header.get('Modality')}, {len(series[uid])} {'file' if len(series[uid]) == 1 else 'files'})"
            for uid, ((_, header), *_) in series.items()
        ]
        raise InputError(
            f"{name}: {len(series)} series in {folder}: {'; '.join(listed)}; "
            "put the files of one into a folder of its own"
        )
    return next(iter(series.values()))


# One slice.


def _slices_of(path: Path, header: Header, name: str) -> list[Slice]:
    name = f"{name}: {path.name}"
    with _told_as_ours(f"{name}: damaged or cut short"):
        _check_readable(header, name)
        frames = header.get("PerFrameFunctionalGroupsSequence")
        count = len(frames) if frames else 1
        return [_slice_of(path, header, frame, name) for frame in range(count)]


def _check_readable(header: Header, name: str) -> None:
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{name}: a colour image; one value a voxel is needed")
    framed = "PerFrameFunctionalGroupsSequence" in header
    if not framed and int(header.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{name}: a multi-frame {header.SOPClassUID.name} that does not say where its "
            "frames lie; convert it to NIfTI with the vendor's or another tool"
        )
    _check_decodable(header, name)


def _check_decodable(header: Header, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    told = f"{name}: cannot decode the transfer syntax {syntax.name} ({syntax}) here"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(f"{told}; convert the series to an uncompressed one") from error
    if not decoder.is_available:
        raise InputError(
            f'{told}; pip install "pylibjpeg[all]" (or python-gdcm), or convert the series to an '
            "uncompressed one"
        )


def _slice_of(path: Path, header: Header, frame: int, name: str) -> Slice:
    def numbers(group: str, keyword: str, count: int, missing: Any = None) -> NDArray[np.float64]:
        found = _attribute(header, frame, group, keyword)
        if found is None or found == "":
            found = missing
        if found is None:
            raise InputError(f"{name}: has no {keyword}, so its voxels have no place")
        values = np.atleast_1d(np.asarray(found, np.float64))
        if values.shape != (count,) or not np.isfinite(values).all():
            raise InputError(f"{name}: {keyword} must be {count} numbers, is {found}")
        return values

    slope = numbers("PixelValueTransformationSequence", "RescaleSlope", 1, 1.0)[0]
    intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept", 1, 0.0)[0]
    if slope == 0:
        raise InputError(f"{name}: RescaleSlope is 0, which leaves no image")
    return Slice(
        header,
        path,
        frame,
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        cosines=numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=numbers("PixelMeasuresSequence", "PixelSpacing", 2),
        slope=float(slope),
        intercept=float(intercept),
    )


def _attribute(header: Header, frame: int, group: str, keyword: str) -> Any:
    """Return an attribute of an image, or of the frame's own or the shared functional group."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        return header.get(keyword)
    for groups in (frames[frame], *header.get("SharedFunctionalGroupsSequence", ())):
        if group in groups:
            return groups[group].value[0].get(keyword)
    return None


# From slices to a volume.


def _check_alike(slices: list[Slice], name: str) -> None:
    first = slices[0]

    def shape(one: Slice) -> tuple[int, int]:
        return int(one.header.Columns), int(one.header.Rows)

    def place(one: Slice) -> str:
        return str(one.header.get("FrameOfReferenceUID"))

    for one in slices[1:]:
        for what, ours, theirs, same in (
            ("shape", shape(first), shape(one), shape(first) == shape(one)),
            ("pixel spacing", *_compared(first.spacing, one.spacing)),
            ("orientation", *_compared(first.cosines, one.cosines)),
            ("frame of reference", place(first), place(one), place(first) == place(one)),
        ):
            if not same:
                raise InputError(
                    f"{name}: slices of different {what}, {ours} in {first.label} and {theirs} in "
                    f"{one.label}; put the slices of one stack into a folder of its own"
                )


def _compared(a: Array, b: Array) -> tuple[list[float], list[float], bool]:
    """Return two arrays as lists, and whether they agree up to rounding."""
    return a.tolist(), b.tolist(), bool(np.allclose(a, b, rtol=ROUNDING, atol=ROUNDING))


def _orthonormal(cosines: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Take the rounding out of two directions that must be orthogonal unit vectors."""
    row, column = cosines[:3], cosines[3:]
    row_length, column_length = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if not np.allclose([row_length, column_length, 1 + float(row @ column)], 1, atol=0.01):
        raise InputError(
            f"{name}: ImageOrientationPatient must be two orthogonal unit vectors, is "
            f"{cosines.round(4).tolist()}"
        )
    row = row / row_length
    column = column - (column @ row) * row
    return np.concatenate([row, column / np.linalg.norm(column)])


def _stacked(slices: list[Slice], name: str) -> Series:
    """Sort slices along their normal and work out the affine."""
    from highdicom import spatial

    if len(slices) == 1:
        raise InputError(
            f"{name}: a single slice ({slices[0].label}); a volume is needed: give the folder with "
            "the whole series"
        )
    cosines = _orthonormal(slices[0].cosines, name)
    positions = np.array([one.position for one in slices])
    _, places = spatial.get_volume_positions(
        positions.tolist(), cosines.tolist(), rtol=SLICE_TOLERANCE, index_convention="RD"
    )
    if places is None:
        raise InputError(f"{name}: {_why_no_volume(slices, cosines)}")
    ordered = [slices[index] for index in np.argsort(places)]
    first, last = ordered[0].position, ordered[-1].position
    step = (last - first) / (len(ordered) - 1)
    affine = spatial.create_affine_matrix_from_attributes(
        image_position=first.tolist(),
        image_orientation=cosines.tolist(),
        pixel_spacing=slices[0].spacing.tolist(),
        spacing_between_slices=float(np.linalg.norm(step)),
        index_convention="RD",
    )
    affine[:3, 2] = step  # true to the positions even where the cosines were rounded
    for number, one in enumerate(ordered):
        away = float(np.linalg.norm(one.position - first - number * step))
        if away > SLICE_TOLERANCE * min(spacing_of(affine)):
            raise InputError(
                f"{name}: {one.label} lies {away:.2g} mm from its place in an even stack; "
                "resample the series to even spacing first"
            )
    ras = spatial.convert_affine_to_convention(
        affine, from_reference_convention="LPS", to_reference_convention="RAS"
    )
    return Series(tuple(ordered), ras)


def _why_no_volume(slices: list[Slice], cosines: NDArray[np.float64]) -> str:
    heights = np.array([one.position for one in slices]) @ np.cross(cosines[:3], cosines[3:])
    order = np.argsort(heights)
    steps = np.diff(heights[order])

    def pair(index: int) -> str:
        return f"{slices[order[index]].label} and {slices[order[index + 1]].label}"

    if steps.min() < SAME_PLACE_MM:
        same = steps < SAME_PLACE_MM
        sharing = np.count_nonzero(np.append(same, False) | np.insert(same, 0, False))
        return (
            f"{sharing} of {len(slices)} slices share their place with another, such as "
            f"{pair(int(steps.argmin()))}: copies, or several times or echoes; put the slices of "
            "one volume into a folder of its own"
        )
    usual = float(np.median(steps))
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > SLICE_TOLERANCE * usual:
        return (
            f"slices are missing or unevenly spaced: {usual:.4g} mm apart for the most part, but "
            f"{steps[worst]:.4g} mm between {pair(worst)}; export the whole series again, or "
            "resample it to even spacing"
        )
    return (
        "the slices are shifted sideways against each other, as with a tilted gantry; straighten "
        "the series first, for example on its conversion to NIfTI"
    )


def _stored_values(series: Series, name: str) -> NDArray[Any]:
    """Decode all slices: (x, y, z), as stored."""
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import iter_pixels

    planes: list[NDArray[Any]] = []
    for path, group in groupby(series.slices, key=lambda one: one.path):
        with _told_as_ours(f"{name}: {path.name}: damaged or cut short"):
            slices = list(group)
            stored = iter_pixels(path, indices=[one.frame for one in slices])
            header = slices[0].header
            table = "ModalityLUTSequence" in header
            planes += (apply_modality_lut(plane, header) if table else plane for plane in stored)
    with _told_as_ours(f"{name}: damaged or cut short"):
        return np.stack(planes).T


def _rescaled(
    stored: NDArray[Any], slopes: NDArray[np.float64], intercepts: NDArray[np.float64]
) -> NDArray[Any]:
    """Apply each slice's slope and intercept, in integers where nothing is lost."""
    whole = stored.dtype.kind in "iu" and (slopes == 1).all() and (intercepts % 1 == 0).all()
    if whole and not intercepts.any():
        return stored
    if whole:
        lowest, highest = stored.min() + intercepts.min(), stored.max() + intercepts.max()
        for integer in (np.int16, np.int32, np.int64):
            if np.iinfo(integer).min <= lowest and highest <= np.iinfo(integer).max:
                return stored.astype(integer) + intercepts.astype(integer)
    real = np.result_type(stored.dtype, np.float32)
    return stored * slopes.astype(real) + intercepts.astype(real)


# From a mask to a segmentation.


def _on_grid(mask: xr.DataArray, series: Series, path: Path, source: Path) -> NDArray[Any]:
    """Return the mask's voxels in the series' axis order, if it lies on the series' grid."""
    values, affine = values_of(mask), affine_of(mask)
    if values.ndim == 3 and values.dtype.kind in "biu":
        x, y, z = values.shape
        ours = Reorientation.to_canonical(series.affine, series.shape)
        theirs = Reorientation.to_canonical(affine, (x, y, z))
        turned = theirs.apply(values)
        if turned.shape == tuple(series.shape[axis] for axis in ours.source_axes):
            corners = np.array(np.meshgrid(*([0, n] for n in turned.shape))).reshape(3, -1)
            off = (ours.affine(series.affine) - theirs.affine(affine))[:3]
            away = np.linalg.norm(off[:, :3] @ corners + off[:, 3:], axis=0).max()
            if away < SLICE_TOLERANCE * min(spacing_of(series.affine)):
                return ours.undo(turned)
    raise InputError(
        f"{path.name}: a DICOM segmentation needs an integer mask on its source's grid; this one is "
        f"{values.shape} of {values.dtype}, the series in {source} {series.shape}, or lies "
        "elsewhere: give the mask as it was predicted on that series"
    )


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
    framed = any("PerFrameFunctionalGroupsSequence" in header for header in headers)
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
