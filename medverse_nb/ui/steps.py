"""Step explorer, the state: one scale of a recorded run at a time, and one of its windows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from ..errors import InputError
from ..geometry import Grid, Shape
from ..regions import View
from ..resampling import FloatArray
from ..views import Difference, resized
from ..volume import grid_of, view_of
from .choices import ClassChoice
from .display import Display, Voxel
from .layers import grey_layer, heat_layer, signed_layer
from .scene import Box, Layer, Panel, Scene
from .slices import SliceState

if TYPE_CHECKING:
    from ..prediction import Prediction, PredictionStep, WindowCrops

KEPT_SCENES = 8
MOST_PAIRS = 8  # shown of a window's context
CHANGE_LIMIT = 1.0  # of a probability, and of an image in [0, 1]


class StepsState(ClassChoice):
    """What the step explorer shows.

    Traits
    ------
    class_name : which class, "image" for an image task.
    scale : 1, the coarsest, to T.
    show_windows : draw the windows of the scale; `slices.selected` is the one looked into.
    slices : planes of the scale: what came in, the answer, its change since the coarser
        scale, and where the truth is known its error.
    window : planes of the selected window's crops, None while none is selected.

    Raises
    ------
    InputError : the run was not recorded.
    """

    scale = traitlets.Int()
    show_windows = traitlets.Bool(False)
    slices = traitlets.Instance(SliceState)
    window = traitlets.Instance(SliceState, allow_none=True)

    def __init__(self, prediction: Prediction) -> None:
        if not prediction.steps:
            raise InputError(
                "this run kept no steps; predict with record=True to look into its scales"
            )
        self.prediction = prediction
        self.class_names = list(dict.fromkeys(step.class_name for step in prediction.steps))
        self.scales = max(step.scale for step in prediction.steps)
        self._steps = {(step.class_name, step.scale): step for step in prediction.steps}
        self.scene_of = lru_cache(KEPT_SCENES)(self._make_scene)
        first = self.class_names[0]
        super().__init__(
            class_name=first,
            scale=self.scales,
            slices=SliceState(self.scene_of(first, self.scales)),
        )
        self.slices.observe(self._open_window, "selected")

    @property
    def step(self) -> PredictionStep:
        """The scale and class that is shown."""
        return self._steps[self.class_name, self.scale]

    @property
    def caption(self) -> str:
        """Say in one line what is shown."""
        step, sides = self.step, "×".join(map(str, self.step.image.shape))
        spacing = " × ".join(f"{mm:.3g}" for mm in grid_of(step.image).spacing_mm)
        count = len(step.windows)
        windows = "one window" if count == 1 else f"{count} windows"
        return f"scale {self.scale} of {self.scales}: {sides} voxels of {spacing} mm, {windows}"

    @property
    def window_caption(self) -> str:
        """Say in one line what the selected window shows; empty where none is."""
        number = self.slices.selected
        if number is None:
            return ""
        start, pairs = self.step.windows[number].start, len(self.step.pairs)
        some = f", {MOST_PAIRS} of {pairs} pairs" if pairs > MOST_PAIRS else ""
        return f"window {number} of scale {self.scale}, from voxel {list(start)}{some}"

    @traitlets.validate("scale")
    def _a_scale(self, proposal: Any) -> int:
        return min(max(int(proposal["value"]), 1), self.scales)

    @traitlets.observe("scale", "class_name")
    def _show(self, _change: Any) -> None:
        """Show another scale or class at the same place of the body."""
        if not self.trait_has_value("slices"):
            return  # not built yet
        cursor, scene = self.cursor_at(self.scale), self.scene_of(self.class_name, self.scale)
        self.slices.selected = None
        self.slices.boxes = ()
        self.slices.scene = scene
        self.slices.cursor = cursor
        self._draw_windows()

    @traitlets.observe("show_windows")
    def _draw_windows(self, _change: Any = None) -> None:
        self.slices.boxes = self._boxes() if self.show_windows else ()

    def cursor_at(self, scale: int) -> Voxel:
        """Return the shown voxel of a scale that holds the place under the cursor."""
        now = self.scene_of(self.class_name, scale).display.shape
        return same_place(self.slices.cursor, self.slices.scene.display.shape, now)

    def select(self, number: int | None) -> None:
        """Look into a window of the scale, None into none.

        Raises
        ------
        InputError : no such window.
        """
        self.show_windows = self.show_windows or number is not None
        self.slices.selected = number

    def _open_window(self, _change: Any) -> None:
        number = self.slices.selected
        self.window = None if number is None else SliceState(self._window_scene(number))

    def _boxes(self) -> tuple[Box, ...]:
        """Return the scale's windows in shown voxels, cut off where the volume ends."""
        display = self.slices.scene.display
        return tuple(
            box_of_window(self.step, display, number, f"window {number}")
            for number in range(len(self.step.windows))
        )

    def _make_scene(self, class_name: str, scale: int) -> Scene:
        step = self._steps[class_name, scale]
        display = Display.of(grid_of(step.image))
        grey = grey_layer(display, step.image, name="scan", window=(0, 1))
        answer = view_of(step.prediction)

        def over(layer: Layer) -> tuple[Layer, ...]:
            return grey, layer

        panels = [Panel("scan", (grey,)), Panel("answer", self._answer(display, grey, answer))]
        if scale > 1:
            coarser = view_of(self._steps[class_name, scale - 1].prediction)
            x, y, z = answer.shape
            change = Difference(answer, resized(coarser, (x, y, z)))
            panels.append(
                Panel(
                    "change", over(signed_layer(display, change, name="change", limit=CHANGE_LIMIT))
                )
            )
        if step.truth is not None:
            error = Difference(answer, view_of(step.truth))
            panels.append(
                Panel("error", over(signed_layer(display, error, name="error", limit=CHANGE_LIMIT)))
            )
        return Scene(display, tuple(panels))

    def _answer(self, display: Display, grey: Layer, answer: View) -> tuple[Layer, ...]:
        if self.prediction.image is not None:
            return (grey_layer(display, answer, name="answer", window=(0, 1)),)
        return grey, heat_layer(display, answer, name="probability")

    def _window_scene(self, number: int) -> Scene:
        crops = self.step.read_window(number)
        display = Display.of(grid_of_window(self.step, crops))
        labelled = [("target and answer", crops.target, crops.answer)]
        if crops.ar_image is not None and crops.ar_label is not None:
            labelled.append(("coarser scale", crops.ar_image, crops.ar_label))
        pairs = zip(self.step.pairs, crops.context_images, crops.context_labels, strict=True)
        labelled += [(f"pair {name}", image, label) for name, image, label in pairs][:MOST_PAIRS]
        return Scene(display, tuple(self._labelled(display, *one) for one in labelled))

    def _labelled(
        self, display: Display, title: str, image: FloatArray, label: FloatArray
    ) -> Panel:
        grey = grey_layer(display, image, name="image", window=(0, 1))
        return Panel(title, self._answer(display, grey, label))


def same_place(voxel: Voxel, before: Shape, now: Shape) -> Voxel:
    """Return the voxel of one shape at the place of a voxel of another, both of one extent."""
    x, y, z = (
        (2 * at + 1) * side // (2 * old) for at, old, side in zip(voxel, before, now, strict=True)
    )
    return x, y, z


def box_of_window(step: PredictionStep, display: Display, number: int, name: str) -> Box:
    """Return a window of a scale in shown voxels, cut off where the volume ends."""
    window, ran_on = step.windows[number], step.run.seen.shape
    stop = [a + n for a, n in zip(window.start, window.sides, strict=True)]
    edges = []
    for at in (window.start, stop):
        x, y, z = (
            min(place, most) * side / most / by
            for place, most, side, by in zip(
                at, ran_on, step.image.shape, display.step, strict=True
            )
        )
        edges.append((x, y, z))
    return Box(edges[0], edges[1], name)


def grid_of_window(step: PredictionStep, crops: WindowCrops) -> Grid:
    """Return where a window lies, on the shape its scale ran on."""
    x, y, z = step.run.seen.shape
    whole = grid_of(step.image).resized((x, y, z))
    corner = np.eye(4)
    corner[:3, 3] = crops.window.start
    return Grid(crops.window.sides, whole.affine @ corner)
