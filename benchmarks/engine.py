"""What the engine costs beside the network: time, workers, memory and seams.

    python benchmarks/engine.py overhead | workers | memory --folder DIR | estimate | skip | seams

Each records an entry `engine_NAME`. Volumes are smooth noise, the context's sides 5% smaller
than the target's, so that windows are resampled as with scans of two people. Times are meant
for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import xarray as xr
from kept_rows import KeptRows, Row
from numpy.typing import NDArray
from record import RESULTS, record
from torch import Tensor

import medverse_nb as mv
from medverse_nb import stored
from medverse_nb.geometry import Shape
from medverse_nb.inference import engine
from medverse_nb.inference.autoregressive import run
from medverse_nb.inference.blending import SIGMA_SHARE, SMALLEST_WEIGHT
from medverse_nb.inference.crops import Crops, ScaleVolumes
from medverse_nb.inference.inputs import PairInputs
from medverse_nb.inference.plan import Chunk, plan_scale
from medverse_nb.inference.recipe import Recipe, Settings, choose_recipe
from medverse_nb.inference.runner import WindowRunner
from medverse_nb.inference.schedule import scale_count
from medverse_nb.inference.storage import MemoryStore
from medverse_nb.inference.windows import Window, plan_windows
from medverse_nb.model.network import Pairs
from medverse_nb.placement import CanonicalVolume
from medverse_nb.regions import View, read
from medverse_nb.resampling import FloatArray
from medverse_nb.scratch import VARIABLE
from medverse_nb.stored import LAZY_CHUNK
from medverse_nb.views import Mapped, as_dask, clipped, resized
from medverse_nb.volume import make_volume

GRAIN = 16  # voxels between two random numbers of the noise
CONTEXT_SIDE = 0.95  # of the target's
LEAST_TIMED, MOST_REPEATS = 24, 10  # windows of a scale
WORKERS = {1: "1 worker", 2: "2 workers"}


# Smooth noise, and sessions that know some of it.


def draw_image(shape: Shape, seed: int) -> View:
    """Return an int16 image of smooth noise, computed where it is read."""
    coarse = [max(2, side // GRAIN) for side in shape]
    noise = np.random.default_rng(seed).integers(0, 1000, coarse).astype(np.float32)
    return Mapped(resized(noise, shape), _to_int16)


def draw_label(shape: Shape, seed: int) -> View:
    """Return the uint8 label of the image of that seed: its brighter parts."""
    return Mapped(draw_image(shape, seed), _brighter)


def _to_int16(values: NDArray[Any]) -> NDArray[np.int16]:
    return values.astype(np.int16)


def _brighter(values: NDArray[Any]) -> NDArray[np.uint8]:
    return (values > 600).astype(np.uint8)


def context_shape(shape: Shape) -> Shape:
    """Return the shape of the context of a target of this shape."""
    x, y, z = (max(1, round(CONTEXT_SIDE * side)) for side in shape)
    return x, y, z


def in_memory(view: View) -> xr.DataArray:
    """Return a volume of 1 mm voxels in memory."""
    return make_volume(read(view), np.eye(4))


def open_session(shape: Shape, pairs: int, **options: Any) -> mv.ICLSession:
    """Return a session with pairs in memory for targets of this shape."""
    session = mv.ICLSession(**options)
    sides = context_shape(shape)
    for seed in range(1, pairs + 1):
        image, label = draw_image(sides, seed), draw_label(sides, seed)
        session.add_context(in_memory(image), in_memory(label), name=str(seed))
    return session


def inputs_of(session: mv.ICLSession, target: Any, values: Sequence[int] = (1,)) -> PairInputs:
    """Return what `session.predict` of these classes runs on."""
    scan = CanonicalVolume.of(mv.read_volume(target)).scaled()
    wanted = [(value,) for value in values]
    return PairInputs(scan.view, scan.grid, session.context.pairs, session.align, wanted)


def show(rows: dict[str, Row]) -> None:
    """Print a table."""
    width = max(map(len, rows))
    keys = list(next(iter(rows.values())))
    print(" " * width, *keys, sep="  ")
    for name, row in rows.items():
        print(f"{name:{width}}", *(f"{row[key]!s:>{len(key)}}" for key in keys), sep="  ")


# Overhead.


def measure_overhead(args: argparse.Namespace) -> Row:
    """Return seconds a window of whole runs, and where they go.

    One thread gives the shares, since up to 8 pairs nothing overlaps there (more are read while
    the network runs): network is the forward pass, reading is `Crops.read` and what a scale
    reads at its beginning, the rest is the engine's.
    As many threads as the engine has give the seconds a user waits. Medians of `--rounds`
    through all volumes, since the machine's own pace drifts by more than a run takes.
    """
    sides = [side for side in (64, 96, 128, 192, 256, 384, 512) if side <= args.largest]
    rounds: dict[str, list[Row]] = {}
    rows: dict[str, Row] = {}
    for _ in range(args.rounds):
        for pairs, side in itertools.product(args.pairs, sides):
            row = time_run(side, pairs, args.windows, args.processor_time)
            rounds.setdefault(f"{side}^3, {pairs} pairs", []).append(row)
            rows = {name: medians(found) for name, found in rounds.items()}
            show(rows)
    spread = {}
    for pairs in args.pairs:
        seconds = [row["fed_ms"] for name, row in rows.items() if name.endswith(f", {pairs} pairs")]
        spread[f"{pairs} pairs"] = round(max(seconds) / min(seconds) - 1, 3)
    print("slowest over fastest, less one:", spread)
    return {
        "clock": "processor" if args.processor_time else "wall",
        "rounds": args.rounds,
        "spread": spread,
        "rows": rows,
    }


def medians(found: Sequence[Row]) -> Row:
    """Return the median of each figure, the lower one of two, so that counts stay whole."""
    return {key: statistics.median_low(row[key] for row in found) for key in found[0]}


def time_run(side: int, pairs: int, most: int, processor_time: bool) -> Row:
    """Return milliseconds a window over all scales of a run, from `most` windows of each.

    `fed_ms` is that of the scales after the first, whose windows have an answer fed back; so
    that every volume has such windows, the smallest ones have two scales too.
    """
    shape = (side, side, side)
    session = open_session(shape, pairs)
    inputs = inputs_of(session, in_memory(draw_image(shape, 0)))
    scales = max(2, scale_count(shape, session.network.config.window))
    settings = Settings(precision=session.precision, scales=scales)
    recipe = choose_recipe(session.network.config, shape, settings)
    runner = WindowRunner(session.network, settings.precision, settings.mini_context_size)
    now = time.process_time if processor_time else time.perf_counter
    total, windows, timed, fed = Counter[str](), 0, 0, 0
    for scale in range(1, recipe.scales + 1):
        started = now()
        volumes = scale_volumes(inputs, recipe, scale).kept(coarse=scale < recipe.scales)
        beginning = now() - started
        predict = engine.Predict(runner, volumes)
        plan = plan_windows(volumes.shape, recipe.window, settings.overlap)
        part, box = leading_part(plan, volumes.shape, most)
        one = time_part(predict, part, box, processor_time)
        total += Counter({name: seconds * len(plan) for name, seconds in one.items()})
        for name in ("wall", "alone", "reading"):
            total[name] += beginning
        windows += len(plan)
        timed += len(part)
        if scale > 1:
            total["fed"] += one["wall"] * len(plan) + beginning
            fed += len(plan)
    other = total["alone"] - total["network"] - total["reading"]
    return {
        "windows": windows,
        "timed": timed,
        "ms": round(1e3 * total["wall"] / windows, 1),
        "fed_ms": round(1e3 * total["fed"] / fed, 1),
        "one_thread_ms": round(1e3 * total["alone"] / windows, 1),
        "network_ms": round(1e3 * total["network"] / windows, 1),
        "reading_ms": round(1e3 * total["reading"] / windows, 2),
        "other_ms": round(1e3 * other / windows, 2),
        "of_that_blending_ms": round(1e3 * total["blending"] / windows, 2),
        "reading_of_network": round(total["reading"] / total["network"], 3),
        "other_of_network": round(other / total["network"], 3),
    }


def scale_volumes(inputs: PairInputs, recipe: Recipe, scale: int) -> ScaleVolumes:
    """Return what a scale reads; the answers fed back are noise."""
    shape, feedback = recipe.working(scale), None
    if scale > 1:
        coarser = recipe.level(scale - 1)
        answer = np.random.default_rng(0).random(coarser, dtype=np.float32)
        image = recipe.resize(inputs.target(coarser), shape)
        feedback = image, [clipped(recipe.resize(answer, shape)) for _ in inputs.wanted]
    return ScaleVolumes(inputs.target(shape), inputs.images(shape), inputs.labels(shape), feedback)


def leading_part(windows: Sequence[Window], shape: Shape, most: int) -> tuple[list[Window], Shape]:
    """Return `most` windows, about, that fill a box at the volume's beginning, and its shape."""
    starts = [sorted({window.start[axis] for window in windows}) for axis in range(3)]
    counts = [len(places) for places in starts]
    while math.prod(counts) > most:
        counts[counts.index(max(counts))] -= 1
    lasts = [places[count - 1] for places, count in zip(starts, counts, strict=True)]
    part = [w for w in windows if all(a <= b for a, b in zip(w.start, lasts, strict=True))]
    sides = windows[0].sides
    x, y, z = (min(n, last + s) for n, last, s in zip(shape, lasts, sides, strict=True))
    return part, (x, y, z)


def time_part(
    predict: engine.Predict, part: list[Window], box: Shape, processor_time: bool
) -> dict[str, float]:
    """Return seconds a window: `wall` with the engine's threads; `alone` and its parts with one."""
    now = time.process_time if processor_time else time.perf_counter
    inside = time.thread_time if processor_time else time.perf_counter
    repeats = min(MOST_REPEATS, math.ceil(LEAST_TIMED / len(part)))
    predict(part[:1])  # warm
    spent: Counter[str] = Counter()
    spent["wall"] = run_part(predict, part, box, repeats, time.perf_counter)
    with ExitStack() as patches:
        network = predict.runner.model
        for owner, name, what in (
            (network, "forward", "network"),
            (Crops, "read", "reading"),
            (engine, "blend", "blending"),
        ):
            counted = counting(getattr(owner, name), what, spent, inside)
            patches.enter_context(patch.object(owner, name, counted))
        patches.enter_context(patch.object(engine, "THREADS", 1))
        spent["alone"] = run_part(predict, part, box, repeats, now)
    return {name: seconds / (repeats * len(part)) for name, seconds in spent.items()}


def run_part(
    predict: engine.Predict, part: list[Window], box: Shape, repeats: int, now: Callable[[], float]
) -> float:
    """Run the windows of a box, as if it were the volume, and return the seconds."""
    store = MemoryStore((len(predict.volumes.labels), *box))

    def write(chunk: Chunk, voxels: FloatArray) -> None:
        store.write(chunk.number, (slice(None), *chunk.region), voxels)

    started = now()
    for _ in range(repeats):
        engine.run_threads(plan_scale(part, box, 1, store.has), predict, write, lambda _: None)
    return now() - started


def counting(
    function: Callable[..., Any], name: str, spent: Counter[str], now: Callable[[], float]
) -> Callable[..., Any]:
    """Return the function with its seconds added up."""

    def call(*args: Any, **options: Any) -> Any:
        started = now()
        result = function(*args, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent[name] += now() - started
        return result

    return call


# Workers.


def measure_workers(args: argparse.Namespace) -> Row:
    """Return the seconds of one prediction by workers of one thread each, median of a few."""
    shape = (args.side,) * 3
    target = in_memory(draw_image(shape, 0))
    rows, answers = {}, []
    for count, name in WORKERS.items():
        with workers(count) as client:
            session = open_session(shape, args.pairs, client=client)
            session.predict(target[:64, :64, :64])  # every worker has the network, and is warm
            seconds = []
            for _ in range(args.repeats):
                started = time.perf_counter()
                prediction = session.predict(target)
                seconds.append(time.perf_counter() - started)
            answers.append(prediction.probability.values)
        rows[name] = {"seconds": round(statistics.median(seconds), 2)}
        show(rows)
    equal = all(np.array_equal(answer, answers[0]) for answer in answers)
    ratio = round(rows[WORKERS[1]]["seconds"] / rows[WORKERS[2]]["seconds"], 2)
    print(f"ratio {ratio}, answers {'equal' if equal else 'DIFFER'}")
    return {
        "side": args.side,
        "pairs": args.pairs,
        "windows": sum(prediction.manifest["settings"]["windows"]),
        "ratio": ratio,
        "equal": equal,
        "rows": rows,
    }


@contextmanager
def workers(count: int) -> Iterator[Any]:
    """Start worker processes of one thread and yield their client."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


# Memory.


def measure_memory(args: argparse.Namespace) -> Row:
    """Return the peak memory of `session.predict` on files, each in a process of its own.

    A row is kept in `--folder` as soon as it is measured; new code needs a new folder.
    """
    args.folder.mkdir(parents=True, exist_ok=True)
    x, y, z = args.sides
    stub, real = [], ["--real"]
    asked = [
        ((x, y, z), args.pairs, stub), ((x, y, 2 * z), args.pairs, stub),
        ((x, y, z), args.many, stub), ((x, y, z), args.pairs, real),
    ]  # fmt: skip
    kept = KeptRows(args.folder / "memory.jsonl", {"loaded": args.loaded})
    rows: dict[str, Row] = {}
    for shape, pairs, network in asked[: None if args.real else -1]:
        name = f"{'x'.join(map(str, shape))}, {pairs} pairs{', shipped network' * len(network)}"
        if not kept.has(row=name):
            options = ["--folder", str(args.folder), "--sides", *map(str, shape)]
            run_self("write", *options, "--pairs", str(args.pairs))
            loaded = ["--loaded", str(args.loaded)]
            row = json.loads(run_self("peak", *options, "--pairs", str(pairs), *loaded, *network))
            kept.add([{"row": name, "measured": row}])
        (row,) = (row["measured"] for row in kept.rows if row["row"] == name)
        first = next(iter(rows.values()), row)
        rows[name] = row | {"of_first": round(row["peak_mb"] / first["peak_mb"], 3)}
        show(rows)
    return {"network": "a stub, but where a row names another", "rows": rows}


def run_self(*arguments: str) -> str:
    """Run a sub-command of this script in a fresh interpreter and return what it printed."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


def write_volumes(args: argparse.Namespace) -> None:
    """Write a target and its pairs as zarr, unless they are there.

    In a process of its own: a child's peak on Linux is no less than its parent's.
    """
    shape = tuple(args.sides)
    sides = context_shape(shape)
    volumes = {path_of(args.folder, shape, "target", 0): draw_image(shape, 0)}
    for seed in range(1, args.pairs + 1):
        volumes[path_of(args.folder, shape, "image", seed)] = draw_image(sides, seed)
        volumes[path_of(args.folder, shape, "label", seed)] = draw_label(sides, seed)
    for path, view in volumes.items():
        if not path.exists():
            mv.write_volume(make_volume(as_dask(view, LAZY_CHUNK), np.eye(4)), path)


def path_of(folder: Path, shape: Shape, what: str, number: int) -> Path:
    """Return the path of one of the volumes for targets of this shape."""
    return folder / f"{'x'.join(map(str, shape))}-{what}-{number}.zarr"


def measure_peak(args: argparse.Namespace) -> None:
    """Predict a written target, mostly with a network that answers at once; print the peak."""
    shape = tuple(args.sides)
    stored.LARGEST_LOADED = args.loaded
    os.environ[VARIABLE] = str(args.folder)
    session = mv.ICLSession()
    if not args.real:
        session.network.forward = take_all
    written = 0
    while path_of(args.folder, shape, "image", written + 1).exists():
        written += 1
    for number in range(1, args.pairs + 1):
        pair = [path_of(args.folder, shape, what, number) for what in ("image", "label")]
        for path in pair:  # beyond the last, those before it under other names
            if number > written and not path.is_symlink():
                again = path.name.replace(f"-{number}.", f"-{(number - 1) % written + 1}.")
                path.symlink_to(again)
        session.add_context(*pair, name=str(number))
    before = peak_mb()
    started = time.perf_counter()
    prediction = session.predict(path_of(args.folder, shape, "target", 0))
    row = {
        "windows": sum(prediction.manifest["settings"]["windows"]),
        "seconds": round(time.perf_counter() - started, 1),
        "before_mb": round(before),
        "peak_mb": round(peak_mb()),
    }
    print(json.dumps(row))


def take_all(target: Tensor, images: Pairs, labels: Pairs, *_: Any, **__: Any) -> Tensor:
    """Answer the target, after every pair was taken as a network takes it, one at a time."""
    for part in map(slice, range(images.shape[1]), range(1, images.shape[1] + 1)):
        torch.cat([images[:, part], labels[:, part]], dim=2)
    return target


def peak_mb() -> float:
    """Return the most memory this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


# What `estimate` tells.


def measure_estimate(args: argparse.Namespace) -> Row:
    """Return what `session.estimate` told over what the run took, each in a process of its own."""
    rows = {}
    for side, pairs in itertools.product(args.sides, args.pairs):
        told = run_self("told", "--side", str(side), "--pairs", str(pairs))
        rows[f"{side}^3, {pairs} pairs"] = json.loads(told)
        show(rows)
    return {"rows": rows}


def measure_told(args: argparse.Namespace) -> None:
    """Estimate a run, do it, and print both."""
    shape = (args.side,) * 3
    session = open_session(shape, args.pairs)
    target = in_memory(draw_image(shape, 0))
    told = session.estimate(target)
    started = time.perf_counter()
    _ = session.predict(target).mask
    seconds, peak = time.perf_counter() - started, peak_mb()
    row = {
        "told_s": round(told.seconds, 2),
        "seconds": round(seconds, 2),
        "of_seconds": round(told.seconds / seconds, 3),
        "told_mb": round(told.memory / 1e6),
        "peak_mb": round(peak),
        "of_peak": round(told.memory / 1e6 / peak, 3),
    }
    print(json.dumps(row))


# Windows that are not looked at again.


def measure_skip(args: argparse.Namespace) -> Row:
    """Return what `skip_empty` saves on a virtual abdomen, and what it costs in Dice, by organ."""
    target, *context = mv.datasets.phantom_cohort(args.pairs + 1, side=args.side)
    session = mv.ICLSession()
    for case in context:
        session.add_context(case.image, case.label, name=case.name)
    rows = {}
    for name in args.organs:
        value = mv.datasets.PHANTOM_CLASSES[name]
        row: Row = {}
        for key, skip in (("all", False), ("skip", True)):
            seconds = []
            for _ in range(args.repeats):
                started = time.perf_counter()
                prediction = session.predict(
                    target.image, classes={name: value}, skip_empty=skip, truth=target.label
                )
                seconds.append(time.perf_counter() - started)
            row[f"{key}_s"] = round(statistics.median(seconds), 2)
            row[f"{key}_dice"] = round(float(prediction.score["dice"].iloc[0]), 4)
        row["times"] = round(row["all_s"] / row["skip_s"], 2)
        row["windows"] = sum(prediction.manifest["settings"]["windows"])
        rows[name] = row
        show(rows)
    return {"side": args.side, "pairs": args.pairs, "rows": rows}


# Seams.


def measure_seams(args: argparse.Namespace) -> Row:
    """Return steps across window borders over those elsewhere, of the engine and of a reference."""
    target, *context = mv.datasets.demo_cohort(args.pairs + 1, spacing_mm=args.spacing)
    session = mv.ICLSession()
    for case in context:
        session.add_context(case.image, case.label, name=case.name)
    inputs = inputs_of(session, target.image, sorted(target.classes.values()))
    rows = {}
    for overlap in args.overlaps:
        settings = Settings(overlap=overlap, precision=session.precision)
        last = run(session.network, inputs, settings)[-1]
        ours = np.stack([read(view) for view in last.predictions])
        theirs = predict_whole(session.network, inputs, settings)
        rows[f"overlap {overlap:g}"] = {
            "windows": len(last.windows),
            "engine": round(seam(ours, last.windows), 4),
            "reference": round(seam(theirs, last.windows), 4),
            "largest_difference": float(f"{np.abs(ours - theirs).max():.2g}"),
        }
        show(rows)
    return {"shape": list(inputs.shape), "pairs": args.pairs, "rows": rows}


def seam(answer: FloatArray, windows: Sequence[Window]) -> float:
    """Return the mean step from voxel to voxel across window borders over that elsewhere.

    answer : (K, X, Y, Z). Smooth noise has 1, visible seams have more.
    """
    across, elsewhere = [], []
    for axis, size in enumerate(answer.shape[1:]):
        steps = np.abs(np.diff(answer, axis=axis + 1))
        sides = {side for w in windows for side in (w.region[axis].start, w.region[axis].stop)}
        borders = sorted(side - 1 for side in sides if 0 < side < size)
        others = sorted(set(range(size - 1)) - set(borders))
        across.append(np.take(steps, borders, axis=axis + 1).ravel())
        elsewhere.append(np.take(steps, others, axis=axis + 1).ravel())
    return float(np.concatenate(across).mean() / np.concatenate(elsewhere).mean())


def predict_whole(network: Any, inputs: PairInputs, settings: Settings) -> FloatArray:
    """Predict with every volume whole in memory and all windows blended at once: (K, X, Y, Z)."""
    recipe = choose_recipe(network.config, inputs.shape, settings)
    runner = WindowRunner(network, settings.precision, settings.mini_context_size)
    feedback = None
    for scale in range(1, recipe.scales + 1):
        shape = recipe.working(scale)
        if feedback is not None:
            image, answers = feedback
            larger = [read(clipped(recipe.resize(answer, shape))) for answer in answers]
            feedback = read(recipe.resize(image, shape)), np.stack(larger)
        target = read(inputs.target(shape))
        images = np.stack([read(view) for view in inputs.images(shape)])
        labels = np.stack([[read(view) for view in views] for views in inputs.labels(shape)])
        windows = plan_windows(shape, recipe.window, settings.overlap)
        answers = blend_whole(runner, windows, target, images, labels, feedback)
        feedback = target, answers
    return answers


def blend_whole(
    runner: WindowRunner,
    windows: Sequence[Window],
    target: FloatArray,
    images: FloatArray,
    labels: FloatArray,
    feedback: tuple[FloatArray, FloatArray] | None,
) -> FloatArray:
    """Return the Gaussian mean of all windows' answers, in float64 on whole arrays (K, X, Y, Z).

    target, images, labels, feedback : (X, Y, Z), (L, X, Y, Z), (K, L, X, Y, Z), and, fed back,
        (X, Y, Z) and (K, X, Y, Z).
    """
    shape, sides = target.shape, windows[0].sides
    margins = [(0, max(0, side - n)) for n, side in zip(shape, sides, strict=True)]

    def pad(volumes: FloatArray) -> FloatArray:
        return np.pad(volumes, [(0, 0)] * (volumes.ndim - 3) + margins)

    target, images, labels = pad(target), pad(images), pad(labels)
    fed = feedback and [pad(volumes) for volumes in feedback]
    total, weight = np.zeros((len(labels), *target.shape)), np.zeros(target.shape)
    offsets = [(np.arange(n) - (n - 1) / 2) / (SIGMA_SHARE * n) for n in sides]
    squares = sum(offset**2 for offset in np.meshgrid(*offsets, indexing="ij"))
    gaussian = np.maximum(np.exp(-0.5 * squares), SMALLEST_WEIGHT)
    for window in windows:
        box = (..., *window.region)
        context = [(images[box][None], label[box][None]) for label in labels]
        coarser = fed and (fed[0][box][None], fed[1][box][:, None])
        answers = runner(Crops(target[box][None], context, coarser))
        total[box] += gaussian * answers[:, 0]
        weight[box] += gaussian
    x, y, z = shape
    return (total / weight)[:, :x, :y, :z]


def main() -> None:
    """Measure one thing, print it and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to record in")
    commands = parser.add_subparsers(dest="command", required=True)

    overhead = commands.add_parser("overhead", help="seconds a window, and where they go")
    overhead.add_argument("--largest", type=int, default=384, help="side of the largest volume")
    overhead.add_argument("--pairs", type=int, nargs="+", default=[1, 8])
    overhead.add_argument("--rounds", type=int, default=1, help="through all volumes")
    overhead.add_argument("--windows", type=int, default=512, help="most that are run of a scale")
    overhead.add_argument(
        "--processor-time",
        action="store_true",
        help="shares in processor seconds, for a busy machine; with OMP_NUM_THREADS=1",
    )

    spread = commands.add_parser("workers", help="one prediction by one worker and by two")
    spread.add_argument("--side", type=int, default=160)
    spread.add_argument("--pairs", type=int, default=4)
    spread.add_argument("--repeats", type=int, default=3)

    memory = commands.add_parser(
        "memory", help="peak memory of a volume, one of twice the size, and more pairs"
    )
    write = commands.add_parser("write", help="what memory does first: write the volumes")
    peak = commands.add_parser("peak", help="what memory does of every row")
    for command in (memory, write, peak):
        command.add_argument("--folder", type=Path, required=True, help="keeps the volumes")
        command.add_argument("--sides", type=int, nargs=3, default=[512, 512, 400])
        command.add_argument("--pairs", type=int, default=8)
    memory.add_argument("--many", type=int, default=32, help="pairs of the last row")
    for command in (memory, peak):
        command.add_argument(
            "--real", action="store_true", help="the shipped network; memory: in one more row"
        )
        command.add_argument(
            "--loaded", type=int, default=stored.LARGEST_LOADED,
            help="bytes; larger volumes stay in their files. For small trials",
        )  # fmt: skip

    estimate = commands.add_parser("estimate", help="what was told over what it took")
    estimate.add_argument("--sides", type=int, nargs="+", default=[64, 128, 192])
    estimate.add_argument("--pairs", type=int, nargs="+", default=[1, 8])
    told = commands.add_parser("told", help="what estimate does of every row")
    told.add_argument("--side", type=int, required=True)
    told.add_argument("--pairs", type=int, required=True)

    skip = commands.add_parser("skip", help="what skip_empty saves, and what it costs")
    skip.add_argument("--side", type=int, default=160)
    skip.add_argument("--pairs", type=int, default=4)
    skip.add_argument("--repeats", type=int, default=3)
    skip.add_argument("--organs", nargs="+", default=["liver", "spleen", "left kidney"])

    seams = commands.add_parser("seams", help="steps across window borders")
    seams.add_argument("--pairs", type=int, default=3)
    seams.add_argument("--spacing", type=float, default=2.0, help="of the heads, in mm")
    seams.add_argument("--overlaps", type=float, nargs="+", default=[0, 0.1, 0.25])

    args = parser.parse_args()
    alone = {"write": write_volumes, "peak": measure_peak, "told": measure_told}
    if args.command in alone:
        alone[args.command](args)
        return
    measures = {
        "overhead": measure_overhead,
        "workers": measure_workers,
        "memory": measure_memory,
        "estimate": measure_estimate,
        "skip": measure_skip,
        "seams": measure_seams,
    }
    record(f"engine_{args.command}", measures[args.command](args), args.results)


if __name__ == "__main__":
    main()
