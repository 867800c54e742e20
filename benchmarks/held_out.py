"""Dice on the model's own family: held-out heads, unseen synthetic contrasts.

    python benchmarks/held_out.py --label-maps DIR

Tasks are drawn from subjects 13-16, which were never trained on; the mean label stands
beside every figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from record import record

import medverse_nb as mv
from medverse_nb.tasks.draw import TaskRates, draw_task
from medverse_nb.tasks.labelmaps import read_head_maps

ONE_SCALE = TaskRates(brain=1.0, enhancement=0.0, autoregressive=0.0, padded=0.0)
SMALLEST_FOREGROUND = 20  # voxels of a 32^3 window
SEED = 5_000_000


def main() -> None:
    """Score the same tasks at every context size and record the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--model", default="medverse-tiny")
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    heads = read_head_maps(args.label_maps, range(13, 17))
    network = mv.load_model(args.model)
    largest = max(args.sizes)
    ours: dict[int, list[float]] = {size: [] for size in args.sizes}
    baseline: dict[int, list[float]] = {size: [] for size in args.sizes}
    for index in range(args.tasks):
        generator = torch.Generator().manual_seed(SEED + index)
        task = draw_task(heads, generator, largest, network.config.window, ONE_SCALE)
        truth = task.truth[0, 0].numpy() > 0.5
        if truth.sum() < SMALLEST_FOREGROUND:
            continue
        for size in args.sizes:
            image, label = task.context_image[:, :size], task.context_label[:, :size]
            with torch.inference_mode():
                prediction = network(task.target, image, label)[0, 0].numpy() > 0.5
            ours[size].append(mv.metrics.dice(prediction, truth))
            baseline[size].append(mv.metrics.dice(label[0].mean(0)[0].numpy() > 0.5, truth))
    rows = [
        {
            "context_size": size,
            "dice": round(float(np.mean(ours[size])), 4),
            "mean_label_dice": round(float(np.mean(baseline[size])), 4),
        }
        for size in args.sizes
    ]
    for row in rows:
        print(row)
    if not args.no_record:
        record("held_out", {"model": args.model, "tasks": len(ours[largest]), "rows": rows})


if __name__ == "__main__":
    main()
