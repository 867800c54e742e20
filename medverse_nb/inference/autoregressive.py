"""Next-scale autoregressive inference: predict coarse, feed it back, refine by windows.

Source: Medverse section "Next-Scale Autoregressive ICL", Eqs. 2-4. Two recipes: our own,
which pads thin axes and keeps their resolution, and `compat="released"`, which follows
the released code to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import Shape
from ..model.config import Precision
from ..model.network import ICLNetwork
from ..resampling import FloatArray, resize
from .blending import Blender
from .runner import WindowRunner
from .schedule import scale_count, scale_shape
from .windows import Window, plan_windows

Compat = Literal["released"] | None
OnProgress = Callable[[int, int, int, int], None]  # scale, scales, windows done, windows


@dataclass(frozen=True)
class Step:
    """One scale of a run: its input, its answer and its windows."""

    scale: int
    image: FloatArray  # (X_t, Y_t, Z_t) target at this scale, in [0, 1]
    prediction: FloatArray  # (X_t, Y_t, Z_t) in label units
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Settings:
    """How a run is done; `None` lets the recipe choose.

    window : side of the windows, a multiple of the network's; None for the network's own.
    overlap : of neighbouring windows, in [0, 1).
    scales : T; None for Medverse Eq. 3, or, without an autoregressive branch, for one pass over
        the volume resized to the window. 1 is a direct sliding window for every network.
    mini_context_size : pairs in one pass; None chooses by free memory.
    compat : "released" for the released recipe.
    """

    window: int | None = None
    overlap: float = 0.1
    scales: int | None = None
    mini_context_size: int | None = None
    compat: Compat = None
    precision: Precision = "float32"
    batch: int = 1


@dataclass(frozen=True)
class _Recipe:
    """What differs between our inference and the released one."""

    shape: Shape  # full resolution, padding included
    scales: int
    window: int
    whole: bool  # one pass over the volume resized to the window
    released: bool

    def level(self, scale: int) -> Shape:
        return scale_shape(self.shape, scale, self.scales, None if self.released else self.window)

    def working(self, scale: int) -> Shape:
        """Return the shape the windows run on."""
        level = self.level(scale)
        too_small = self.released and min(level) < self.window
        return (self.window,) * 3 if self.whole or too_small else level

    def resize(self, volume: NDArray[Any], shape: Shape) -> FloatArray:
        if volume.shape[-3:] == shape:
            return np.asarray(volume, np.float32)
        return resize(volume, shape, align_corners=self.released, antialias=not self.released)


def predict_array(
    model: ICLNetwork,
    target: Any,
    context_image: Any,
    context_label: Any,
    *,
    window: int | None = None,
    overlap: float = 0.1,
    scales: int | None = None,
    mini_context_size: int | None = None,
    compat: Compat = None,
) -> FloatArray:
    """Predict the target's label at full resolution from arrays that share one grid.

    Parameters
    ----------
    model : from `load_model`; it runs where its weights are, in float32.
    target : (X, Y, Z), NumPy or dask, in [0, 1]; no intensity scaling is done here.
    context_image, context_label : (L, X, Y, Z), L >= 1.
    window, overlap, scales, mini_context_size, compat : see `Settings`.

    Returns
    -------
    (X, Y, Z) float32 in label units; a mask is where it exceeds 0.5.

    Raises
    ------
    InputError : shapes that differ, no context, non-finite values, a setting out of range.

    Source: Medverse Eqs. 2-4; `compat="released"`: the released inference script.
    """
    settings = Settings(window, overlap, scales, mini_context_size, compat)
    return run(model, target, context_image, context_label, settings)[-1].prediction


def run(
    model: ICLNetwork,
    target: Any,
    context_image: Any,
    context_label: Any,
    settings: Settings,
    *,
    on_progress: OnProgress | None = None,
) -> list[Step]:
    """Run all scales and return one `Step` each; the last is the answer at full resolution."""
    target, image, label = (
        np.asarray(a, np.float32) for a in (target, context_image, context_label)
    )
    _check(target, image, label)
    shape: Shape = target.shape
    recipe = _choose_recipe(model, shape, settings)
    target, image, label = (_pad_end(a, recipe.shape) for a in (target, image, label))
    runner = WindowRunner(model, settings.precision, settings.mini_context_size)
    steps: list[Step] = []
    for scale in range(1, recipe.scales + 1):
        working = recipe.working(scale)
        volumes = _Volumes(
            target=recipe.resize(target, working),
            context=np.stack([recipe.resize(image, working), recipe.resize(label, working)], 1),
            feedback=_feedback(recipe, steps[-1], working) if steps else None,
        )
        windows = plan_windows(working, recipe.window, settings.overlap)
        blender = Blender(working)
        for done, (batch, predictions) in enumerate(
            _predict_windows(runner, volumes, windows, settings.batch), 1
        ):
            for one, prediction in zip(batch, predictions, strict=True):
                blender.add(one, prediction)
            if on_progress:
                count = min(done * settings.batch, len(windows))
                on_progress(scale, recipe.scales, count, len(windows))
        level = recipe.level(scale)
        seen, prediction = (
            recipe.resize(volumes.target, level),
            recipe.resize(blender.result(), level),
        )
        steps.append(Step(scale, seen, prediction, tuple(windows)))
    inside = tuple(slice(0, side) for side in shape)
    steps[-1] = replace(steps[-1], image=target[inside], prediction=steps[-1].prediction[inside])
    return steps


@dataclass(frozen=True)
class _Volumes:
    """Everything one scale reads: target (X, Y, Z), context (L, 2, X, Y, Z), feedback (2, X, Y, Z)."""

    target: FloatArray
    context: FloatArray
    feedback: FloatArray | None


def _feedback(recipe: _Recipe, last: Step, shape: Shape) -> FloatArray:
    """Return the autoregressive pair: the coarser scale's image and prediction, enlarged."""
    label = np.clip(recipe.resize(last.prediction, shape), 0, 1)
    return np.stack([recipe.resize(last.image, shape), label])


def _predict_windows(
    runner: WindowRunner, volumes: _Volumes, windows: list[Window], batch: int
) -> Iterator[tuple[list[Window], FloatArray]]:
    for start in range(0, len(windows), batch):
        chosen = windows[start : start + batch]
        yield (
            chosen,
            runner(
                np.stack([crop(volumes.target, w) for w in chosen]),
                np.stack([crop(volumes.context, w) for w in chosen]),
                None
                if volumes.feedback is None
                else np.stack([crop(volumes.feedback, w) for w in chosen]),
            ),
        )


def crop(volume: FloatArray, window: Window) -> FloatArray:
    """Cut a window out of (..., X, Y, Z); what lies beyond the end is zero."""
    return _pad_end(volume[(Ellipsis, *window.region)], window.sides)


def _pad_end(volume: FloatArray, shape: Shape) -> FloatArray:
    missing = [max(0, n - have) for n, have in zip(shape, volume.shape[-3:], strict=True)]
    if not any(missing):
        return volume
    return np.pad(volume, [(0, 0)] * (volume.ndim - 3) + [(0, n) for n in missing])


def _choose_recipe(model: ICLNetwork, shape: Shape, settings: Settings) -> _Recipe:
    config = model.config
    window = config.window if settings.window is None else settings.window
    if not isinstance(window, Integral) or window < 1 or window % config.multiple:
        raise InputError(
            f"window={window} must be an integer multiple of {config.multiple} for this network; "
            f"it was trained on {config.window}"
        )
    if settings.compat not in (None, "released"):
        raise InputError(f'compat={settings.compat!r} is not None or "released"')
    released = settings.compat == "released"
    if not config.autoregressive:
        if settings.scales not in (None, 1):
            raise InputError(
                f"{config.architecture} has no autoregressive branch: scales={settings.scales} "
                "must be 1"
            )
        return _Recipe(shape, 1, window, whole=settings.scales is None, released=released)
    scales = scale_count(shape, window) if settings.scales is None else settings.scales
    if not isinstance(scales, Integral) or not 1 <= scales <= 12:
        raise InputError(f"scales must be an integer in 1..12, got {scales}")
    if released:
        step = 2 ** (scales - 1)
        x, y, z = (-(-side // step) * step for side in shape)
        shape = (x, y, z)
    return _Recipe(shape, scales, window, whole=False, released=released)


def _check(target: FloatArray, image: FloatArray, label: FloatArray) -> None:
    if target.ndim != 3 or 0 in target.shape:
        raise InputError(f"target must be (X, Y, Z) and not empty, got {target.shape}")
    for name, array in (("context_image", image), ("context_label", label)):
        if array.ndim != 4 or array.shape[1:] != target.shape:
            raise InputError(
                f"{name} must be (L, X, Y, Z) on the target's grid {target.shape}, got {array.shape}"
            )
    if len(image) == 0 or len(image) != len(label):
        raise InputError(f"needs L >= 1 pairs, got {len(image)} images and {len(label)} labels")
    for name, array in (("target", target), ("context_image", image), ("context_label", label)):
        if not np.isfinite(array).all():
            raise InputError(f"{name} has non-finite values")
