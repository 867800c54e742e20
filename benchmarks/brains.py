"""Held-out heads on their native grid: eleven structures, four image tasks, a swapped context.

    python benchmarks/brains.py --label-maps DIR

Targets are subjects 13-16, contexts eight of subjects 1-12, all painted with one unseen
synthetic contrast a task, nothing deformed. The boxes lie 12 mm around a structure, found in
two ways: each around its own structure, up to 4 mm off, as data sets that were cropped to an
organ are; or at the same place of the brain's box, where the context lies about 8 mm off.
Everything runs through `ICLSession.predict`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import Series
from record import record
from torch import Generator, Tensor

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
MARGIN_MM, LARGEST_SIDE, JITTER_MM, PAIRS = 12, 64, 4, 8
SEED = 7_000_000
Arrangement = Literal["by structure", "by brain"]


def read_heads(folder: Path) -> list[HeadMap]:
    """Read the sixteen heads, the held-out four last."""
    paths = [folder / f"training_seg_{number:02d}.nii.gz" for number in range(1, 17)]
    return read_head_maps(paths)


def cut(
    heads: Sequence[HeadMap], structure: int, arrangement: Arrangement, generator: Generator
) -> LabelDraw:
    """Cut a box, as large as the first head's structure asks for, out of every head: 1 mm."""
    low, high = box_of(heads[0], structure)
    side = min(LARGEST_SIDE, int((high - low).max()) + 1 + 2 * MARGIN_MM)
    steps = torch.arange(side) - (side - 1) / 2
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"))
    place = ((low + high) / 2 - heads[0].centre) / heads[0].extent
    maps = []
    for head in heads:
        if arrangement == "by structure":
            own_low, own_high = box_of(head, structure)
            jitter = JITTER_MM * (2 * torch.rand(3, generator=generator) - 1)
            middle = (own_low + own_high) / 2 + jitter
        else:
            middle = head.centre + place * head.extent
        maps.append(gather_nearest(head.classes, middle.view(3, 1, 1, 1) + grid))
    return LabelDraw(torch.stack(maps), heads[0].values, is_brain=True)


def box_of(head: HeadMap, structure: int) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest voxel of a structure."""
    inside = (head.classes == head.values.index(structure)).nonzero()
    return inside.min(0).values, inside.max(0).values


def draw_structure(
    heads: Sequence[HeadMap], name: str, target: int, arrangement: Arrangement
) -> tuple[NDArray, NDArray]:
    """Draw the boxes around a structure, always the same: a held-out target, then eight pairs.

    Returns
    -------
    Images in [0, 1] and FreeSurfer values, each (1 + PAIRS, X, Y, Z).
    """
    generator = Generator().manual_seed(SEED + 100 * STRUCTURES[name] + target)
    labels = cut(choose(heads, target, generator), STRUCTURES[name], arrangement, generator)
    images = render_images(labels, generator, labels.classes.shape[-1])
    return images.numpy(), np.asarray(labels.values)[labels.classes.numpy()]


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
    model: str, heads: Sequence[HeadMap], name: str, target: int, arrangement: Arrangement
) -> dict[str, float]:
    """Return Dice of one structure of one subject: ours, the mean label's, and after a swap.

    The swap asks for another structure of the same box; the answer should not be the first.
    """
    images, classes = draw_structure(heads, name, target, arrangement)
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


def draw_image_task(heads: Sequence[HeadMap], name: str, target: int) -> tuple[Tensor, Tensor]:
    """Draw what is spoilt in one way, always the same: a held-out target, then eight pairs.

    Returns
    -------
    Clean and spoilt images in [0, 1], each (1 + PAIRS, X, Y, Z).
    """
    generator = Generator().manual_seed(SEED + 10_000 + target)
    heads = choose(heads, target, generator)
    labels = cut(heads, STRUCTURES["thalamus"], "by structure", generator)
    clean = render_images(labels, generator, labels.classes.shape[-1])
    return clean, IMAGE_TASKS[name](clean, generator)


def restore(model: str, context: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Series:
    """Return `psnr` of a restored volume in dB, and `target_psnr`, of the one that came in.

    Parameters
    ----------
    context, target : the clean and the spoilt, (PAIRS, X, Y, Z) and (X, Y, Z).
    """
    clean, spoilt = (images.numpy() for images in context)
    truth, scan = (image.numpy() for image in target)
    session = session_of(model, spoilt, clean, "image")
    return session.predict(scan, affine=np.eye(4), truth=truth).score.iloc[0]


def score_image_task(
    model: str, heads: Sequence[HeadMap], name: str, target: int
) -> dict[str, float]:
    """Return PSNR in dB of one restored volume, and of the spoilt one."""
    clean, spoilt = draw_image_task(heads, name, target)
    score = restore(model, (clean[1:], spoilt[1:]), (clean[0], spoilt[0]))
    return {"psnr": float(score["psnr"]), "spoilt_psnr": float(score["target_psnr"])}


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
    heads = read_heads(args.label_maps)
    subjects = range(args.subjects)
    arrangements = {}
    for arrangement in get_args(Arrangement):
        rows = {}
        for name in STRUCTURES:
            rows[name] = mean(
                [score_structure(args.model, heads, name, s, arrangement) for s in subjects]
            )
            print(f"{name:24}", rows[name], flush=True)
        arrangements[arrangement] = {"mean": mean(list(rows.values())), "rows": rows}
        print(f"{arrangement:24}", arrangements[arrangement]["mean"], flush=True)
    images = {}
    for name in IMAGE_TASKS:
        images[name] = mean([score_image_task(args.model, heads, name, s) for s in subjects])
        print(f"{name:24}", images[name], flush=True)
    if not args.no_record:
        figures = {"model": args.model, "subjects": args.subjects, "pairs": PAIRS}
        record("structures", {**figures, **arrangements})
        record("image_tasks", {**figures, "rows": images})


if __name__ == "__main__":
    main()
