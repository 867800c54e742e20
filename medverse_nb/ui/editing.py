"""A mask that is drawn on: strokes, undo, and shapes filled in between drawn slices.

The mask lies in canonical order while it is edited and goes back to its array's own order
voxel for voxel. A display that skips voxels cannot be drawn on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import traitlets
import xarray as xr
from numpy.typing import NDArray

from ..classes import ClassSpec
from ..errors import InputError
from ..regions import Region, View, overlap, read
from ..volume import with_data
from .display import Display
from .layers import class_codes, class_keys, recoded
from .scene import AXES, Layer, in_plane
from .shapes import between, rasterise

Mode = Literal["brush", "eraser", "threshold"]
MODES: tuple[Mode, ...] = get_args(Mode)
HISTORY_VOXELS = 2**24  # changed voxels kept for undo, all strokes together; about 100 MB
LARGEST_RADIUS_VOX = 100.0


@dataclass(frozen=True, eq=False)
class Edit:
    """What a stroke changed: flat indices, the numbers before and after, and where it was.

    plane : axis and index of the slice that was drawn on; None for other changes.
    """

    places: NDArray[np.integer]
    before: NDArray[np.integer]
    after: NDArray[np.integer]
    plane: tuple[int, int] | None = None


class MaskEditor(traitlets.HasTraits):
    """A mask under edit. `version` grows with every change.

    Parameters
    ----------
    mask : (x, y, z) class numbers on the display's grid; a copy is edited.
    classes : what may be drawn.
    display : what is shown; where that is a roi, the mask changes in it alone.
    image : the scan in canonical order (or a `DataArray`), for the threshold brush.

    Raises
    ------
    InputError : the display skips voxels; the message has a roi that does not.
    """

    version = traitlets.Int(0)

    def __init__(
        self,
        mask: xr.DataArray,
        classes: Sequence[ClassSpec],
        display: Display,
        *,
        image: xr.DataArray | View | None = None,
        name: str = "labels",
    ) -> None:
        super().__init__()
        if not display.every_voxel:
            middle = [side // 2 for side in display.shape]
            roi = display.roi_around((middle[0], middle[1], middle[2]))
            box = ", ".join(f"{one.start}:{one.stop}" for one in roi)
            raise InputError(
                f"this view shows one voxel of every {display.step}, and a mask is drawn voxel "
                f"by voxel: show a part of it at full resolution, such as roi=np.s_[{box}]"
            )
        if not classes:
            raise InputError('nothing to draw: name the classes, such as classes={"liver": 1}')
        self.classes = tuple(classes)
        self.display = display
        self._mask = mask
        self._image = None if image is None else display.view_of(image)
        source = display.view_of(mask)
        highest = max(spec.number for spec in classes)
        self._numbers = _as_integers(read(source, display.region), highest)
        self._code_of, table = class_codes(classes)
        names = {spec.number: spec.name for spec in classes}
        self.layer = Layer(
            recoded(self._numbers, self._code_of),
            table,
            name,
            _Edited(source, display, self._numbers),
            names,
            keys=class_keys(classes),
        )
        self._done: deque[Edit] = deque()
        self._undone: list[Edit] = []

    @property
    def mask(self) -> xr.DataArray:
        """The mask as it is now, whole and in the array's own order; a copy."""
        region, box = self.display.in_array_order(self._numbers)
        data = self._mask.data.astype(box.dtype)  # of a lazy mask, nothing is read yet
        data[region] = box
        return with_data(self._mask, data, str(self._mask.name or "mask"))

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The codes of what is shown, as they are now; changed in place."""
        return self.layer.codes

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether a change was taken back."""
        return bool(self._undone)

    # --- drawing ---------------------------------------------------------------------------

    def paint(
        self,
        path: Any,
        axis: int,
        number: int,
        *,
        radius_vox: float = 3.0,
        mode: Mode = "brush",
        limits: tuple[float, float] | None = None,
    ) -> int:
        """Draw a stroke on a slice and return how many voxels changed.

        Parameters
        ----------
        path : (n, 3) shown voxels (fractions allowed) that the stroke joins, on one slice.
        axis : the canonical axis that the slice lies across.
        number : the class drawn; the eraser leaves 0 whatever was there.
        radius_vox : a voxel changes if its centre lies within this distance of the path, in
            sides of the slice's smaller voxel side, so that a brush is round in mm. Below
            0.5 the line is one voxel wide.
        limits : for "threshold", the scan's values, both included, in which voxels change.

        Raises
        ------
        InputError : another class, mode or axis, or a path that is none.
        """
        points, index = self._checked_path(path, axis)
        self._check_stroke(number, radius_vox, mode)
        spacing = self.display.grid.spacing_mm
        across, up = in_plane(axis)
        shape = self.display.shape
        (first, second), inside = rasterise(
            points[:, (across, up)],
            (shape[across], shape[up]),
            radius_vox,
            (spacing[across], spacing[up]),
        )
        if not inside.size:
            return 0
        box = [slice(0)] * 3
        box[axis], box[across], box[up] = slice(index, index + 1), first, second
        chosen = np.expand_dims(inside, axis)
        if mode == "threshold":
            chosen = chosen & self._within(box, limits)
        value = 0 if mode == "eraser" else number
        return self._apply(box, np.where(chosen, value, self._numbers[tuple(box)]), (axis, index))

    def fill_between(self, axis: int, number: int, slices: Sequence[int] | None = None) -> int:
        """Interpolate a class's shape between slices, see `between`; return how many voxels changed.

        Other classes are kept; what the class had between the slices goes.

        Parameters
        ----------
        axis : the canonical axis that the slices lie across.
        slices : their indices; None for those drawn on that hold the class.

        Raises
        ------
        InputError : fewer than two slices with the class.
        """
        self._check_stroke(number, 0.0, "brush")
        if axis not in AXES:
            raise InputError(f"axis must be 0, 1 or 2, got {axis!r}")
        stack = np.moveaxis(self._numbers, axis, 0)
        wanted = self._drawn_on(axis) if slices is None else {int(index) for index in slices}
        known = sorted(i for i in wanted if 0 <= i < len(stack) and (stack[i] == number).any())
        if len(known) < 2:
            raise InputError(
                "filling in between needs two slices or more that show the class: draw it on "
                "them first"
            )
        spacing = self.display.grid.spacing_mm
        in_slice = [spacing[a] for a in in_plane(axis)]
        box = [slice(None)] * 3
        box[axis] = slice(known[0], known[-1] + 1)
        filled = stack[known[0] : known[-1] + 1].copy()
        for first, last in pairwise(known):
            shapes = between(stack[first] == number, stack[last] == number, last - first, in_slice)
            for plane, shape in zip(filled[first - known[0] + 1 :], shapes, strict=False):
                plane[plane == number] = 0
                plane[shape & (plane == 0)] = number
        return self._apply(box, np.moveaxis(filled, 0, axis), None)

    def replace(self, codes: NDArray[np.uint8]) -> int:
        """Take over a drawing made elsewhere, as one change; return how many voxels changed.

        codes : (X, Y, Z) shown voxels, 0 or 1 + the class's place in `classes`. Where
            neither the old nor the new code is a class, the number stays.

        Raises
        ------
        InputError : another shape, or a code that is no class.
        """
        if codes.shape != self.display.shape:
            raise InputError(f"a drawing of shape {codes.shape}, the view is {self.display.shape}")
        if codes.max() > len(self.classes):
            raise InputError(f"the drawing has {codes.max()}; the classes are {len(self.classes)}")
        numbers = np.array([0, *(spec.number for spec in self.classes)], self._numbers.dtype)
        changed = codes != self.codes
        box = [slice(None)] * 3
        return self._apply(box, np.where(changed, numbers[codes], self._numbers), None)

    def undo(self) -> bool:
        """Take back the last change; False where there is none."""
        if not self._done:
            return False
        edit = self._done.pop()
        self._undone.append(edit)
        self._write(edit.places, edit.before)
        return True

    def redo(self) -> bool:
        """Make the change again that was taken back last; False where there is none."""
        if not self._undone:
            return False
        edit = self._undone.pop()
        self._done.append(edit)
        self._write(edit.places, edit.after)
        return True

    # --- inside ------------------------------------------------------------------------------

    def _checked_path(self, path: Any, axis: int) -> tuple[NDArray[np.float64], int]:
        if axis not in AXES:
            raise InputError(f"axis must be 0, 1 or 2, got {axis!r}")
        try:
            points = np.asarray(path, np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise InputError(f"a path is (n, 3) shown voxels, got {path!r:.80}")
        if not np.isfinite(points).all():
            raise InputError("a path has finite voxel coordinates")
        indices = {round(float(at)) for at in points[:, axis]}
        (index, *others) = sorted(indices)
        if others or not 0 <= index < self.display.shape[axis]:
            raise InputError(
                f"a stroke lies on one slice of {self.display.shape[axis]}, got {sorted(indices)}"
            )
        return points, index

    def _check_stroke(self, number: int, radius_vox: float, mode: str) -> None:
        if mode not in MODES:
            raise InputError(f"mode={mode!r} is not one of {MODES}")
        if mode != "eraser" and number not in self._code_of:
            raise InputError(f"{number!r} is not a class; the classes are {sorted(self._code_of)}")
        if not 0 <= radius_vox <= LARGEST_RADIUS_VOX:
            raise InputError(f"radius_vox must lie in 0 to {LARGEST_RADIUS_VOX}, got {radius_vox}")

    def _within(self, box: Sequence[slice], limits: tuple[float, float] | None) -> NDArray[Any]:
        """Return where the scan's values in a box of shown voxels lie within the limits."""
        if self._image is None:
            raise InputError("the threshold brush needs the scan, and this editor has none")
        if limits is None or not limits[0] <= limits[1]:
            raise InputError(f"the threshold brush needs limits (low, high), got {limits!r}")
        x, y, z = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(self.display.region, box, strict=True)
        )
        values = read(self._image, (x, y, z))
        return (values >= limits[0]) & (values <= limits[1])

    def _drawn_on(self, axis: int) -> set[int]:
        planes = [edit.plane for edit in self._done if edit.plane]
        return {index for across, index in planes if across == axis}

    def _apply(
        self, box: Sequence[slice], numbers: NDArray[Any], plane: tuple[int, int] | None
    ) -> int:
        """Set the numbers of a box as one change that can be taken back."""
        before = self._numbers[tuple(box)]
        where = np.nonzero(numbers != before)
        if not len(where[0]):
            return 0
        starts = [one.indices(side)[0] for one, side in zip(box, self._numbers.shape, strict=True)]
        shifted = tuple(at + start for at, start in zip(where, starts, strict=True))
        places = np.ravel_multi_index(shifted, self._numbers.shape)
        if self._numbers.size < 2**32:
            places = places.astype(np.uint32)
        after = numbers[where].astype(self._numbers.dtype)
        self._done.append(Edit(places, before[where], after, plane))
        self._undone.clear()
        while len(self._done) > 1 and sum(len(e.places) for e in self._done) > HISTORY_VOXELS:
            self._done.popleft()
        self._write(places, after)
        return len(places)

    def _write(self, places: NDArray[np.integer], numbers: NDArray[np.integer]) -> None:
        self._numbers.reshape(-1)[places] = numbers
        self.layer.codes.reshape(-1)[places] = recoded(numbers, self._code_of)
        self.version += 1


@dataclass(frozen=True)
class _Edited:
    """A canonical mask with what was drawn in the box of a display."""

    behind: View
    display: Display
    numbers: NDArray[np.integer]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.behind.shape

    def __getitem__(self, region: Region) -> NDArray[np.integer]:
        voxels = read(self.behind, region).astype(self.numbers.dtype)
        here, there = overlap(region, self.display.region)
        if all(one.stop > one.start for one in here):
            voxels[here] = self.numbers[there]
        return voxels


def _as_integers(voxels: NDArray[Any], highest: int) -> NDArray[np.integer]:
    """Return a copy of a mask in integers that hold its own numbers and `highest`."""
    if voxels.dtype.kind in "ui":
        dtype = voxels.dtype
    else:
        if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels)):
            raise InputError("a mask to be drawn on has whole numbers, this one has fractions")
        top = max(highest, int(voxels.max()))
        dtype = np.min_scalar_type(top) if voxels.min() >= 0 else np.dtype(np.int32)
    if highest > np.iinfo(dtype).max:
        dtype = np.promote_types(dtype, np.min_scalar_type(highest))
    return np.array(voxels, dtype, order="C")
