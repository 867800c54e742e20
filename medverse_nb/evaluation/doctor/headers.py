"""What the files say of themselves: orientation, units, and what reading had to change."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from ...geometry import Affine, Shape, check_affine, orientation_of, spacing_of
from ...pair import LABEL_GRID_CHANGE
from .exam import Exam
from .report import Finding

OBLIQUE_DEGREES = 5.0  # below, anatomy varies more between subjects
SAME_PLACE_VOXELS = 0.5  # corners closer than this are one place
SAME_SPACING = 1.01  # a header's rounding
UNITS = {1: "metres", 3: "micrometres"}  # NIfTI's codes; 2 is mm, 0 is not told
SMALLEST_EXTENT_MM, LARGEST_EXTENT_MM = 2.0, 3000.0  # no scan of a body part lies outside


def check_changes(exam: Exam) -> Iterator[Finding]:
    """Tell what reading a volume had to change or assume."""
    for scan in exam.scans:
        changes = scan.image.attrs.get("changes", ()) if scan.pair is None else scan.pair.changes
        for change in changes:
            if change == LABEL_GRID_CHANGE:
                continue  # told with numbers by `check_label_grid`
            yield Finding(
                "warning", "changed-on-reading", scan.name, change, "look at the file",
                "the volume is used as changed",
            )  # fmt: skip


def check_label_grid(exam: Exam) -> Iterator[Finding]:
    """Find labels that were stored in another orientation, or elsewhere, than their image."""
    for scan in exam.context:
        assert scan.pair is not None
        stored = scan.pair.label.attrs.get("stored_affine")
        differs = LABEL_GRID_CHANGE in scan.pair.changes
        ours = orientation_of(scan.grid.affine)
        theirs = ours if stored is None else orientation_of(np.array(stored))
        if differs:
            apart = "" if stored is None else (
                f" (stored {theirs}, its image {ours}; corners up to "
                f"{_corners_apart(np.array(stored), scan.grid.affine, scan.grid.shape):.3g} mm apart)"
            )  # fmt: skip
            yield Finding(
                "warning", "label-grid", scan.name,
                f"the label's affine differs from its image's{apart}",
                "look at the pair: is the label mirrored or turned? Store it with its image's affine",
                "the label's voxels are taken in the image's order",
            )  # fmt: skip
        elif theirs != ours:
            yield Finding(
                "note", "label-orientation", scan.name,
                f"the label is stored {theirs}, its image {ours}", "nothing, if both are right",
                "the label's axes are turned to the image's, exactly",
            )  # fmt: skip


def check_sform_qform(exam: Exam) -> Iterator[Finding]:
    """Find NIfTI headers whose two affines contradict each other, or that have none."""
    for scan in exam.scans:
        header = _header_of(scan.image)
        if header is None:
            continue
        codes = int(header["sform_code"]), int(header["qform_code"])
        if codes == (0, 0):
            yield Finding(
                "warning", "no-orientation", scan.name,
                "the header has neither sform nor qform (both codes are 0)",
                "look whether left is left; store it again with an affine",
                f"taken as {orientation_of(scan.grid.affine)}, x running to the left by convention",
            )  # fmt: skip
        if 0 in codes:
            continue
        try:
            sform, qform = (check_affine(m) for m in (header.get_sform(), header.get_qform()))
        except (ValueError, nib.spatialimages.HeaderDataError):
            continue  # one of them maps no volume: there is nothing to choose between
        shape = scan.grid.shape
        apart = _corners_apart(sform, qform, shape)
        if apart <= SAME_PLACE_VOXELS * min(spacing_of(sform)):
            continue
        mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
        ratios = np.array(spacing_of(sform)) / spacing_of(qform)
        turned = orientation_of(sform) != orientation_of(qform)
        sized = max(ratios.max(), 1 / ratios.min()) > SAME_SPACING
        evidence = (
            f"sform ({orientation_of(sform)}, {_mm(sform)}) and qform ({orientation_of(qform)}, "
            f"{_mm(qform)}) lie up to {apart:.3g} mm apart"
        )
        yield Finding(
            # only "world" cares where the origin lies: scanner and atlas spaces may both be stored
            "error" if mirrored
            else "warning" if turned or sized or exam.align == "world" else "note",
            "sform-qform", scan.name,
            evidence + (", one the mirror image of the other" if mirrored else ""),
            "find out which is right and store it as both", "the sform is used",
        )  # fmt: skip


def check_handedness(exam: Exam) -> Iterator[Finding]:
    """Note contexts that mix left- and right-handed storage: where a converter erred, it shows."""
    left = [scan.name for scan in exam.scans if np.linalg.det(scan.grid.affine[:3, :3]) < 0]
    if not left or len(left) == len(exam.scans):
        return
    shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    yield Finding(
        "note", "handedness", "context",
        f"{len(left)} of {len(exam.scans)} volumes are stored left-handed ({shown})",
        "if they came through different converters, look at one of each for left and right",
        "all are flipped to RAS as their affines say, exactly",
    )  # fmt: skip


def check_units(exam: Exam) -> Iterator[Finding]:
    """Find spacing that is not in millimetres, by the header or by a body of impossible size."""
    for scan in exam.scans:
        header = _header_of(scan.image)
        told = UNITS.get(int(header["xyzt_units"]) & 7) if header is not None else None
        widest = max(scan.grid.extent_mm)
        if told is None and SMALLEST_EXTENT_MM <= widest <= LARGEST_EXTENT_MM:
            continue
        why = f"the header's unit is {told}, " if told else ""
        yield Finding(
            "warning", "units", scan.name,
            f"{why}spacing {_mm(scan.grid.affine)[:-3]}, field of view {widest:.4g} at most",
            "store affine and spacing in millimetres", "the numbers are taken as millimetres",
        )  # fmt: skip


def check_oblique(exam: Exam) -> Iterator[Finding]:
    """Find voxel axes that lie between the body's."""
    if exam.align != "box":
        return
    for scan in exam.scans:
        angle = _obliquity_degrees(scan.grid.affine)
        if angle > OBLIQUE_DEGREES:
            yield Finding(
                "note", "oblique", scan.name,
                f"voxel axes are {angle:.0f} degrees off {orientation_of(scan.grid.affine)}",
                'align="world" honours the angle', "axes are taken as they are",
            )  # fmt: skip


CHECKS = (
    check_changes,
    check_label_grid,
    check_sform_qform,
    check_handedness,
    check_units,
    check_oblique,
)


def _header_of(volume: xr.DataArray) -> Any:
    """Return the NIfTI header's grid as it was read, None of any other file."""
    grid = volume.attrs.get("nifti_grid")
    if grid is None:
        return None
    header = nib.Nifti1Header()
    for field, value in grid.items():
        header[field] = value
    header["pixdim"][:4] = volume.attrs["nifti_pixdim"][:4]
    return header


def _corners_apart(one: Affine, other: Affine, shape: Shape) -> float:
    """Return how far, in mm, two affines put a corner of a volume apart at most."""
    corners = np.array([[*at, 1] for at in product(*((0, n - 1) for n in shape))]).T
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def _obliquity_degrees(affine: Affine) -> float:
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))


def _mm(affine: Affine) -> str:
    return " x ".join(f"{side:.4g}" for side in spacing_of(affine)) + " mm"
