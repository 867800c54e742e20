"""Cohorts to try things on without a download: virtual brains and an abdomen phantom.

Both are drawn from a seed alone, and both vary what real cohorts vary: anatomy, pose,
field of view, contrast and the orientation in which the voxels are stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from .errors import ContextError, InputError, missing_extra

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

BRAIN_CLASSES = {"grey matter": 1, "white matter": 2}
STORAGE_ORIENTATIONS = ("RAS", "LPS", "LIA", "PSR", "RSA", "ASL", "LAS")


@dataclass(frozen=True)
class DemoCase:
    """One virtual subject: `image` (int16) and `label` (uint8) on one grid, affines to RAS mm."""

    name: str
    image: nib.Nifti1Image
    label: nib.Nifti1Image
    classes: dict[str, int]


def demo_cohort(subjects: int = 5, seed: int = 0, spacing_mm: float = 2.0) -> list[DemoCase]:
    """Draw virtual subjects from the MNI152 brain that comes inside nilearn.

    Each has its own smooth deformation of a few millimetres, head pose and size, field of
    view, contrast, bias field, noise and storage orientation. No file is downloaded.

    Raises
    ------
    InputError : nilearn is not installed.
    InputError : fewer than one subject, a negative seed, or a spacing outside 0.5 to 8 mm.

    Source: ICBM 152 nonlinear symmetric template, as packaged by nilearn.
    """
    _check_draw(subjects, seed)
    if not 0.5 <= spacing_mm <= 8:
        raise InputError(f"spacing_mm must lie in 0.5 to 8, got {spacing_mm!r}")
    template = _read_template()
    return [_draw_brain(template, index, seed, spacing_mm) for index in range(subjects)]


def phantom_cohort(subjects: int = 5, seed: int = 0, side: int = 64) -> list[DemoCase]:
    """Draw abdomens made of superquadrics, `side`**3 voxels over 320 mm.

    Organs differ in size, place, tilt and shape between subjects, and in contrast a little.

    Raises
    ------
    InputError : fewer than one subject, a negative seed, or a side below 24 voxels.
    """
    _check_draw(subjects, seed)
    if side < 24:
        raise InputError(f"side must be 24 voxels or more, got {side!r}")
    return [_draw_abdomen(index, seed, side) for index in range(subjects)]


def write_cohort(cases: Sequence[DemoCase], folder: str | Path) -> Path:
    """Write cases in nnU-Net layout, `imagesTr`, `labelsTr` and `dataset.json`; return the folder.

    Raises
    ------
    ContextError : no case, two cases of one name, or cases that disagree on the classes.
    """
    names = [case.name for case in cases]
    if not cases or len(set(names)) < len(names):
        raise ContextError(f"a cohort needs one case or more, each with its own name, got {names}")
    classes = cases[0].classes
    for case in cases:
        if case.classes != classes:
            raise ContextError(
                f'case "{case.name}" has classes {case.classes}, "{names[0]}" has {classes}; '
                "a cohort needs the same in all"
            )
    folder = Path(folder)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in cases:
        nib.save(case.image, folder / "imagesTr" / f"{case.name}_0000.nii.gz")
        nib.save(case.label, folder / "labelsTr" / f"{case.name}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **classes},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


def _check_draw(subjects: int, seed: int) -> None:
    if subjects < 1:
        raise InputError(f"subjects must be 1 or more, got {subjects!r}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed!r}")


# --- what both cohorts share -------------------------------------------------------------


def _smooth_field(rng: Generator, shape: Sequence[int], control: int) -> Floats:
    """Draw normal values on `control`**3 points, cubic between them: float32 of `shape`."""
    field: npt.NDArray[Any] = rng.standard_normal((control,) * 3)
    for axis, size in enumerate(shape):
        knots = make_interp_spline(np.arange(control), np.eye(control), k=3)
        rows = knots(np.linspace(0, control - 1, size))
        field = np.moveaxis(np.tensordot(rows, field, axes=(1, axis)), 0, axis)
    return field.astype(np.float32)


def _displacement_mm(rng: Generator, shape: Sequence[int], amount_mm: float) -> Floats:
    """Draw a smooth displacement (3, X, Y, Z) of deviation about `amount_mm`, broad and fine."""
    broad = np.stack([_smooth_field(rng, shape, 5) for _ in range(3)])
    fine = np.stack([_smooth_field(rng, shape, 8) for _ in range(3)])
    return (amount_mm * (0.8 * broad + 0.3 * fine)).astype(np.float32)


def _world_grid(shape: Sequence[int], affine: npt.NDArray[np.float64]) -> Floats:
    """Return RAS mm of all voxel centres of an axis-aligned grid: (3, X, Y, Z)."""
    axes = [np.arange(size) * affine[i, i] + affine[i, 3] for i, size in enumerate(shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _add_scanner(rng: Generator, image: Floats, noise: float) -> Floats:
    """Return an image in [0, 1] as a scanner would give it: bias field and Rician noise."""
    bias = np.exp(0.12 * _smooth_field(rng, image.shape, 4))
    real, imaginary = noise * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.hypot(image * bias + real, imaginary).astype(np.float32)


def _store(
    image: Floats, label: Labels, affine: npt.NDArray[np.float64], axes: str, gain: float
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Turn RAS arrays into NIfTI images stored along `axes`, with the same world positions."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    stored = []
    for array in (np.rint(image * gain).astype(np.int16), label):
        nifti = nib.Nifti1Image(array, affine).as_reoriented(turn)
        turned = np.ascontiguousarray(nifti.dataobj)
        nifti = nib.Nifti1Image(turned, nifti.affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(nifti.affine, code="scanner")
        nifti.set_qform(nifti.affine, code="scanner")
        stored.append(nifti)
    return stored[0], stored[1]


# --- virtual brains ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Template:
    """The 1 mm brain: `t1` in [0, 1], `label` of BRAIN_CLASSES, box of the brain in RAS mm."""

    t1: Floats
    label: Labels
    affine: npt.NDArray[np.float64]
    low_mm: npt.NDArray[np.float64]
    high_mm: npt.NDArray[np.float64]


@lru_cache(maxsize=1)
def _read_template() -> _Template:
    try:
        from nilearn import datasets as nilearn_datasets
    except ModuleNotFoundError as error:
        raise missing_extra("the demo brain", error, "demo") from error
    t1 = nilearn_datasets.load_mni152_template(resolution=1)
    grey, white = (
        np.asarray(load(resolution=1).dataobj)
        for load in (
            nilearn_datasets.load_mni152_gm_template,
            nilearn_datasets.load_mni152_wm_template,
        )
    )
    label = np.zeros(t1.shape, np.uint8)
    label[(grey > 0.5) & (grey >= white)] = BRAIN_CLASSES["grey matter"]
    label[(white > 0.5) & (white > grey)] = BRAIN_CLASSES["white matter"]
    t1_array = np.asarray(t1.dataobj, np.float32)
    brain = np.argwhere(t1_array > 0.1)
    corners = nib.affines.apply_affine(t1.affine, [brain.min(0), brain.max(0)])
    return _Template(t1_array, label, t1.affine, corners[0], corners[1])


def _draw_brain(template: _Template, index: int, seed: int, spacing_mm: float) -> DemoCase:
    rng = np.random.default_rng([seed, index, 0])
    low = template.low_mm - rng.uniform(12, 24, 3)
    high = template.high_mm + rng.uniform(12, 24, 3)
    shape = np.ceil((high - low) / spacing_mm).astype(int).tolist()
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = low
    points = _brain_points(rng, template, _world_grid(shape, affine))
    voxels = (points - template.affine[:3, 3].reshape(3, 1, 1, 1)).astype(np.float32)
    # The template is 1 mm: blurring by what a coarser voxel averages keeps edges from aliasing.
    t1 = ndimage.gaussian_filter(template.t1, 0.35 * np.sqrt(max(spacing_mm**2 - 1, 0)))
    image = ndimage.map_coordinates(t1, voxels, order=1)
    label = ndimage.map_coordinates(template.label, voxels, order=0)
    image = _add_scanner(rng, _change_contrast(rng, image), noise=rng.uniform(0.01, 0.03))
    axes = STORAGE_ORIENTATIONS[index % len(STORAGE_ORIENTATIONS)]
    nifti, mask = _store(image, label, affine, axes, gain=rng.uniform(300, 3000))
    return DemoCase(f"brain-{index + 1:02d}", nifti, mask, dict(BRAIN_CLASSES))


def _brain_points(rng: Generator, template: _Template, world: Floats) -> Floats:
    """Map a subject's RAS mm to the template's: turn, resize and shift the head, then deform."""
    turn = Rotation.from_euler("xyz", rng.uniform(-7, 7, 3), degrees=True).as_matrix()
    linear = turn @ np.diag(rng.uniform(0.92, 1.08, 3))
    centre = ((template.low_mm + template.high_mm) / 2).reshape(3, 1, 1, 1)
    shift = rng.uniform(-4, 4, 3).reshape(3, 1, 1, 1)
    points = np.einsum("ij,jxyz->ixyz", linear, world - centre) + centre + shift
    return (points + _displacement_mm(rng, world.shape[1:], 2.5)).astype(np.float32)


def _change_contrast(rng: Generator, image: Floats) -> Floats:
    """Put intensities in [0, 1] through a random increasing curve that keeps 0 and 1."""
    steps = np.exp(rng.normal(0, 0.35, 6))
    curve = np.concatenate([[0], np.cumsum(steps) / steps.sum()])
    return np.interp(image, np.linspace(0, 1, len(curve)), curve).astype(np.float32)


# --- abdomen phantom ---------------------------------------------------------------------

FIELD_OF_VIEW_MM = 320.0


@dataclass(frozen=True)
class _Organ:
    """A superquadric in RAS mm: half axes along its own tilted axes; 2 is an ellipsoid."""

    name: str
    centre_mm: tuple[float, float, float]
    half_axes_mm: tuple[float, float, float]
    tilt_degrees: tuple[float, float, float]
    intensity: float
    exponent: float = 2.0


ORGANS = (
    _Organ("liver", (58, 22, 42), (76, 62, 58), (0, 18, 12), 0.55, 2.5),
    _Organ("spleen", (-86, -34, 48), (24, 38, 46), (14, -16, -20), 0.33, 2.2),
    _Organ("left kidney", (-58, -52, -34), (25, 24, 50), (0, 12, 0), 0.72),
    _Organ("right kidney", (58, -52, -48), (25, 24, 50), (0, -12, 0), 0.72),
    _Organ("stomach", (-54, 44, 28), (44, 28, 46), (0, -28, -16), 0.24, 2.3),
)
SPINE = _Organ("spine", (0, -62, 0), (24, 22, 400), (0, 0, 0), 0.18, 2.6)
BODY = _Organ("body", (0, 0, 0), (148, 108, 240), (0, 0, 0), 0.85, 2.4)  # its rim is fat
INSIDE = _Organ("inside", (0, 0, 0), (132, 93, 226), (0, 0, 0), 0.44, 2.4)
PHANTOM_CLASSES = {organ.name: value for value, organ in enumerate(ORGANS, 1)}


def _draw_abdomen(index: int, seed: int, side: int) -> DemoCase:
    rng = np.random.default_rng([seed, index, 1])
    spacing = FIELD_OF_VIEW_MM / side
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (spacing - FIELD_OF_VIEW_MM) / 2
    world = _world_grid((side,) * 3, affine)
    world /= rng.uniform(0.92, 1.04, (3, 1, 1, 1)).astype(np.float32)
    world += _displacement_mm(rng, (side,) * 3, 4.0)
    image = np.zeros((side,) * 3, np.float32)
    for part in (BODY, INSIDE, _vary(rng, SPINE, 0.03)):
        image[_radius(part, world) < 1] = part.intensity + rng.normal(0, 0.02)
    free = _radius(INSIDE, world) < 0.97
    free &= _radius(SPINE, world) > 1.1
    radii = np.stack([_radius(_vary(rng, organ, 0.10), world) for organ in ORGANS])
    label = np.where(free & (radii.min(0) < 1), radii.argmin(0) + 1, 0).astype(np.uint8)
    for value, organ in enumerate(ORGANS, 1):
        image[label == value] = organ.intensity + rng.normal(0, 0.03)
    image += 0.02 * _smooth_field(rng, image.shape, max(6, side // 5))
    image = ndimage.gaussian_filter(image, 0.6)
    image = _add_scanner(rng, image, noise=rng.uniform(0.015, 0.035))
    axes = STORAGE_ORIENTATIONS[index % len(STORAGE_ORIENTATIONS)]
    nifti, mask = _store(image, label, affine, axes, gain=rng.uniform(300, 3000))
    return DemoCase(f"abdomen-{index + 1:02d}", nifti, mask, dict(PHANTOM_CLASSES))


def _vary(rng: Generator, organ: _Organ, amount: float) -> _Organ:
    """Return another subject's organ: half axes off by `amount`, moved and tilted in step."""
    x, y, z = (np.array(organ.centre_mm) + rng.normal(0, 60 * amount, 3)).tolist()
    a, b, c = (np.array(organ.half_axes_mm) * np.exp(rng.normal(0, amount, 3))).tolist()
    p, q, r = (np.array(organ.tilt_degrees) + rng.normal(0, 80 * amount, 3)).tolist()
    exponent = organ.exponent + rng.uniform(-0.2, 0.2)
    return _Organ(organ.name, (x, y, z), (a, b, c), (p, q, r), organ.intensity, exponent)


def _radius(organ: _Organ, world: Floats) -> Floats:
    """Return how far out each point lies, 1 on the organ's surface: (X, Y, Z)."""
    offset = world - np.array(organ.centre_mm, np.float32).reshape(3, 1, 1, 1)
    turn = Rotation.from_euler("xyz", organ.tilt_degrees, degrees=True).as_matrix()
    own = np.einsum("ji,jxyz->ixyz", turn.astype(np.float32), offset)
    scaled = np.abs(own) / np.array(organ.half_axes_mm, np.float32).reshape(3, 1, 1, 1)
    return (scaled**organ.exponent).sum(0) ** np.float32(1 / organ.exponent)
