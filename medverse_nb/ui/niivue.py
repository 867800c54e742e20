"""NiiVue in the notebook: three planes and a 3D view in WebGL, over the same state.

NiiVue is given the shown voxels, already in canonical order and as bytes, with an affine of
spacings alone: so it has nothing to turn, its voxel indices are the display's (also for a
scan that lies near 45 degrees, where its choice of axes may be another than ours), and a
large volume goes to the browser small.

A drawing comes back only when it is fetched, some time later; without a browser, never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import nibabel as nib
import numpy as np
from ipyniivue import LUT, ColormapType, MultiplanarType, NiiVue, SliceType, Volume

from ..errors import InputError
from .display import Display
from .scene import Codes, Layer, Panel, Table
from .slices import SliceState
from .viewer import Viewer

UNUSED_CODES = 4
FAINT = 32  # alpha below which a code is not shown
CROSSHAIR_COLOUR = (1.0, 1.0, 1.0, 0.6)
CROSSHAIR_SHARE = 1 / 1000  # of the longest side


class _Freeing(anywidget.AnyWidget):
    """Stands beside a NiiVue and gives its WebGL context back when both close."""

    _esm = Path(__file__).with_name("webgl.js")


class NiivueViewer(Viewer):
    """The one panel of a state's scene in NiiVue, which is `nv`.

    Parameters
    ----------
    state : cursor and opacity go both ways; another scene or an edited mask is sent anew.
    height : of the widget, in pixels.

    Raises
    ------
    InputError : a scene of more than one panel.
    """

    def __init__(self, state: SliceState, *, height: int = 420) -> None:
        _only_panel(state)
        nv = NiiVue(
            height=height,
            slice_type=SliceType.MULTIPLANAR,
            multiplanar_layout=MultiplanarType.ROW,
            crosshair_color=CROSSHAIR_COLOUR,
            crosshair_width=CROSSHAIR_SHARE * max(state.scene.display.grid.extent_mm),
        )
        self.nv = nv
        self._freeing = _Freeing()
        box = w.VBox([nv, self._freeing])
        box.add_class("mv-webgl")
        super().__init__(state, box, "niivue")
        self.drawing = False
        self._loaded: set[str] = set()  # ids of volumes that the browser has
        self._when_loaded: list[Callable[[], None]] = []
        self._replies: deque[Callable[[Codes], None] | None] = deque()  # in the order asked for
        self._from_browser = False  # the cursor is, that is being set
        nv.on_image_loaded(self._on_loaded)
        nv.on_location_change(self._on_location)
        nv.observe(self._on_bitmap, "draw_bitmap")
        self._watches = {
            "scene": self._on_scene,
            "cursor": self._on_cursor,
            "opacity": self._on_opacity,
            "edits": self._on_edits,
        }
        for name, watch in self._watches.items():
            state.observe(watch, name)
        self._on_scene(None)

    def close(self) -> None:
        """Free the widget, its volumes and with them the browser's WebGL context."""
        if not self.closed:
            for name, watch in self._watches.items():
                self.state.unobserve(watch, name)
            for part in (*self.nv.volumes, self._freeing, self.nv):
                part.close()
        super().close()

    # --- drawing -------------------------------------------------------------------------------

    def start_drawing(self, number: int) -> None:
        """Let a class be drawn in NiiVue, from the mask as it is; starts once that is loaded.

        Raises
        ------
        InputError : nothing to draw on, or another number than a class's.
        """
        editor = self.state.editor
        numbers = [] if editor is None else [spec.number for spec in editor.classes]
        if editor is None or number not in numbers:
            raise InputError(
                f"{number!r} cannot be drawn; the classes are {numbers}"
                if numbers
                else "this view has no mask to draw on; open it with edit=True"
            )
        self.drawing = True
        self._on_opacity(None)
        self.nv.draw_lut = _drawing_colours(editor.layer.table)
        self.nv.opts.pen_value = float(numbers.index(number) + 1)

        def start() -> None:
            self._ask(None)
            self._push(editor.codes)

        self._once_loaded(start)

    def fetch_drawing(self) -> None:
        """Ask for the drawing and go on; it reaches the state's editor when the browser sends it."""
        if not self.drawing:
            raise InputError("nothing is being drawn; start with start_drawing(number)")
        self._once_loaded(lambda: self._ask(self._take))

    def stop_drawing(self) -> None:
        """Fetch the drawing, and show it as the mask again once it has come."""
        if self.drawing:
            self._once_loaded(lambda: self._ask(self._take_last))

    def push_drawing(self) -> None:
        """Put the mask into NiiVue's drawing, such as after an undo."""
        editor = self.state.editor
        if self.drawing and editor is not None:
            self._once_loaded(lambda: self._push(editor.codes))

    def _ask(self, receive: Callable[[Codes], None] | None) -> None:
        """Enable drawing, to which NiiVue answers with the drawing; None if that is not wanted."""
        self._replies.append(receive)
        self.nv.opts.drawing_enabled = True
        self.nv.send({"type": "set_drawing_enabled", "data": [True]})

    def _push(self, codes: Codes) -> None:
        """Overwrite the drawing, of which the browser may have other voxels than Python knows."""
        message = {"type": "buffer_change", "data": {"attr": "drawBitmap", "type": "uint8"}}
        self.nv.send(message, buffers=[codes.tobytes(order="F")])

    def _take(self, codes: Codes) -> None:
        if self.state.editor is not None:
            self.state.editor.replace(codes)

    def _take_last(self, codes: Codes) -> None:
        self._take(codes)
        self.drawing = False
        self.nv.set_drawing_enabled(False)
        self._replies.append(None)  # which it answers too
        self.nv.close_drawing()
        self._on_edits(None)

    def _on_bitmap(self, change: Any) -> None:
        """Take a drawing that was asked for: flat, x fastest, on the display's grid."""
        flat = change["new"]
        if flat is None or not self._replies:
            return
        receive = self._replies.popleft()
        shape = self.state.scene.display.shape
        if receive is not None and flat.size == np.prod(shape):
            receive(np.asarray(flat, np.uint8).reshape(shape, order="F"))

    # --- the state and the browser ---------------------------------------------------------------

    def _on_scene(self, _change: Any) -> None:
        panel, display = _only_panel(self.state), self.state.scene.display
        self._loaded.clear()
        self.nv.load_volumes(
            [_volume(layer, display, not n) for n, layer in enumerate(panel.layers)]
        )
        self._on_opacity(None)
        self._on_cursor(None)

    def _on_edits(self, _change: Any) -> None:
        """Send the edited mask anew; while it is drawn on, NiiVue shows its own drawing."""
        editor = self.state.editor
        layers = _only_panel(self.state).layers
        if self.drawing or editor is None or editor.layer not in layers:
            return
        volumes = list(self.nv.volumes)
        place = layers.index(editor.layer)
        volumes[place] = _volume(editor.layer, self.state.scene.display, place == 0)
        self.nv.volumes = volumes
        self._on_opacity(None)

    def _on_opacity(self, _change: Any) -> None:
        for layer, volume in zip(
            _only_panel(self.state).layers[1:], self.nv.volumes[1:], strict=True
        ):
            drawn = self.drawing and self.state.editor and layer is self.state.editor.layer
            volume.opacity = 0.0 if drawn else self.state.opacity

    def _on_cursor(self, _change: Any) -> None:
        if not self._from_browser:
            shape = self.state.scene.display.shape
            middles = zip(self.state.cursor, shape, strict=True)
            self.nv.scene.crosshair_pos = [(at + 0.5) / side for at, side in middles]

    def _on_location(self, location: Any) -> None:
        """Follow the crosshair; its events come by the dozen, also while drawing."""
        voxel = tuple(round(at) for at in location["vox"])
        if self.drawing or voxel == self.state.cursor:
            return
        self._from_browser = True
        try:
            self.state.cursor = voxel
        finally:
            self._from_browser = False

    def _on_loaded(self, volume: Any) -> None:
        self._loaded.add(volume["id"] if isinstance(volume, dict) else volume.id)
        self._once_loaded()

    def _once_loaded(self, act: Callable[[], None] | None = None) -> None:
        """Do something when the browser has all volumes; before, a drawing has no size."""
        if act is not None:
            self._when_loaded.append(act)
        if all(volume.id in self._loaded for volume in self.nv.volumes):
            waiting, self._when_loaded = self._when_loaded, []
            for one in waiting:
                one()


def _only_panel(state: SliceState) -> Panel:
    panels = state.scene.panels
    if len(panels) != 1:
        titles = ", ".join(panel.title for panel in panels)
        raise InputError(f'NiiVue shows one panel, not {titles}; use backend="canvas"')
    panel: Panel = panels[0]
    return panel


def _volume(layer: Layer, display: Display, first: bool) -> Volume:
    """Return a layer as NiiVue takes it: a NIfTI file of its codes, and how to colour them."""
    affine = np.diag([*display.grid.spacing_mm, 1.0])
    data = nib.Nifti1Image(layer.codes, affine).to_bytes()
    alpha = layer.table[:, 3].astype(int)
    colours: dict[str, Any]
    if first:
        colours = {"colormap": "gray", "cal_min": 0.0, "cal_max": 255.0}
    elif layer.names is None and alpha[0] == 0 and (np.diff(alpha) > 0).all():
        # The one way to a see-through scale: below cal_min the alpha is (value / cal_min)^2.
        below = ColormapType.ZERO_TO_MAX_TRANSLUCENT_BELOW_MIN
        colours = {
            "colormap": "inferno",
            "cal_min": 255.0,
            "cal_max": 255.0,
            "colormap_type": below,
        }
    else:
        colours = {"colormap_label": _colours(layer.table)}
    return Volume(data=data, name=f"{layer.name}.nii", **colours)


def _colours(table: Table) -> LUT:
    """Return a table as NiiVue takes it, which knows only shown and not shown.

    It never looks a code up in the first 1/128 of a table: so that 0 stays 0, the table begins
    with codes that there are not.
    """
    padded = np.concatenate([np.zeros((UNUSED_CODES, 4), np.uint8), table])
    padded[:, 3] = np.where(padded[:, 3] < FAINT, 0, 255)
    return LUT(lut=padded.ravel().tolist(), min=float(-UNUSED_CODES), max=255.0)


def _drawing_colours(table: Table) -> LUT:
    """Return the colours of a drawing, with as many names as NiiVue expects."""
    return LUT(lut=table.ravel().tolist(), min=0.0, max=255.0, labels=[str(c) for c in range(256)])
