"""Attention explorer, the state: which block asks, and where it looks, in one recorded window.

The cursor in the target picks the place; the window most central over it and the block of that
window follow. What attention can tell, and what it cannot, says `evaluation.attention`; `NOTE`
says it to who looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import traitlets
import xarray as xr
from numpy.typing import NDArray

from ..classes import ClassSpec
from ..errors import InputError
from ..evaluation.attention import block_numbers, diagonal_share, entropy, windows_over
from ..geometry import Shape
from ..inference.recorder import AUTOREGRESSIVE, SEMANTIC
from ..volume import grid_of
from .choices import ClassChoice
from .display import Display, Voxel
from .layers import grey_layer, heat_layer, label_layer
from .scene import Panel, Scene
from .slices import SliceState
from .steps import box_of_window, grid_of_window, same_place

if TYPE_CHECKING:
    from ..prediction import Prediction, PredictionStep, WindowCrops

CONTEXT_TO_TARGET, TARGET_TO_CONTEXT = "context to target", "target to context"
DIRECTIONS = (CONTEXT_TO_TARGET, TARGET_TO_CONTEXT)  # which way the features go
COARSER = "coarser scale"  # the autoregressive context, in words
KEPT_SCENES = 4
OPACITY = 0.6  # weights are dark where they are small: more than for labels
ASKS = ClassSpec(1, "the block that asks", (1,), (86, 180, 233))
NOTE = (
    "What this shows: which places of a map the marked block took its features from. What it "
    "cannot show: which context pair helped (the target looks at the mean of all pairs; the "
    "picture under it is only one of them), nor why a voxel got its label (features have mixed "
    "places by convolution before, and do again after)."
)


class AttentionState(ClassChoice):
    """What the attention explorer shows.

    Traits
    ------
    class_name : which class, "image" for an image task.
    scale : 1, the coarsest, to T.
    window : number of the recorded window looked into, the most central over the cursor
        unless another is set; None where the scale has none.
    stage : 0, full resolution, to the deepest.
    direction : "context to target": a block of the target looks at the mean of all pairs and,
        after the first scale, at the coarser one; "target to context": a block of a pair
        looks at the target.
    pairs, pair : the pair that asks; where the target asks, whose picture lies under the mean.
    query : number of the block that asks, the one under the cursor.
    caption : which block is shown, and where it looks most.
    problem : why there is nothing to see, or not where the cursor is; else empty.
    slices : the scale's target; its cursor picks. The box is the window.
    maps : in the window, the block that asks and where it looks; its cursor only looks around.

    Raises
    ------
    InputError : the run was not recorded, its network has no attention, or no window was chosen.
    """

    scale = traitlets.Int()
    window = traitlets.Int(None, allow_none=True)
    stage = traitlets.Int(0)
    direction = traitlets.Enum(DIRECTIONS, CONTEXT_TO_TARGET)
    pairs = traitlets.Tuple()
    pair = traitlets.Unicode()
    query = traitlets.Int(None, allow_none=True)
    caption = traitlets.Unicode()
    problem = traitlets.Unicode()
    slices = traitlets.Instance(SliceState)
    maps = traitlets.Instance(SliceState, allow_none=True)

    def __init__(self, prediction: Prediction) -> None:
        self.attention = _recorded(prediction)
        self.prediction = prediction
        self.class_names = list(dict.fromkeys(step.class_name for step in prediction.steps))
        self.scales = max(step.scale for step in prediction.steps)
        self.stages: int = self.attention.sizes["stage"]
        self._steps = {(step.class_name, step.scale): step for step in prediction.steps}
        self._scene_of = lru_cache(KEPT_SCENES)(self._make_scene)
        self._crops_of = lru_cache(1)(self._read_crops)
        self._place: Voxel = (0, 0, 0)  # in the window, of the block that asks
        self._boxed: list[int] = []  # windows that are drawn as boxes
        self._missed = ""  # why the cursor is nowhere
        self._weights: NDArray[np.float32] = np.empty((0, 0), np.float32)  # (map, key), NaN: none
        self._settling = True
        first, scale = self.class_names[0], int(self.attention.scale.values.max())
        super().__init__(
            class_name=first,
            scale=scale,
            pair=self._steps[first, scale].pairs[0],
            slices=SliceState(self._scene_of(first, scale)),
        )
        self.slices.observe(self._cursor_moved, "cursor")
        self.slices.observe(self._box_selected, "selected")
        self._offer_pairs()
        self._settling = False
        self._pick()
        if self.window is None:
            self.window = self.windows[0]

    # --- what is shown, in words and numbers -----------------------------------------------

    @property
    def step(self) -> PredictionStep:
        """The scale and class that is shown."""
        return self._steps[self.class_name, self.scale]

    @property
    def windows(self) -> list[int]:
        """Numbers of the scale's recorded windows."""
        here = self.attention.scale.values == self.scale
        return [int(number) for number in self.attention.window.values[here]]

    @property
    def asks(self) -> str:
        """Whose block asks."""
        if self.direction == CONTEXT_TO_TARGET:
            return "target"
        return COARSER if self.pair == AUTOREGRESSIVE else f"pair {self.pair}"

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Where it looks: at one map, or at two that share its attention."""
        if self.direction == TARGET_TO_CONTEXT:
            return ("target",)
        mean = f"mean of {len(self.step.pairs)} pairs" if len(self.step.pairs) > 1 else "one pair"
        return (mean, COARSER) if self.scale > 1 else (mean,)

    @property
    def strongest(self) -> tuple[int, int, float] | None:
        """The place of the map in `looks_at`, the block and the weight it looks at most."""
        if not np.isfinite(self._weights).any():
            return None
        at, key = np.unravel_index(np.nanargmax(self._weights), self._weights.shape)
        return int(at), int(key), float(self._weights[at, key])

    def summary(self) -> pd.DataFrame:
        """Return how sharply blocks look, a row a direction and stage.

        Means over all blocks, pairs and recorded windows of the shown scale and class.

        Returns
        -------
        `entropy`, 0 one block to 1 all alike; `diagonal`, the share of attention that stays at
        the block's own place, and `even`, what it would be if all blocks were alike. NaN where
        nothing was recorded.
        """
        measured = []
        for number in self.windows:
            here = self._record_of(number).load()
            for direction, name in zip(
                DIRECTIONS, ("context_to_target", "target_to_context"), strict=True
            ):
                weights = here[name]
                sharp, stays = entropy(weights), diagonal_share(weights)
                if "pair" in weights.dims:
                    sharp, stays = sharp.mean("pair"), stays.mean("pair")
                else:
                    stays = stays.sum("source", min_count=1)
                for stage in range(self.stages):
                    row = direction, stage, float(sharp[stage]), float(stays[stage])
                    measured.append(row)
        columns = ["direction", "stage", "entropy", "diagonal"]
        table = pd.DataFrame(measured, columns=columns)
        table = table.groupby(["direction", "stage"], sort=True).mean()
        return table.assign(even=1 / self.attention.sizes["key"])

    # --- choosing --------------------------------------------------------------------------

    def look_at_strongest(self) -> None:
        """Bring the planes of `maps` to the block that is looked at most."""
        if self.maps is None or (found := self.strongest) is None:
            return
        members = np.argwhere(self._blocks() == found[1])
        middle = np.abs(members - members.mean(0)).sum(1).argmin()
        self.maps.cursor = tuple(members[middle].tolist())

    @traitlets.validate("scale")
    def _a_scale(self, proposal: Any) -> int:
        return min(max(int(proposal["value"]), 1), self.scales)

    @traitlets.validate("stage")
    def _a_stage(self, proposal: Any) -> int:
        return min(max(int(proposal["value"]), 0), self.stages - 1)

    @traitlets.validate("pair")
    def _a_pair(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if not self._settling and name not in self.pairs:
            raise InputError(f"no pair {name!r} here; there are {', '.join(self.pairs)}")
        return name

    @traitlets.validate("window")
    def _a_window(self, proposal: Any) -> int | None:
        number: int | None = proposal["value"]
        if not self._settling and number not in self.windows:
            raise InputError(
                f"window {number} was not recorded at scale {self.scale}; there are {self.windows}"
            )
        return number

    @traitlets.observe("scale")
    def _show_scale(self, change: Any) -> None:
        """Show another scale at the same place of the body."""
        if self._settling:
            return
        before, now = self._shape_of(change["old"]), self._shape_of(self.scale)
        place = same_place(self.slices.voxel, before, now)
        with self._drawn_later():
            self.slices.boxes = ()
            self.slices.scene = self._scene_of(self.class_name, self.scale)
            self.slices.look_at(place)
            self._offer_pairs()
        self._pick()

    @traitlets.observe("class_name")
    def _show_class(self, _change: Any) -> None:
        if self._settling:
            return
        with self._drawn_later():
            self.slices.scene = self._scene_of(self.class_name, self.scale)
        self._pick(self.window)

    @traitlets.observe("direction")
    def _turn_round(self, _change: Any) -> None:
        if self._settling:
            return
        with self._drawn_later():
            self._offer_pairs()
        self._look()

    @traitlets.observe("stage", "pair")
    def _look_again(self, _change: Any) -> None:
        if not self._settling:
            self._look()

    @traitlets.observe("window")
    def _enter_window(self, _change: Any) -> None:
        if not self._settling and self.window is not None:
            self._go_to(self.window)

    def _go_to(self, number: int) -> None:
        """Bring the cursor to the middle of a window, as far as it lies in the volume."""
        start, sides = self._box_of(number)
        ran_on = self.step.run.seen.shape
        x, y, z = (
            (a + min(a + n, most)) // 2 for a, n, most in zip(start, sides, ran_on, strict=True)
        )
        with self._drawn_later():
            self.slices.look_at(same_place((x, y, z), ran_on, self._shape_of(self.scale)))
        self._pick(number)

    def _cursor_moved(self, _change: Any) -> None:
        if not self._settling:
            self._pick()

    def _box_selected(self, _change: Any) -> None:
        if not self._settling and self.slices.selected is not None:
            self._go_to(self._boxed[self.slices.selected])

    @contextmanager
    def _drawn_later(self) -> Iterator[None]:
        """Let several traits change before anything follows from them."""
        self._settling = True
        try:
            yield
        finally:
            self._settling = False

    def _offer_pairs(self) -> None:
        """Offer the pairs that can ask, or lie under the mean; keep the one that is shown."""
        feeds_back = self.direction == TARGET_TO_CONTEXT and self.scale > 1
        pairs = (*self.step.pairs, *([AUTOREGRESSIVE] if feeds_back else []))
        if self.pair not in pairs:
            self.pair = pairs[0]
        self.pairs = pairs

    def _pick(self, wanted: int | None = None) -> None:
        """Find the window and the block over the cursor, of several windows the wanted one."""
        ran_on = self.step.run.seen.shape
        place = same_place(self.slices.voxel, self._shape_of(self.scale), ran_on)
        found = windows_over(self.attention, self.scale, place)
        if not found:
            self._miss()
            return
        number = wanted if wanted in found else found[0]
        start, _ = self._box_of(number)
        x, y, z = (at - first for at, first in zip(place, start, strict=True))
        self._missed, self._place = "", (x, y, z)
        with self._drawn_later():
            self.window = number
            self._draw_boxes([number])
        self._look(follow=True)

    def _miss(self) -> None:
        """Tell that nothing was recorded over the cursor, and show where something was."""
        windows = self.windows
        if windows:
            self._missed = (
                f"no window over this voxel was recorded; those of scale {self.scale} are "
                f"{windows}, drawn as boxes"
            )
        else:
            scales = sorted({int(scale) for scale in self.attention.scale.values})
            self._missed = f"no window of scale {self.scale} was recorded, only of {scales}"
        with self._drawn_later():
            self._draw_boxes(windows)
            if self.window not in windows:
                self.window = self.query = self.maps = None
        self.problem, self.caption = self._missed, self._say()

    def _draw_boxes(self, windows: list[int]) -> None:
        display = self.slices.scene.display
        self._boxed = windows
        self.slices.boxes = tuple(
            box_of_window(self.step, display, self._local(number), f"window {number}")
            for number in windows
        )
        self.slices.selected = None

    def _look(self, *, follow: bool = False) -> None:
        """Show where the block looks; `follow` brings the planes to it."""
        if self.window is None:
            return
        blocks = self._blocks()
        self.query = int(blocks[self._place])
        self._weights = self._read_weights(self.query)
        self.caption = self._say()
        try:
            scene = self._window_scene(blocks)
        except InputError as error:  # a volume that is no longer what the run read
            self.maps, self.problem = None, str(error)
            return
        self.problem = self._missed or self._blank()
        if self.maps is None:
            self.maps = SliceState(scene, cursor=self._place, opacity=OPACITY)
            return
        self.maps.scene = scene
        if follow:
            self.maps.cursor = self._place

    def _blank(self) -> str:
        """Say why nothing was recorded of this block; empty where something was."""
        assert self.window is not None
        if np.isfinite(self._weights).any():
            return ""
        if not self._record_of(self.window).context_to_target.notnull().any():
            return f"window {self.window} was skipped as empty: there is no attention in it"
        return f"at stage {self.stage} the {self.asks} takes nothing from the {self.looks_at[0]}"

    def _say(self) -> str:
        """Say in a few words which block is shown, and where it looks most."""
        if self.window is None or self.query is None:
            return f"scale {self.scale} of {self.scales}"
        said = (
            f"scale {self.scale} of {self.scales}, window {self.window}, stage {self.stage}: "
            f"block {self.query} of the {self.asks}"
        )
        found = self.strongest
        if found is None:
            return said
        at, key, weight = found
        shares = np.nansum(self._weights, 1)
        maps = [
            name if len(shares) == 1 else f"{name} ({share:.0%})"
            for name, share in zip(self.looks_at, shares, strict=True)
        ]
        block = "the block at its own place" if key == self.query else f"block {key}"
        of = f" of the {self.looks_at[at]}" if len(maps) > 1 else ""
        even = 1 / np.isfinite(self._weights).sum()
        return (
            f"{said} looks at the {' and the '.join(maps)}, most at {block}{of}: {weight:.2g} "
            f"({even:.2g} if it looked everywhere alike)"
        )

    # --- reading ---------------------------------------------------------------------------

    def _shape_of(self, scale: int) -> Shape:
        x, y, z = self._steps[self.class_name, scale].image.shape
        return x, y, z

    def _local(self, number: int) -> int:
        """Return a window's place among those of its scale."""
        name = self.class_name
        return number - sum(len(self._steps[name, s].windows) for s in range(1, self.scale))

    def _box_of(self, number: int) -> tuple[Shape, Shape]:
        window = self.step.windows[self._local(number)]
        return window.start, window.sides

    def _record_of(self, number: int) -> xr.Dataset:
        """Return what was recorded of a window for the shown class."""
        here = self.attention.sel(window=number)
        return here.isel({"class": self.step.question}) if "class" in here.dims else here

    def _blocks(self) -> NDArray[np.int64]:
        assert self.window is not None
        return block_numbers(self.attention, self._box_of(self.window)[1], self.stage)

    def _read_weights(self, query: int) -> NDArray[np.float32]:
        """Return (map, key) weights of a block, a row for each of `looks_at`."""
        assert self.window is not None
        here = self._record_of(self.window).isel(stage=self.stage, query=query)
        if self.direction == CONTEXT_TO_TARGET:
            sources = [SEMANTIC, AUTOREGRESSIVE][: len(self.looks_at)]
            return here.context_to_target.sel(source=sources).values.astype(np.float32)
        row = -1 if self.pair == AUTOREGRESSIVE else self.step.pairs.index(self.pair)
        return here.target_to_context.isel(pair=[row]).values.astype(np.float32)

    def _read_crops(self, class_name: str, scale: int, local: int) -> WindowCrops:
        return self._steps[class_name, scale].read_window(local)

    def _make_scene(self, class_name: str, scale: int) -> Scene:
        step = self._steps[class_name, scale]
        display = Display.of(grid_of(step.image))
        grey = grey_layer(display, step.image, name="scan", window=(0, 1))
        return Scene(display, (Panel("target", (grey,)),))

    def _window_scene(self, blocks: NDArray[np.int64]) -> Scene:
        assert self.window is not None
        crops = self._crops_of(self.class_name, self.scale, self._local(self.window))
        display = Display.of(grid_of_window(self.step, crops))
        if self.pair == AUTOREGRESSIVE:
            assert crops.ar_image is not None  # it asks only after the first scale
            of_pair = crops.ar_image
        else:
            of_pair = crops.context_images[self.step.pairs.index(self.pair)]
        if self.direction == TARGET_TO_CONTEXT:
            asking, seen = of_pair, [crops.target]
        else:
            asking, seen = crops.target, [of_pair]
            if crops.ar_image is not None:
                seen.append(crops.ar_image)
        marked = label_layer(display, (blocks == self.query).astype(np.uint8), (ASKS,), name="asks")
        grey = grey_layer(display, asking, name="image", window=(0, 1))
        panels = [Panel(f"asks: {self.asks}", (grey, marked))]
        # Maps that share the attention share its scale of colours.
        most = float(f"{np.nan_to_num(self._weights).max():.3g}") or 1.0
        under = f" (picture: {self.pair})" if len(self.step.pairs) > 1 else ""
        titles = [f"looks at: {name}" for name in self.looks_at]
        if self.direction == CONTEXT_TO_TARGET:
            titles[0] += under
        for title, image, weights in zip(titles, seen, self._weights, strict=True):
            grey = grey_layer(display, image, name="image", window=(0, 1))
            painted = np.nan_to_num(weights)[blocks]
            heat = heat_layer(display, painted, name="attention", limits=(0.0, most))
            panels.append(Panel(title, (grey, heat)))
        return Scene(display, tuple(panels))


def _recorded(prediction: Prediction) -> xr.Dataset:
    """Return where the blocks of a run looked.

    Raises
    ------
    InputError : nothing of it was recorded; says why.
    """
    if not prediction.steps:
        raise InputError(
            "this run was not recorded; predict with record=True to see where it looks"
        )
    if prediction.attention is None:
        raise InputError(
            "the network of this run has no attention that could be recorded; Medverse's has"
        )
    if not prediction.attention.sizes["window"]:
        raise InputError(
            'no window was recorded; predict with record=True, or name some: {"windows": [0]}'
        )
    return prediction.attention
