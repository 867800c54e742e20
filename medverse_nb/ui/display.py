"""Which voxels of a volume are shown, and exactly which voxel stands behind each of them.

Viewers show canonical (closest RAS) order. Between a shown voxel and the array lie a
permutation of axes, flips, a crop and a whole number of voxels a step; all are undone per
axis in integers. By way of millimetres and rounding, ties would give a neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .. import regions
from ..errors import GeometryError, InputError
from ..geometry import Grid, Reorientation, Shape, orientation_of
from ..regions import Region, View, bounds_of, read
from ..views import turned
from ..volume import grid_of, view_of

Voxel = tuple[int, int, int]
Point = tuple[float, float, float]
LARGEST_SHOWN = 256**3  # voxels; more are shown by every second, third, ... or by a roi


@dataclass(frozen=True)
class Display:
    """The voxels that are shown: a box of the canonical volume, and the step through it.

    Parameters
    ----------
    source : the volume as its array lies, in any orientation.
    region : the box shown, in canonical order, every start and stop inside.
    step : volume voxels a shown voxel, along each canonical axis.
    """

    source: Grid
    region: Region
    step: Shape

    @classmethod
    def of(cls, source: Grid, roi: Region | None = None, limit: int = LARGEST_SHOWN) -> Display:
        """Show a volume, or the box `roi` of it, in `limit` voxels at most.

        Parameters
        ----------
        roi : slices in the array's own axis order, such as `np.s_[10:90, :, 20:60]`.

        Raises
        ------
        InputError : a roi without a voxel, or with a stride.
        """
        turn = Reorientation.to_canonical(source.affine, source.shape)
        region = _canonical_region(_checked_roi(source.shape, roi), turn)
        sides = [box.stop - box.start for box in region]
        spacing = [source.spacing_mm[axis] for axis in turn.source_axes]
        step = [1, 1, 1]
        while prod(-(-side // by) for side, by in zip(sides, step, strict=True)) > limit:
            widths = [by * mm for by, mm in zip(step, spacing, strict=True)]
            finest = min((a for a in range(3) if step[a] < sides[a]), key=lambda a: widths[a])
            step[finest] += 1
        return cls(source, region, (step[0], step[1], step[2]))

    @cached_property
    def turn(self) -> Reorientation:
        """From the array's axes to the canonical ones."""
        return Reorientation.to_canonical(self.source.affine, self.source.shape)

    @cached_property
    def behind(self) -> tuple[tuple[int, bool, int], ...]:
        """Of each canonical axis: the array's axis, whether it is flipped, and its last index."""
        turned = zip(self.turn.source_axes, self.turn.flipped, strict=True)
        return tuple((axis, flipped, self.source.shape[axis] - 1) for axis, flipped in turned)

    @cached_property
    def shape(self) -> Shape:
        """Shown voxels along each canonical axis."""
        x, y, z = (
            -(-(box.stop - box.start) // by) for box, by in zip(self.region, self.step, strict=True)
        )
        return x, y, z

    @property
    def every_voxel(self) -> bool:
        """Whether each voxel of the box is shown, none skipped."""
        return self.step == (1, 1, 1)

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine of what is shown; a shown voxel lies amid the voxels behind it."""
        inward = np.diag([*self.step, 1.0])
        inward[:3, 3] = [
            box.start + (by - 1) / 2 for box, by in zip(self.region, self.step, strict=True)
        ]
        return Grid(self.shape, np.asarray(self.turn.affine(self.source.affine) @ inward))

    # --- between a shown voxel and the array's ---------------------------------------------

    def canonical_of(self, shown: Voxel) -> Voxel:
        """Return the canonical voxel behind a shown one: the middle one of its step."""
        x, y, z = (
            min(box.start + at * by + (by - 1) // 2, box.stop - 1)
            for at, by, box in zip(shown, self.step, self.region, strict=True)
        )
        return x, y, z

    def voxel_of(self, shown: Voxel) -> Voxel:
        """Return the index into the volume's own array behind a shown voxel."""
        found = [0, 0, 0]
        for at, (axis, flipped, last) in zip(self.canonical_of(shown), self.behind, strict=True):
            found[axis] = last - at if flipped else at
        return found[0], found[1], found[2]

    def shown_of(self, voxel: Voxel) -> Voxel:
        """Return the shown voxel that stands for a voxel of the array.

        Outside the box it lies outside `shape` too, on the same side.
        """
        i, j, k = (
            ((last - voxel[axis] if flipped else voxel[axis]) - box.start) // by
            for (axis, flipped, last), box, by in zip(
                self.behind, self.region, self.step, strict=True
            )
        )
        return i, j, k

    def world_mm(self, shown: Voxel) -> Point:
        """Return where the array's voxel behind a shown one lies, in RAS mm."""
        x, y, z = (self.source.affine @ [*self.voxel_of(shown), 1])[:3].tolist()
        return x, y, z

    def clipped(self, shown: Any) -> Voxel:
        """Return the nearest voxel that is shown.

        Raises
        ------
        InputError : not three whole numbers.
        """
        try:
            i, j, k = (int(index) for index in shown)
            whole = (i, j, k) == tuple(shown)
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise InputError(f"a voxel is three whole numbers (i, j, k), got {shown!r}")
        i, j, k = (
            min(max(at, 0), side - 1) for at, side in zip((i, j, k), self.shape, strict=True)
        )
        return i, j, k

    # --- between shown voxels and the array's values ---------------------------------------

    def view_of(self, volume: xr.DataArray | View) -> View:
        """Return a volume of this grid in canonical order; a view is so already.

        Raises
        ------
        GeometryError : the volume lies on another grid.
        """
        if isinstance(volume, xr.DataArray):
            if volume.ndim != 3:
                raise GeometryError(f"a volume of dims {volume.dims} cannot be shown; choose one")
            check_same_grid(grid_of(volume), self.source, str(volume.name or "volume"))
            return turned(view_of(volume), self.turn)
        expected = tuple(self.source.shape[axis] for axis in self.turn.source_axes)
        if tuple(volume.shape) != expected:
            raise GeometryError(
                f"a view to be shown has the shape {tuple(volume.shape)}; in canonical order "
                f"the volume has {expected}"
            )
        return volume

    def pick(self, view: View) -> NDArray[Any]:
        """Read the voxel behind each shown one, of a canonical view; labels stay labels."""
        if self.every_voxel:
            return read(view, self.region)
        picked = []
        for slab in self._slabs(view):
            places = [
                np.minimum(np.arange(0, side, by) + (by - 1) // 2, side - 1)
                for side, by in zip(slab.shape, self.step, strict=True)
            ]
            picked.append(slab[np.ix_(*places)])
        return np.concatenate(picked)

    def average(self, view: View) -> NDArray[Any]:
        """Read the mean of the voxels behind each shown one, float32 where any are skipped."""
        if self.every_voxel:
            return read(view, self.region)
        means = []
        for slab in self._slabs(view):
            mean: NDArray[Any] = slab.astype(np.float32)
            for axis, by in enumerate(self.step):
                starts = np.arange(0, mean.shape[axis], by)
                counts = np.diff([*starts, mean.shape[axis]]).astype(np.float32)
                counts = counts.reshape([-1 if a == axis else 1 for a in range(3)])
                mean = np.add.reduceat(mean, starts, axis) / counts
            means.append(mean)
        return np.concatenate(means)

    def in_array_order(self, shown: NDArray[Any]) -> tuple[Region, NDArray[Any]]:
        """Return where the box lies in the volume's array, and its voxels in that order.

        Raises
        ------
        InputError : voxels are skipped, so that what is shown is not all that is there.
        """
        if not self.every_voxel:
            raise InputError(f"only every {self.step} voxel is shown; the others have no value")
        spans = [slice(0)] * 3
        for box, (axis, flipped, last) in zip(self.region, self.behind, strict=True):
            spans[axis] = slice(last + 1 - box.stop, last + 1 - box.start) if flipped else box
        # Which axis goes where is the same for the box as for the whole volume.
        return (spans[0], spans[1], spans[2]), self.turn.undo(shown)

    def roi_around(self, shown: Voxel, limit: int = LARGEST_SHOWN) -> Region:
        """Return a box of the array around a voxel that can be shown voxel by voxel: a `roi`."""
        side = max(1, int(round(limit ** (1 / 3), 6)))
        centre = self.voxel_of(shown)
        x, y, z = (
            slice(low := max(0, min(at - side // 2, size - side)), min(size, low + side))
            for at, size in zip(centre, self.source.shape, strict=True)
        )
        return x, y, z

    def _slabs(self, view: View) -> Iterator[NDArray[Any]]:
        """Go through the box along its first axis, whole steps at a time."""
        x, y, z = self.region
        plane = (y.stop - y.start) * (z.stop - z.start)
        rows = max(1, regions.SLAB_VOXELS // plane // self.step[0]) * self.step[0]
        for start in range(x.start, x.stop, rows):
            yield read(view, (slice(start, min(start + rows, x.stop)), y, z))


def check_same_grid(grid: Grid, wanted: Grid, name: str) -> None:
    """Refuse another shape, and voxels that lie elsewhere by half a voxel or more.

    Raises
    ------
    GeometryError : says both shapes or orientations and how far apart they lie.
    """
    if grid.shape != wanted.shape:
        raise GeometryError(
            f"{name} has the shape {grid.shape}, the volume it is shown with {wanted.shape}; "
            "bring it onto the volume's grid first"
        )
    corners = np.array([[*at, 1] for at in product(*((0, n - 1) for n in grid.shape))]).T
    apart = np.linalg.norm(((grid.affine - wanted.affine) @ corners)[:3], axis=0).max()
    if apart > min(wanted.spacing_mm) / 2:
        raise GeometryError(
            f"{name} lies elsewhere: corners {apart:.1f} mm apart, orientation "
            f"{orientation_of(grid.affine)} and spacing {_in_mm(grid)}, the volume "
            f"{orientation_of(wanted.affine)} and {_in_mm(wanted)}"
        )


def _in_mm(grid: Grid) -> str:
    return " x ".join(f"{side:.4g}" for side in grid.spacing_mm) + " mm"


def _checked_roi(shape: Shape, roi: Region | None) -> Region:
    if roi is None:
        return bounds_of(shape, None)
    slices = tuple(roi) if isinstance(roi, (tuple, list)) else ()
    if len(slices) != 3 or not all(isinstance(one, slice) for one in slices):
        raise InputError(f"roi is three slices in the array's order, got {roi!r}")
    if any(one.step not in (None, 1) for one in slices):
        raise InputError(f"roi is a box; {roi!r} has a stride")
    bounds = bounds_of(shape, (slices[0], slices[1], slices[2]))
    if any(one.stop <= one.start for one in bounds):
        raise InputError(f"roi {roi!r} holds no voxel of a volume of shape {shape}")
    return bounds


def _canonical_region(region: Region, turn: Reorientation) -> Region:
    """Return a box of the array in canonical order."""
    found = []
    for axis, behind in enumerate(turn.source_axes):
        size, box = turn.shape[behind], region[behind]
        flipped = turn.flipped[axis]
        found.append(slice(size - box.stop, size - box.start) if flipped else box)
    return found[0], found[1], found[2]
