"""Held-out heads on their native grid: eleven structures, four image tasks, a swapped context.

    python benchmarks/brains.py --label-maps DIR

Targets are subjects 13-16, contexts eight of subjects 1-12, all painted with one unseen
synthetic contrast a task, nothing deformed: the boxes are cut 12 mm around a structure,
by the brain's own box in each subject. Everything runs through `ICLSession.predict`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from record import record
from torch import Generator

import medverse_nb as mv
from medverse_nb.tasks import enhancement
from medverse_nb.tasks.contrast import render_images
from medverse_nb.tasks.labelmaps import HeadMap, gather_nearest, read_head_maps
from medverse_nb.tasks.volumes import LabelDraw

STRUCTURES = {
    "lateral ventricle": 4, "cerebellar white matter": 7, "cerebellar cortex": 8,
    "thalamus": 10, "caudate": 11, "putamen": 12, "pallidum": 13, "brain stem": 16,
    "amygdala": 18, "accumbens": 26, "ventral diencephalon": 28,
}  # fmt: skip
IMAGE_TASKS = {
    "gaussian noise": enhancement.add_gaussian_noise,
    "salt and pepper": enhancement.add_salt_and_pepper,
    "bias field": enhancement.add_bias_field,
    "inpainting": enhancement.cut_holes,
}
MARGIN_MM, LARGEST_SIDE, PAIRS = 12, 64, 8
SEED = 7_000_000


def cut(heads: Sequence[HeadMap], structure: int) -> LabelDraw:
    """Cut the box around the first head's structure out of every head: one voxel a millimetre."""
    first = heads[0]
    inside = (first.classes == first.values.index(structure)).nonzero()
    low, high = inside.min(0).values, inside.max(0).values
    middle = (low + high) / 2
    side = min(LARGEST_SIDE, int((high - low).max()) + 1 + 2 * MARGIN_MM)
    steps = torch.arange(side) - (side - 1) / 2
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"))
    place = (middle - first.centre) / first.extent
    maps = [
        gather_nearest(head.classes, (head.centre + place * head.extent).view(3, 1, 1, 1) + grid)
        for head in heads
    ]
    return LabelDraw(torch.stack(maps), first.values, is_brain=True)


def session_of(model: str, images: NDArray, labels: NDArray, task: str) -> mv.ICLSession:
    """Open a session with these pairs."""
    session = mv.ICLSession(model, task=task)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        session.add_context(image, label, name=f"pair-{number}", affine=np.eye(4))
    return session


def choose(heads: Sequence[HeadMap], target: int, generator: Generator) -> list[HeadMap]:
    """Return the held-out target and eight training heads, drawn."""
    order = torch.randperm(12, generator=generator)[:PAIRS].tolist()
    return [heads[12 + target], *(heads[i] for i in order)]


def score_structure(
    model: str, heads: Sequence[HeadMap], name: str, target: int
) -> dict[str, float]:
    """Return Dice of one structure of one subject: ours, the mean label's, and after a swap.

    The swap asks for another structure of the same box; the answer should not be the first.
    """
    generator = Generator().manual_seed(SEED + 100 * STRUCTURES[name] + target)
    labels = cut(choose(heads, target, generator), STRUCTURES[name])
    side = labels.classes.shape[-1]
    images = render_images(labels, generator, side).numpy()
    classes = np.asarray(labels.values)[labels.classes.numpy()]
    wanted = STRUCTURES[name]
    session = session_of(
        model, images[1:], (classes[1:] == wanted).astype(np.uint8), "segmentation"
    )
    truth = (classes[0] == wanted).astype(np.uint8)
    score = session.predict(images[0], affine=np.eye(4), truth=truth).score.iloc[0]
    others = [v for v in np.unique(classes[1:]) if v not in (0, wanted)]
    other = max(others, key=lambda v: int((classes[0] == v).sum()))
    swapped = session_of(model, images[1:], (classes[1:] == other).astype(np.uint8), "segmentation")
    answer = swapped.predict(images[0], affine=np.eye(4)).mask.values
    return {
        "dice": float(score["dice"]),
        "mean_label_dice": float(score["mean_label_dice"]),
        "swapped_dice": mv.metrics.dice(answer, truth),
    }


def score_image_task(
    model: str, heads: Sequence[HeadMap], name: str, target: int
) -> dict[str, float]:
    """Return PSNR in dB of one restored volume, and of the spoilt one."""
    generator = Generator().manual_seed(SEED + 10_000 + target)
    labels = cut(choose(heads, target, generator), STRUCTURES["thalamus"])
    clean = render_images(labels, generator, labels.classes.shape[-1])
    spoilt = IMAGE_TASKS[name](clean, generator)
    session = session_of(model, spoilt[1:].numpy(), clean[1:].numpy(), "image")
    score = session.predict(spoilt[0].numpy(), affine=np.eye(4), truth=clean[0].numpy()).score
    return {
        "psnr": float(score["psnr"].iloc[0]),
        "spoilt_psnr": float(score["target_psnr"].iloc[0]),
    }


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def main() -> None:
    """Score all structures and tasks of the four subjects and record the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--model", default="medverse-tiny")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    paths = [args.label_maps / f"training_seg_{number:02d}.nii.gz" for number in range(1, 17)]
    heads = read_head_maps(paths)
    subjects = range(args.subjects)
    structures = {}
    for name in STRUCTURES:
        structures[name] = mean([score_structure(args.model, heads, name, s) for s in subjects])
        print(f"{name:24}", structures[name], flush=True)
    images = {}
    for name in IMAGE_TASKS:
        images[name] = mean([score_image_task(args.model, heads, name, s) for s in subjects])
        print(f"{name:24}", images[name], flush=True)
    overall = mean(list(structures.values()))
    print(f"{'all structures':24}", overall)
    if not args.no_record:
        figures = {"model": args.model, "subjects": args.subjects, "pairs": PAIRS}
        record("structures", {**figures, "mean": overall, "rows": structures})
        record("image_tasks", {**figures, "rows": images})


if __name__ == "__main__":
    main()
