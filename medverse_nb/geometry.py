"""Where voxels are: affines, orientation, spacing, and how one grid is placed on another.

An affine is a (4, 4) float64 matrix from voxel index to millimetres in RAS. All
functions are pure and know nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import nibabel.orientations as nio
import numpy as np
from numpy.typing import NDArray

from .errors import GeometryError

Array = NDArray[Any]
Affine = NDArray[np.float64]
Shape = tuple[int, int, int]
Align = Literal["box", "center", "world"]
ALIGNS: tuple[Align, ...] = ("box", "center", "world")


def check_affine(affine: Any, name: str = "affine") -> Affine:
    """Return `affine` as (4, 4) float64; a `GeometryError` if it maps no volume."""
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name} must be a 4x4 matrix of numbers ({error})") from error
    if matrix.shape != (4, 4):
        raise GeometryError(f"{name} must be a 4x4 matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise GeometryError(f"{name} has non-finite values: {matrix.tolist()}")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise GeometryError(f"{name} must end in the row 0 0 0 1, got {matrix[3].tolist()}")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if (spacing == 0).any() or abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        raise GeometryError(f"{name} is singular (voxel axes {matrix[:3, :3].tolist()})")
    return matrix


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the voxel size in mm along each array axis."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def orientation_of(affine: Affine) -> str:
    """Return the closest axis codes, such as "RAS" or "LIA"."""
    return "".join(nio.aff2axcodes(affine))


@dataclass(frozen=True)
class Reorientation:
    """An exact axis permutation and flip from a file's axes to canonical (closest RAS) axes."""

    transform: Array  # nibabel's (3, 2) orientation
    shape: Shape  # before

    @classmethod
    def to_canonical(cls, affine: Affine, shape: Shape) -> Reorientation:
        """Return the reorientation that brings a volume with this affine to RAS order."""
        return cls(nio.io_orientation(affine), shape)

    @classmethod
    def onto(cls, affine: Affine, shape: Shape, other: Affine) -> Reorientation:
        """Return the reorientation that brings a volume's axes closest to another's.

        Not by way of canonical axes: two volumes of one scan that lie turned by 45 degrees may
        have different ones.
        """
        return cls(nio.io_orientation(np.linalg.solve(other, affine)), shape)

    @property
    def source_axes(self) -> tuple[int, int, int]:
        """The file's axis behind each canonical axis."""
        x, y, z = np.argsort(self.transform[:, 0]).tolist()
        return x, y, z

    @property
    def flipped(self) -> tuple[bool, bool, bool]:
        """Whether each canonical axis runs against the file's."""
        x, y, z = (bool(self.transform[axis, 1] < 0) for axis in self.source_axes)
        return x, y, z

    def apply(self, array: Array) -> Array:
        """Reorient an array whose last three axes are spatial."""
        lead = array.ndim - 3
        moved = np.transpose(array, (*range(lead), *(lead + s for s in self.source_axes)))
        return np.flip(moved, tuple(lead + axis for axis in range(3) if self.flipped[axis]))

    @property
    def inverse(self) -> Reorientation:
        """The way back."""
        x, y, z = (self.shape[axis] for axis in self.source_axes)
        back = [(axis, self.transform[axis, 1]) for axis in self.source_axes]
        return Reorientation(np.array(back), (x, y, z))

    def undo(self, array: Array) -> Array:
        """Bring an array back to the file's axes."""
        return self.inverse.apply(array)

    def affine(self, affine: Affine) -> Affine:
        """Return the affine of the reoriented volume."""
        moved = affine @ nio.inv_ornt_aff(self.transform, self.shape)
        return np.asarray(moved, dtype=np.float64)


@dataclass(frozen=True)
class Grid:
    """A shape in voxels and its affine."""

    shape: Shape
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis."""
        return spacing_of(self.affine)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view along each axis, voxel edges included."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def centre_vox(self) -> Array:
        """Centre of the box in voxel coordinates."""
        return (np.asarray(self.shape, dtype=np.float64) - 1) / 2

    @property
    def centre_mm(self) -> Array:
        """Centre of the box in RAS millimetres."""
        return np.asarray(self.affine[:3, :3] @ self.centre_vox + self.affine[:3, 3])

    def resized(self, shape: Shape) -> Grid:
        """Return the same box cut into `shape` voxels."""
        ratio = np.array(self.shape) / np.array(shape)
        enlarge = np.diag([*ratio, 1.0])
        enlarge[:3, 3] = 0.5 * ratio - 0.5
        return Grid(shape, np.asarray(self.affine @ enlarge))


def placement(target: Grid, source: Grid, align: Align) -> Affine:
    """Return the (4, 4) map from target voxels to source voxels.

    Both grids are in canonical axis order.

    Parameters
    ----------
    align : "box" stretches the source's box to the target's (the papers' behaviour);
        "center" keeps millimetres and directions and lays the centres together; "world"
        takes both affines at their word.

    Raises
    ------
    GeometryError : an unknown `align`.
    """
    matrix: Affine = np.eye(4)
    if align == "box":
        scale = np.asarray(source.shape, np.float64) / np.asarray(target.shape, np.float64)
        matrix[:3, :3] = np.diag(scale)
        matrix[:3, 3] = 0.5 * scale - 0.5
    elif align == "center":
        linear = np.linalg.solve(source.affine[:3, :3], target.affine[:3, :3])
        matrix[:3, :3] = linear
        matrix[:3, 3] = source.centre_vox - linear @ target.centre_vox
    elif align == "world":
        matrix = np.asarray(np.linalg.solve(source.affine, target.affine), np.float64)
    else:
        raise GeometryError(f"align={align!r} is not one of {ALIGNS}")
    matrix[np.abs(matrix) < 1e-9] = 0.0
    return matrix


def stretch_of(target: Grid, source: Grid) -> tuple[float, float, float]:
    """Return how much "box" stretches the source along each canonical axis (1 = not at all)."""
    x, y, z = (t / s for t, s in zip(target.extent_mm, source.extent_mm, strict=True))
    return x, y, z


def overlap_of(target: Grid, source: Grid, align: Align) -> float:
    """Return the share of the target's box, 0 to 1, that lies inside the placed source's box."""
    axes = [np.linspace(0, n - 1, min(n, 16)) for n in target.shape]
    points = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")])
    matrix = placement(target, source, align)
    places = matrix[:3, :3] @ points + matrix[:3, 3:]
    limits = np.asarray(source.shape)[:, None] - 0.5
    return float(((places >= -0.5) & (places <= limits)).all(axis=0).mean())
