"""Against the released recipe: what it does, written out here, beside what we do.

    python benchmarks/released.py window | volume

`window` is one pass of the full-size network with random weights over a pair and a pair fed
back; `volume` is `medverse-tiny` from arrays to the answer at full resolution. The released
recipe is the same network in eager float32, its maps laid one after the other before every
pointwise convolution, with MONAI's sliding windows over one stack of target, pairs and
feedback at full resolution. Ours is what a session runs. They take turns; medians. Wanted of
bfloat16 on a CPU: three times the speed, an error of 3e-2 at most, a Dice of 0.995 or more.
Each command records an entry `released_NAME`.

Source: Medverse's released inference, as `medverse_nb.inference.recipe` follows it too.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from engine import Row, show
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from record import RESULTS, record
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medverse_nb.datasets import PHANTOM_CLASSES, phantom_cohort
from medverse_nb.geometry import Shape
from medverse_nb.inference.autoregressive import run, take_arrays
from medverse_nb.inference.crops import Crops
from medverse_nb.inference.recipe import Settings
from medverse_nb.inference.runner import WindowRunner
from medverse_nb.inference.schedule import scale_count
from medverse_nb.intensity import quantile_scale
from medverse_nb.model import apsp, attention
from medverse_nb.model.blocks import ResidualUnit, UpMerge
from medverse_nb.model.config import NetworkConfig, Partition, Precision
from medverse_nb.model.device import choose_device
from medverse_nb.model.fusion import (
    AttentionContextToTarget,
    AttentionTargetToContext,
    ContextMeans,
)
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.registry import load_model
from medverse_nb.regions import read
from medverse_nb.resampling import FloatArray

T = TypeVar("T")
Job = Callable[[], FloatArray]
ORGAN = PHANTOM_CLASSES["liver"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PEAK_WIDTH = 32  # channels of the convolution that shows what the machine can do


# The released network: same modules, same weights, its own order of operations.


def residual_unit(self: ResidualUnit, x: Tensor) -> Tensor:
    """Replace `ResidualUnit.forward`."""
    y = F.gelu(self.norm1(self.conv1(x)))
    return F.gelu(x + self.norm2(self.conv2(y)))


def up_merge(self: UpMerge, x: Tensor, skip: Tensor) -> Tensor:
    """Replace `UpMerge.forward`."""
    x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    return self.mix(torch.cat([x, skip], dim=1))


def target_to_context(
    self: AttentionTargetToContext, context: Tensor, target: Tensor, autoregressive: bool
) -> Tensor:
    """Replace `AttentionTargetToContext.forward`."""
    codes = self.codes[0]
    shown, _ = self.attention(
        context, [target], [target], codes.context(autoregressive), [codes.target()]
    )
    return F.gelu(context + self.mix(torch.cat([context, shown], dim=1)))


def context_to_target(
    self: AttentionContextToTarget, target: Tensor, means: ContextMeans
) -> Tensor:
    """Replace `AttentionContextToTarget.forward`."""
    codes = self.codes[0]
    sources, source_codes = [means.semantic], [codes.context(False)]
    if means.autoregressive is not None:
        sources.append(means.autoregressive)
        source_codes.append(codes.context(True))
    given, _ = self.attention(target, sources, sources, codes.target(), source_codes)
    return F.gelu(target + self.mix(torch.cat([given, target], dim=1)))


def mean_of_blocks(x: Tensor, p: int, partition: Partition) -> Tensor:
    """Replace `attention.pool_blocks`."""
    blocks = attention.to_blocks(x, p, partition)
    return blocks.unflatten(2, (x.shape[1], -1)).mean(dim=-1)


def mean_of_pairs(maps: Tensor) -> Tensor:
    """Replace `apsp.pair_mean`."""
    return maps.mean(dim=1)


@contextmanager
def released_operations() -> Iterator[None]:
    """Let every network compute as the released code does."""
    with ExitStack() as patches:
        for owner, name, function in (
            (ResidualUnit, "forward", residual_unit),
            (UpMerge, "forward", up_merge),
            (AttentionTargetToContext, "forward", target_to_context),
            (AttentionContextToTarget, "forward", context_to_target),
            (attention, "pool_blocks", mean_of_blocks),
            (apsp, "pair_mean", mean_of_pairs),
        ):
            patches.enter_context(patch.object(owner, name, function))
        yield


# The released inference: one stack at full resolution, MONAI's windows, coarse to fine.


def predict_stack(network: ICLNetwork, stack: Tensor, pairs: int) -> Tensor:
    """Predict (B, 1, X, Y, Z) from target, images, labels and any feedback along the channels."""
    sizes = [1, pairs, pairs, *[1] * (stack.shape[1] - 1 - 2 * pairs)]
    target, *rest = stack.split(sizes, dim=1)
    return network(target, *(part[:, :, None] for part in rest), mini_context_size=pairs)


def released_volume(
    network: ICLNetwork, target: Tensor, images: Tensor, labels: Tensor, scales: int
) -> Tensor:
    """Predict (X, Y, Z) from a target (X, Y, Z) and L pairs (L, X, Y, Z)."""
    window = network.config.window
    full = torch.cat([target[None], images, labels])[None]
    step = 2 ** (scales - 1)
    full = F.pad(full, [n for side in target.shape[::-1] for n in (0, -side % step)])
    answer, fed = full, list[Tensor]()
    for scale in range(1, scales + 1):
        level = [side // 2 ** (scales - scale) for side in full.shape[2:]]
        working = [window] * 3 if min(level) < window else level
        stack = torch.cat([resize(volume, working) for volume in (full, *fed)], dim=1)
        answer = resize(slide(network, stack, len(images)), level)
        fed = [resize(stack[:, :1], level), answer.clamp(0, 1)]
    x, y, z = target.shape
    return answer[0, 0, :x, :y, :z]


def slide(network: ICLNetwork, stack: Tensor, pairs: int) -> Tensor:
    """Predict (1, 1, X, Y, Z) in MONAI's windows."""
    answer = sliding_window_inference(
        stack,
        (network.config.window,) * 3,
        1,
        lambda part: predict_stack(network, part, pairs),
        overlap=0.1,
        mode="gaussian",
    )
    assert isinstance(answer, Tensor)
    return answer


def resize(volumes: Tensor, sides: Sequence[int]) -> Tensor:
    """Resize (1, C, X, Y, Z) as the released code does."""
    return F.interpolate(volumes, tuple(sides), mode="trilinear", align_corners=True)


# Measuring.


@dataclass(frozen=True)
class Bench:
    """Where jobs run, how often, and on which clock."""

    device: torch.device
    repeats: int
    now: Callable[[], float]

    def turns(self, jobs: dict[str, Job]) -> tuple[dict[str, Row], dict[str, FloatArray]]:
        """Run jobs in turns: median milliseconds, and how many times the first one's speed."""
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        rows: dict[str, Row] = {name: {} for name in jobs}
        answers = {}
        for _ in range(self.repeats):
            for name, job in jobs.items():
                with self.peak_memory(rows[name]):
                    taken, answers[name] = self.time(job)
                seconds[name].append(taken)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            ratio = next(iter(medians.values())) / median
            rows[name] = {"ms": round(1e3 * median, 1), "times": round(ratio, 2)} | rows[name]
        return rows, answers

    def time(self, job: Callable[[], T]) -> tuple[float, T]:
        """Return the seconds a job takes, and its result."""
        self.wait()
        started = self.now()
        result = job()
        self.wait()
        return self.now() - started, result

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak_memory(self, row: Row) -> Iterator[None]:
        """Note in a row the most memory that was in use on a GPU."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        row["peak_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20)


def as_in_a_session(network: ICLNetwork, precision: Precision) -> ICLNetwork:
    """Return a copy of the network in the memory format a session gives it."""
    network = copy.deepcopy(network)
    if precision != "float32":
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


# One window.


def measure_window(args: argparse.Namespace, bench: Bench) -> Row:
    """Return milliseconds, error and arithmetic speed of one window of the full-size network."""
    torch.manual_seed(args.seed)
    config = NetworkConfig()
    network = ICLNetwork(config).eval().to(bench.device)
    crops = draw_crops((args.side,) * 3, np.random.default_rng(args.seed))
    jobs: dict[str, Job] = {"released": lambda: theirs(network, crops)}
    for precision in PRECISIONS:
        runner = WindowRunner(as_in_a_session(network, precision), precision, 1)
        jobs[precision] = partial(runner, crops)
    for job in jobs.values():  # warm
        job()
    rows, answers = bench.turns(jobs)
    work = {name: count_work(config, args.side, name == "released") for name in jobs}
    for name, row in rows.items():
        speed = work[name] / row["ms"] * 1e3
        peak = convolution_speed(bench, args.side, "bfloat16" if name == "bfloat16" else "float32")
        row |= {
            "error": float(f"{relative_error(answers[name], answers['released']):.1e}"),
            "gflops": round(speed / 1e9),
            "peak_gflops": round(peak / 1e9),
            "of_peak": round(speed / peak, 3),
        }
    return {"side": args.side, "tflop": round(work["float32"] / 1e12, 3), "rows": rows}


def draw_crops(sides: Shape, rng: np.random.Generator) -> Crops:
    """Return a window of noise: a target, one pair and one fed back."""
    noise = rng.random((5, 1, *sides), dtype=np.float32)
    target, image, label, fed_image, fed_label = noise
    return Crops(target, [(image[None], label[None].round())], (fed_image, fed_label[None]))


@torch.inference_mode()
def theirs(network: ICLNetwork, crops: Crops) -> FloatArray:
    """Predict (1, 1, X, Y, Z), one question on one window, as `WindowRunner` gives it."""
    assert crops.feedback is not None
    ((image, label),) = crops.context
    volumes = [crops.target, image[0], label[0], crops.feedback[0]]
    stack = torch.from_numpy(np.concatenate([*volumes, crops.feedback[1][0]]))[None]
    with released_operations():
        answer = predict_stack(network, stack.to(network_device(network)), image.shape[1])
    result: FloatArray = answer.cpu().numpy()
    return result


def count_work(config: NetworkConfig, side: int, released: bool) -> int:
    """Return the floating-point operations of such a window, a multiplication and an addition two."""
    with torch.device("meta"):
        network = ICLNetwork(config)
        stack = torch.empty(1, 5, side, side, side)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, released_operations() if released else nullcontext():
        predict_stack(network, stack, pairs=1)
    return int(counter.get_total_flops())


def convolution_speed(bench: Bench, side: int, precision: Precision) -> float:
    """Return operations a second of one 3x3x3 convolution, in the layout of that precision."""
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last_3d
    kind = {"device": bench.device, "dtype": getattr(torch, precision)}
    x = torch.randn(1, PEAK_WIDTH, side, side, side, **kind).to(memory_format=layout)
    kernel = torch.randn(PEAK_WIDTH, PEAK_WIDTH, 3, 3, 3, **kind).to(memory_format=layout)
    with torch.inference_mode():
        seconds = [bench.time(lambda: F.conv3d(x, kernel, padding=1))[0] for _ in range(6)]
    return 2 * kernel.numel() * side**3 / statistics.median(seconds[1:])


def relative_error(got: FloatArray, wanted: FloatArray) -> float:
    """Return the length of the difference as a share of what was wanted."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


# A volume.


def measure_volume(args: argparse.Namespace, bench: Bench) -> Row:
    """Return milliseconds of a volume from arrays to the answer, and how far masks agree."""
    network = load_model("medverse-tiny", str(bench.device))
    volumes = draw_volumes(args.side, args.pairs, args.seed)
    scales = scale_count(volumes[0].shape, network.config.window)
    jobs: dict[str, Job] = {"released": lambda: theirs_of_volume(network, volumes, scales)}
    for precision in PRECISIONS:
        jobs[precision] = partial(
            ours_of_volume, as_in_a_session(network, precision), volumes, precision
        )
    rows, answers = bench.turns(jobs)
    for name, row in rows.items():
        row["dice_to_float32"] = round(dice(answers[name] > 0.5, answers["float32"] > 0.5), 4)
    voxels = int((answers["float32"] > 0.5).sum())
    return {"side": args.side, "pairs": args.pairs, "mask_voxels": voxels, "rows": rows}


def draw_volumes(side: int, pairs: int, seed: int) -> list[FloatArray]:
    """Return a target (X, Y, Z), images and labels (L, X, Y, Z): virtual abdomens, one organ."""
    images, labels = [], []
    for case in phantom_cohort(pairs + 1, seed, side):
        image = nib.as_closest_canonical(case.image).get_fdata(dtype=np.float32)
        label = nib.as_closest_canonical(case.label).get_fdata(dtype=np.float32)
        images.append(quantile_scale(image).apply(image).astype(np.float32))
        labels.append((label == ORGAN).astype(np.float32))
    return [images[0], np.stack(images[1:]), np.stack(labels[1:])]


@torch.inference_mode()
def theirs_of_volume(network: ICLNetwork, volumes: list[FloatArray], scales: int) -> FloatArray:
    """Predict (X, Y, Z) by the released recipe."""
    target, images, labels = (torch.from_numpy(v).to(network_device(network)) for v in volumes)
    with released_operations():
        answer = released_volume(network, target, images, labels, scales)
    result: FloatArray = answer.cpu().numpy()
    return result


def ours_of_volume(
    network: ICLNetwork, volumes: list[FloatArray], precision: Precision
) -> FloatArray:
    """Predict (X, Y, Z) by our engine."""
    settings = Settings(precision=precision)
    target, images, labels = volumes
    inputs = take_arrays(network, target, images, labels, settings)
    return read(run(network, inputs, settings)[-1].predictions[0])


def network_device(network: ICLNetwork) -> torch.device:
    """Return where a network is."""
    return next(network.parameters()).device


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def main() -> None:
    """Measure one thing, print it and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    window = commands.add_parser("window", help="one window of the full-size network")
    window.add_argument("--side", type=int, default=128, help="of the window, a multiple of 64")
    volume = commands.add_parser("volume", help="medverse-tiny on a whole volume")
    volume.add_argument("--side", type=int, default=256)
    volume.add_argument("--pairs", type=int, default=8)
    for command in (window, volume):
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="cpu")
        command.add_argument("--results", type=Path, default=RESULTS, help="file to record in")
        command.add_argument(
            "--processor-time",
            action="store_true",
            help="in processor seconds, for a busy machine; with OMP_NUM_THREADS=1",
        )
    args = parser.parse_args()
    now = time.process_time if args.processor_time else time.perf_counter
    bench = Bench(choose_device(args.device), args.repeats, now)
    measure = {"window": measure_window, "volume": measure_volume}[args.command]
    figures = measure(args, bench)
    show(figures["rows"])
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    clock = "processor" if args.processor_time else "wall"
    record(f"released_{args.command}", {"device": where, "clock": clock, **figures}, args.results)


if __name__ == "__main__":
    main()
