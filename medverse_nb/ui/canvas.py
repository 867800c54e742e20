"""Slice canvas: a notebook widget over a `SliceState`, drawn by a small script of our own.

Voxels go to the browser as raw bytes in custom messages, only the planes that changed, and
are blended there. Nothing of a volume is a synced trait, so a notebook that is saved with
its widget state stays small. Without a browser nothing is sent, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..errors import MedverseError
from .display import Voxel
from .editing import LARGEST_RADIUS_VOX
from .scene import AXES, ENDS, PLANES, Box, Scene
from .slices import SliceState

HERE = Path(__file__).parent
SHOWN = ("scene", "cursor", "opacity", "boxes", "selected", "edits", "editor")


class SliceCanvas(anywidget.AnyWidget):
    """Three planes of each panel; clicks, keys and strokes change the state.

    Parameters
    ----------
    state : shown and changed; several canvases may share it.
    panels : "rows" puts panels one below another, "columns" side by side.
    """

    _esm = HERE / "canvas.js"
    _css = HERE / "canvas.css"

    panels = traitlets.Enum(("rows", "columns"), "rows").tag(sync=True)

    def __init__(self, state: SliceState, *, panels: str = "rows") -> None:
        super().__init__(panels=panels)
        self.state = state
        self._watched = False  # whether a browser shows it
        self._asked = False  # whether the browser's wish is being done, and will be answered
        self._sent_scene: tuple[Any, ...] = ()
        self._sent_voxels: tuple[Voxel, int] = (0, 0, 0), -1
        self._sent_boxes: tuple[Box, ...] | None = None
        self._actions: dict[str, Callable[[dict[str, Any]], object]] = {
            "ready": lambda _: self._forget(),
            "cursor": lambda said: setattr(state, "cursor", said["cursor"]),
            "opacity": lambda said: setattr(state, "opacity", said["opacity"]),
            "box": lambda said: setattr(state, "selected", said["box"]),
            "stroke": self._paint,
            "fill": lambda said: state.fill_between(said["axis"], said["number"]),
            "undo": lambda _: state.undo(),
            "redo": lambda _: state.redo(),
        }
        self.on_msg(self._on_message)
        state.observe(self._on_change, SHOWN)

    def close(self) -> None:
        """Let go of the state and of the browser's side; may be called twice."""
        if getattr(self, "_actions", None):
            self._actions = {}
            self.state.unobserve(self._on_change, SHOWN)
        super().close()

    # --- from the browser --------------------------------------------------------------------

    def _on_message(self, _widget: Any, said: Any, _buffers: Any) -> None:
        """Do what the browser asks and answer; what cannot be done is told there."""
        if not self._actions:
            return
        self._watched = self._asked = True
        try:
            self._actions[said["type"]](said)
        except MedverseError as error:
            self.send({"type": "problem", "text": str(error)})
        except (KeyError, TypeError, ValueError, traitlets.TraitError) as error:
            self.send({"type": "problem", "text": f"not understood: {said!r:.80} ({error!r:.80})"})
        finally:
            self._asked = False
        self._refresh()

    def _paint(self, said: dict[str, Any]) -> None:
        limits = said.get("limits")
        self.state.paint(
            said["path"],
            said["axis"],
            said["number"],
            radius_vox=float(said["radius"]),
            mode=said["mode"],
            limits=(float(limits[0]), float(limits[1])) if limits else None,
        )

    # --- to the browser ------------------------------------------------------------------------

    def _on_change(self, _change: Any) -> None:
        if self._watched and not self._asked:
            self._refresh()

    def _forget(self) -> None:
        """Send everything anew: another view of this widget has opened."""
        self._sent_scene = ()

    def _refresh(self) -> None:
        """Send what the browser lacks; an answer in any case, for it asks one thing at a time."""
        state = self.state
        scene: Scene = state.scene
        axes: Sequence[int] = AXES
        if self._sent_scene != (scene, state.editor):
            tables = [layer.table.tobytes() for panel in scene.panels for layer in panel.layers]
            self.send(self._scene_message(), tables)
            self._sent_scene = scene, state.editor
            self._sent_boxes = None
        elif self._sent_voxels[1] == state.edits:
            axes = [a for a in AXES if self._sent_voxels[0][a] != state.cursor[a]]
        self._sent_voxels = state.cursor, state.edits
        planes = [
            np.ascontiguousarray(plane)
            for panel in state.planes(axes)
            for layers in panel
            for plane in layers
        ]
        self.send(self._planes_message(axes), planes)
        self._sent_boxes = state.boxes

    def _scene_message(self) -> dict[str, Any]:
        scene, editor = self.state.scene, self.state.editor
        drawing = None
        if editor is not None:
            classes = [
                {"number": c.number, "name": c.name, "colour": c.colour} for c in editor.classes
            ]
            limits = scene.panels[0].layers[0].limits or (0.0, 1.0)
            drawing = {"classes": classes, "limits": limits, "largest": LARGEST_RADIUS_VOX}
        return {
            "type": "scene",
            "shape": scene.display.shape,
            "spacing": scene.display.grid.spacing_mm,
            "planes": PLANES,
            "ends": ENDS,
            "panels": [
                {"title": panel.title, "layers": len(panel.layers)} for panel in scene.panels
            ],
            "legend": [
                {"name": key.name, "colours": key.colours, "ends": key.ends} for key in scene.legend
            ],
            "drawing": drawing,
        }

    def _planes_message(self, axes: Sequence[int]) -> dict[str, Any]:
        state = self.state
        values = state.values()
        message = {
            "type": "planes",
            "cursor": state.cursor,
            "axes": axes,
            "opacity": state.opacity,
            "place": place_text(state),
            "values": [values_text(values[panel.title]) for panel in state.scene.panels],
            "selected": state.selected,
            "undo": state.editor is not None and state.editor.can_undo,
            "redo": state.editor is not None and state.editor.can_redo,
        }
        if self._sent_boxes is not state.boxes:
            message["boxes"] = [
                {"low": box.low, "high": box.high, "colour": box.colour, "name": box.name}
                for box in state.boxes
            ]
        return message


def place_text(state: SliceState) -> str:
    """Return where the cursor is, in words: the array's voxel and RAS millimetres."""
    i, j, k = state.voxel
    x, y, z = state.world_mm
    skipped = (
        "" if state.scene.display.every_voxel else f", shown by every {state.scene.display.step}"
    )
    return f"voxel [{i}, {j}, {k}]{skipped} at ({x:.1f}, {y:.1f}, {z:.1f}) mm RAS"


def values_text(values: dict[str, float | str]) -> str:
    """Return what is under the cursor, in words."""
    said = [
        f"{name}: {value or 'nothing'}" if isinstance(value, str) else f"{name}: {value:.4g}"
        for name, value in values.items()
    ]
    return ", ".join(said)
