"""DICOM in: a folder with one image series, read as a volume (extra `dicom`).

pydicom reads and decodes files; highdicom knows which slices make a volume and where they
lie. Both are imported where they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import InputError, MedverseError, first_line, missing_extra
from .geometry import Affine, Shape, spacing_of
from .volume import make_volume

Header = Any  # a pydicom Dataset without voxels
Files = list[tuple[Path, Header]]  # of one series
SLICE_TOLERANCE = 0.1  # of a voxel: positions are decimal text, and often rounded
ROUNDING = 1e-4  # of direction cosines and pixel spacings, between slices
SAME_PLACE_MM = 0.01
SEGMENTATIONS = (  # SOP classes: of binary or fractional segments, of a label map
    "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7",
)  # fmt: skip


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
        name = self.path.name
        return f"{name} frame {self.frame + 1}" if is_framed(self.header) else name

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, rows."""
        return int(self.header.Columns), int(self.header.Rows)


@dataclass(frozen=True)
class Series:
    """The slices of a volume, in order, and the affine from (column, row, slice) to RAS."""

    slices: tuple[Slice, ...]
    affine: Affine

    @property
    def shape(self) -> Shape:
        """Columns, rows, slices."""
        return (*self.slices[0].shape, len(self.slices))


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


def read_series(folder: Path, name: str) -> Series:
    """Find the slices of the one series in a folder and how they lie; reads no voxel.

    Raises
    ------
    InputError : as `read_dicom`.
    """
    _check_installed()
    with _damage_told(name):
        files = _one_series(_read_headers(folder, name), folder, name)
        slices = [one for path, header in files for one in _slices_of(path, header, name)]
        _check_alike(slices, name)
        return _stacked(slices, name)


def _check_installed() -> None:
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("DICOM", error, "dicom") from error


def is_framed(header: Header) -> bool:
    """Whether a file holds frames that say, each for itself, where they lie."""
    return "PerFrameFunctionalGroupsSequence" in header


@contextmanager
def told_as_ours(what: str) -> Iterator[None]:
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


def _damage_told(name: str) -> AbstractContextManager[None]:
    return told_as_ours(f"{name}: damaged or cut short")


# Finding the series.


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_headers(folder: Path, name: str) -> dict[str, Files]:
    """Return files and headers of all images by series; segmentations are no images."""
    series: dict[str, Files] = {}
    others = set()
    for path in _visible_files(folder):
        with _damage_told(f"{name}: {path.name}"):
            header = _read_header(path, name)
            if header is None:
                continue
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


def _read_header(path: Path, name: str) -> Header | None:
    """Return a file's header, None for what is no DICOM file and is not named like one."""
    import pydicom

    if _is_dicom(path):
        return pydicom.dcmread(path, stop_before_pixels=True)
    if path.suffix.lower() == ".dcm":
        raise InputError(f"{name}: {path.name}: damaged or not a DICOM file (no DICM at byte 128)")
    return None


def _is_image(header: Header) -> bool:
    if "DirectoryRecordSequence" in header:
        return False
    kind = header.SOPClassUID
    if "Rows" not in header and "Image Storage" in kind.name:
        raise ValueError(f"an image of kind {kind.name} without Rows")
    return "Rows" in header and kind not in SEGMENTATIONS


def _one_series(series: dict[str, Files], folder: Path, name: str) -> Files:
    if len(series) > 1:
        listed = "; ".join(_summary(uid, files) for uid, files in series.items())
        raise InputError(
            f"{name}: {len(series)} series in {folder}: {listed}; "
            "put the files of one into a folder of its own"
        )
    return next(iter(series.values()))


def _summary(uid: str, files: Files) -> str:
    header = files[0][1]
    description = header.get("SeriesDescription") or "no description"
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return f"{uid} ({description}, {header.get('Modality')}, {count})"


# One slice.


def _slices_of(path: Path, header: Header, name: str) -> list[Slice]:
    name = f"{name}: {path.name}"
    with _damage_told(name):
        _check_readable(header, name)
        frames = header.get("PerFrameFunctionalGroupsSequence")
        count = len(frames) if frames else 1
        return [_slice_of(path, header, frame, name) for frame in range(count)]


def _check_readable(header: Header, name: str) -> None:
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{name}: a colour image; one value a voxel is needed")
    if not is_framed(header) and int(header.get("NumberOfFrames") or 1) > 1:
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
        if found in (None, ""):
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
    first, wanted = slices[0], _traits(slices[0])
    for one in slices[1:]:
        for what, trait in _traits(one).items():
            if not _same(wanted[what], trait):
                raise InputError(
                    f"{name}: slices of different {what}, {wanted[what]} in {first.label} and "
                    f"{trait} in {one.label}; put the slices of one stack into a folder of its own"
                )


def _traits(one: Slice) -> dict[str, Any]:
    """Return what the slices of one volume have in common."""
    return {
        "shape": one.shape,
        "pixel spacing": one.spacing.tolist(),
        "orientation": one.cosines.tolist(),
        "frame of reference": str(one.header.get("FrameOfReferenceUID")),
    }


def _same(a: Any, b: Any) -> bool:
    """Whether two traits agree, lists of numbers up to rounding."""
    if isinstance(a, list):
        return bool(np.allclose(a, b, rtol=ROUNDING, atol=ROUNDING))
    return a == b


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
    ordered = _sorted(slices, cosines, name)
    affine = _lps_affine(ordered, cosines)
    _check_even(ordered, affine, name)
    ras = spatial.convert_affine_to_convention(
        affine, from_reference_convention="LPS", to_reference_convention="RAS"
    )
    return Series(tuple(ordered), ras)


def _sorted(slices: list[Slice], cosines: NDArray[np.float64], name: str) -> list[Slice]:
    from highdicom import spatial

    _, places = spatial.get_volume_positions(
        [one.position.tolist() for one in slices],
        cosines.tolist(),
        rtol=SLICE_TOLERANCE,
        index_convention="RD",
    )
    if places is None:
        raise InputError(f"{name}: {_why_no_volume(slices, cosines)}")
    return [slices[index] for index in np.argsort(places)]


def _lps_affine(ordered: list[Slice], cosines: NDArray[np.float64]) -> Affine:
    from highdicom import spatial

    first, last = ordered[0].position, ordered[-1].position
    step = (last - first) / (len(ordered) - 1)
    affine: Affine = spatial.create_affine_matrix_from_attributes(
        image_position=first.tolist(),
        image_orientation=cosines.tolist(),
        pixel_spacing=ordered[0].spacing.tolist(),
        spacing_between_slices=float(np.linalg.norm(step)),
        index_convention="RD",
    )
    affine[:3, 2] = step  # true to the positions even where the cosines were rounded
    return affine


def _check_even(ordered: list[Slice], affine: Affine, name: str) -> None:
    step, first = affine[:3, 2], affine[:3, 3]
    for number, one in enumerate(ordered):
        away = float(np.linalg.norm(one.position - first - number * step))
        if away > SLICE_TOLERANCE * min(spacing_of(affine)):
            raise InputError(
                f"{name}: {one.label} lies {away:.2g} mm from its place in an even stack; "
                "resample the series to even spacing first"
            )


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
        with _damage_told(f"{name}: {path.name}"):
            slices = list(group)
            stored = iter_pixels(path, indices=[one.frame for one in slices])
            header = slices[0].header
            table = "ModalityLUTSequence" in header
            planes += (apply_modality_lut(plane, header) if table else plane for plane in stored)
    with _damage_told(name):
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
