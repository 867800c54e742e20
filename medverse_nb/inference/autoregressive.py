"""Next-scale autoregressive inference: predict coarse, feed it back, refine by windows.

Source: Medverse section "Next-Scale Autoregressive ICL", Eqs. 2-4.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..geometry import Shape
from ..model.network import ICLNetwork
from ..regions import View, read
from ..resampling import FloatArray
from ..views import Part, clipped
from .crops import ScaleVolumes
from .engine import Executor, Predict, run_scale, run_threads
from .inputs import ArrayInputs, Inputs
from .plan import stored_sides
from .recipe import Compat, Recipe, Settings, choose_recipe
from .recorder import Recorder
from .runner import WindowRunner
from .storage import Storage, Store, in_memory
from .windows import Window, plan_windows

OnProgress = Callable[[int, int, int, int], None]  # scale, scales, windows done, windows


@dataclass(frozen=True)
class Step:
    """One scale of a run: what it saw, its K answers and its windows.

    image : (X_t, Y_t, Z_t) the target at this scale, in [0, 1].
    predictions : K volumes (X_t, Y_t, Z_t) in label units.
    windows, seen, blended : where the windows lay, what they read, and their K blended answers;
        all on the shape the windows ran on, which the released recipe may enlarge.
    """

    scale: int
    image: View
    predictions: tuple[View, ...]
    windows: tuple[Window, ...]
    seen: ScaleVolumes
    blended: tuple[View, ...]


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
    inputs = take_arrays(model, target, context_image, context_label, settings)
    prediction = read(run(model, inputs, settings)[-1].predictions[0])
    x, y, z = inputs.array.shape
    result: FloatArray = prediction[:x, :y, :z]
    return result


def take_arrays(
    model: ICLNetwork, target: Any, context_image: Any, context_label: Any, settings: Settings
) -> ArrayInputs:
    """Check arrays and make them the inputs of a run.

    Raises
    ------
    InputError : as `predict_array`.
    """
    target, image, label = (
        a if hasattr(a, "shape") else np.asarray(a) for a in (target, context_image, context_label)
    )
    _check(target, image, label)
    return ArrayInputs(target, image, label, choose_recipe(model.config, target.shape, settings))


def run(
    model: ICLNetwork,
    inputs: Inputs,
    settings: Settings,
    *,
    storage: Storage = in_memory,
    executor: Executor = run_threads,
    recorder: Recorder | None = None,
    on_progress: OnProgress | None = None,
) -> list[Step]:
    """Run all scales and return one `Step` each; the last is the answer at full resolution.

    Parameters
    ----------
    storage : where the answer of each scale, (K, X, Y, Z), is kept.
    executor : runs the plan of each scale; threads of this process, or a cluster.
    recorder : takes the attention of windows as they run; made for this run's `plan_run`.
    on_progress : called after each window, or batch of them; what it raises ends the run.

    Raises
    ------
    OutputError : no scratch space for what a coarser scale reads of large volumes.
    """
    recipe = choose_recipe(model.config, inputs.shape, settings)
    runner = WindowRunner(model, settings.precision, settings.mini_context_size)
    steps: list[Step] = []
    for scale, windows in enumerate(plan_run(recipe, settings), 1):
        working = recipe.working(scale)
        seen = ScaleVolumes(
            inputs.target(working),
            inputs.images(working),
            inputs.labels(working),
            _feedback(recipe, steps[-1], working) if steps else None,
        )
        volumes = seen.kept(coarse=scale < recipe.scales)
        store = storage(scale, (len(volumes.labels), *working), stored_sides(windows))

        def report(done: int, scale: int = scale, count: int = len(windows)) -> None:
            if on_progress:
                on_progress(scale, recipe.scales, done, count)

        predict = Predict(runner, volumes, settings.skip_empty)
        with recorder.watching(predict, scale) if recorder else nullcontext(predict) as predict:
            run_scale(predict, windows, store, settings.batch, report, executor)
        steps.append(_step(recipe, scale, seen, volumes.target, store, windows))
    steps[-1] = replace(steps[-1], image=inputs.target(recipe.level(recipe.scales)))
    return steps


def plan_run(recipe: Recipe, settings: Settings) -> list[list[Window]]:
    """Return the windows of every scale of a run, coarsest first."""
    scales = range(1, recipe.scales + 1)
    return [plan_windows(recipe.working(t), recipe.window, settings.overlap) for t in scales]


def _step(
    recipe: Recipe,
    scale: int,
    seen: ScaleVolumes,
    target: View,
    store: Store,
    windows: list[Window],
) -> Step:
    """Return a finished scale at its own shape, which may not be what its windows ran on."""
    level = recipe.level(scale)
    blended = tuple(Part(store, k) for k in range(store.shape[0]))
    answers = tuple(recipe.resize(answer, level) for answer in blended)
    return Step(scale, recipe.resize(target, level), answers, tuple(windows), seen, blended)


def _feedback(recipe: Recipe, last: Step, shape: Shape) -> tuple[View, list[View]]:
    """Return the coarser scale's image and its predictions, enlarged."""
    return (
        recipe.resize(last.image, shape),
        [clipped(recipe.resize(prediction, shape)) for prediction in last.predictions],
    )


def _check(target: Any, image: Any, label: Any) -> None:
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
