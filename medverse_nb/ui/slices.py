"""The state behind every slice viewer: a scene, a cursor in it, and what is drawn over it.

Widgets only show a state and change it; without a browser all of it can be used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from ..errors import InputError
from .display import Point, Voxel
from .editing import MaskEditor, Mode
from .scene import AXES, OPACITY, Box, Codes, Scene, plane_of


class SliceState(traitlets.HasTraits):
    """Three planes of each panel through one shown voxel.

    Traits
    ------
    scene : what is shown; another one may take its place at any time.
    cursor : (i, j, k) shown voxel; one outside is brought to the nearest inside.
    opacity : of all layers but the first, 0 to 1.
    boxes : regions drawn over the planes; `selected` is the place of one of them, or None.
    editor : what strokes go into, None for a view that is only looked at.
    edits : grows when the voxels of a layer change.
    """

    scene = traitlets.Instance(Scene)
    cursor = traitlets.Tuple()
    opacity = traitlets.Float(OPACITY)
    boxes = traitlets.Tuple()
    selected = traitlets.Int(None, allow_none=True)
    editor = traitlets.Instance(MaskEditor, allow_none=True)
    edits = traitlets.Int(0)

    def __init__(self, scene: Scene, **traits: Any) -> None:
        traits.setdefault("cursor", scene.focus)
        super().__init__(scene=scene, **traits)

    @traitlets.validate("cursor")
    def _inside(self, proposal: Any) -> Voxel:
        return self.scene.display.clipped(proposal["value"])

    @traitlets.validate("opacity")
    def _share(self, proposal: Any) -> float:
        return min(max(float(proposal["value"]), 0.0), 1.0)

    @traitlets.validate("selected")
    def _a_box(self, proposal: Any) -> int | None:
        number: int | None = proposal["value"]
        if number is not None and not 0 <= number < len(self.boxes):
            raise InputError(f"box {number} of {len(self.boxes)} cannot be selected")
        return number

    @traitlets.validate("boxes")
    def _boxes_only(self, proposal: Any) -> tuple[Box, ...]:
        boxes: tuple[Box, ...] = proposal["value"]
        if not all(isinstance(box, Box) for box in boxes):
            raise InputError("boxes are a tuple of Box")
        return boxes

    @traitlets.observe("scene")
    def _scene_changed(self, _change: Any) -> None:
        self.cursor = self.cursor  # brought inside

    @traitlets.observe("boxes")
    def _boxes_changed(self, _change: Any) -> None:
        if self.selected is not None and self.selected >= len(self.boxes):
            self.selected = None

    @traitlets.observe("editor")
    def _editor_changed(self, change: Any) -> None:
        if change["old"]:
            change["old"].unobserve(self._edited, "version")
        if change["new"]:
            change["new"].observe(self._edited, "version")

    def _edited(self, _change: Any) -> None:
        self.edits += 1

    # --- looking ---------------------------------------------------------------------------

    def move(self, axis: int, voxels: int) -> None:
        """Move the cursor along an axis, as far as there is something to show."""
        there = list(self.cursor)
        there[axis] += voxels
        self.cursor = (there[0], there[1], there[2])

    def look_at(self, voxel: Voxel) -> None:
        """Bring the cursor to a voxel of the volume's own array."""
        self.cursor = self.scene.display.shown_of(voxel)

    @property
    def voxel(self) -> Voxel:
        """The index into the volume's own array under the cursor."""
        return self.scene.display.voxel_of(self.cursor)

    @property
    def world_mm(self) -> Point:
        """Where that voxel lies, in RAS mm."""
        return self.scene.display.world_mm(self.cursor)

    def values(self) -> dict[str, dict[str, float | str]]:
        """Return what is under the cursor: by panel and layer, a value or a class's name.

        Read from the volume itself, not from what is shown.
        """
        canonical = self.scene.display.canonical_of(self.cursor)
        found: dict[str, dict[str, float | str]] = {}
        for panel in self.scene.panels:
            values = {layer.name: layer.value_at(canonical) for layer in panel.layers}
            found[panel.title] = {name: v for name, v in values.items() if v is not None}
        return found

    def planes(self, axes: Sequence[int] = AXES) -> list[list[list[Codes]]]:
        """Return codes (right, up) by panel, axis and layer, through the cursor.

        They are views of the layers' voxels, not copies.
        """
        return [
            [
                [plane_of(layer.codes, axis, self.cursor[axis]) for layer in panel.layers]
                for axis in axes
            ]
            for panel in self.scene.panels
        ]

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
        """Draw a stroke, see `MaskEditor.paint`; return how many voxels changed."""
        return self._editable().paint(
            path, axis, number, radius_vox=radius_vox, mode=mode, limits=limits
        )

    def fill_between(self, axis: int, number: int) -> int:
        """Fill a class in between the slices drawn on; return how many voxels changed."""
        return self._editable().fill_between(axis, number)

    def undo(self) -> bool:
        """Take back the last stroke; False where there is none."""
        return self._editable().undo()

    def redo(self) -> bool:
        """Draw the stroke again that was taken back last; False where there is none."""
        return self._editable().redo()

    def _editable(self) -> MaskEditor:
        editor: MaskEditor | None = self.editor
        if editor is None:
            raise InputError("this view has nothing to draw on; open it with edit=True")
        return editor
