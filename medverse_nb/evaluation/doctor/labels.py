"""Labels, a pair at a time: is there foreground, and does it lie on the image's edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from ...pair import ContextPair
from ...regions import Region
from ...resampling import FloatArray, resize
from ...views import mapped
from .exam import Exam, Foreground
from .report import Finding

FEWEST_PAIRS = 3  # of two that disagree none is right; from 1 pair to 4, Dice rises by 0.09
TINY_VOXELS = 8  # 2 x 2 x 2: one voxel more or less is half of it
# Each of 160 real hippocampi reaches 0.77 of the best agreement or more; of those moved by three,
# four and five voxels 45, 70 and 88% stay below this.
LEAST_AGREEMENT = 0.70
LEAST_SHIFT_VOXELS = 2  # hands that draw labels differ by one
LARGEST_SHIFT_VOXELS = 5
EDGE_SIGMA_VOX = 1.0
SHOWN_SIDE = 56  # voxels: the foreground is looked at as coarsely as that
FEWEST_VOXELS = 64  # of foreground: a border of fewer fits noise somewhere


def check_context(exam: Exam) -> Iterator[Finding]:
    """Find an empty or small context."""
    if not exam.pairs:
        yield Finding("error", "no-context", "context", "there are no pairs", "add a labelled pair")
    elif len(exam.pairs) < FEWEST_PAIRS:
        yield Finding(
            "note", "few-pairs", "context", f"{len(exam.pairs)} of {FEWEST_PAIRS} pairs or more",
            "add pairs: answers gain most from the second to the fourth",
        )  # fmt: skip


def check_foreground(exam: Exam) -> Iterator[Finding]:
    """Find labels with nothing, or next to nothing, on them."""
    if not exam.pairs or exam.pairs[0].task == "image":
        return
    if not exam.labelled:
        yield Finding(
            "error", "no-foreground", "context", "every label is zero",
            "add a pair whose label marks the structure",
        )  # fmt: skip
        return
    for pair in exam.pairs:
        if not pair.values:
            yield Finding(
                "warning", "empty-label", pair.name, "the label has no foreground",
                "keep it only if the structure is truly absent there",
                "it serves as an example of nothing",
            )  # fmt: skip
        elif exam.foregrounds[pair.name].voxels <= TINY_VOXELS:
            found = exam.foregrounds[pair.name]
            yield Finding(
                "warning", "tiny-label", pair.name,
                f"{found.voxels} voxels of foreground ({found.share:.2g} of the volume)",
                "look at the label, or crop the pair around it",
            )  # fmt: skip


def check_label_place(exam: Exam) -> Iterator[Finding]:
    """Find labels whose border agrees better with the image's edges some voxels away."""
    for pair in exam.labelled:
        found = exam.foregrounds[pair.name]
        if found.voxels < FEWEST_VOXELS:
            continue
        agreement, shift = edge_agreement(pair, found)
        if agreement < LEAST_AGREEMENT and np.abs(shift).max() >= LEAST_SHIFT_VOXELS:
            moved = ", ".join(f"{step:+.3g}" for step in shift)
            yield Finding(
                "warning", "label-off-image", pair.name,
                f"its border agrees with the image's edges {agreement:.2f} times as well as it "
                f"would moved by ({moved}) voxels along R, A, S",
                "look at the pair: was the label drawn on, or resampled from, another image?",
            )  # fmt: skip


CHECKS = (check_context, check_foreground, check_label_place)


def edge_agreement(pair: ContextPair, found: Foreground) -> tuple[float, NDArray[np.float64]]:
    """Return how well a label's border lies on its image's edges, and where it would lie best.

    Returns
    -------
    agreement : in place, as a share of that at the best place, (0, 1].
    shift : to the best place, in canonical voxels, of `LARGEST_SHIFT_VOXELS` coarse ones at most
        along each axis.

    Source: normalized gradient fields, Haber and Modersitzki 2006, their squared form: a border
    and an edge agree where they are parallel, whichever side is the brighter.
    """
    image, mask, step = _around(pair, found)
    edges, border = _gradients(image), _gradients(mask)
    length = np.linalg.norm(edges, axis=0)
    edges /= np.sqrt(length**2 + length.mean() ** 2) + np.finfo(np.float32).tiny
    sides = [fft.next_fast_len(n + LARGEST_SHIFT_VOXELS, real=True) for n in image.shape]
    total = 0
    for first in range(3):
        for second in range(first, 3):
            one, other = (fft.rfftn(g[first] * g[second], sides) for g in (edges, border))
            total = total + (1 if first == second else 2) * one * np.conj(other)
    scores = fft.irfftn(total, sides)
    near = np.arange(-LARGEST_SHIFT_VOXELS, LARGEST_SHIFT_VOXELS + 1)
    scores = np.maximum(scores[np.ix_(near, near, near)], 0)
    best = np.array(np.unravel_index(scores.argmax(), scores.shape)) - LARGEST_SHIFT_VOXELS
    most = float(scores.max())
    if most == 0:  # an image without edges
        return 1.0, np.zeros(3)
    return float(scores[(LARGEST_SHIFT_VOXELS,) * 3]) / most, best * step


def _around(
    pair: ContextPair, found: Foreground
) -> tuple[FloatArray, FloatArray, NDArray[np.float64]]:
    """Return image and mask around the foreground, coarser where large, and voxels per voxel."""
    view = pair.canonical_label.view
    mask = mapped(view, _is_foreground)
    shape, region = [], []
    for side, size in zip(found.box, view.shape, strict=True):
        step = max(1, (side.stop - side.start) / SHOWN_SIDE)
        coarse = max(1, round(size / step))
        margin, ratio = LARGEST_SHIFT_VOXELS + 2, coarse / size
        low, high = int(side.start * ratio) - margin, int(side.stop * ratio) + 1 + margin
        shape.append(coarse)
        region.append(slice(max(0, low), min(coarse, high)))
    x, y, z = shape
    box: Region = (region[0], region[1], region[2])
    image = resize(pair.canonical_image.view, (x, y, z), region=box)
    return (
        image,
        resize(mask, (x, y, z), region=box),
        np.array(view.shape) / shape,
    )


def _is_foreground(labels: NDArray[np.generic]) -> FloatArray:
    return (labels != 0).astype(np.float32)


def _gradients(volume: FloatArray) -> FloatArray:
    """Return the smoothed gradient (3, X, Y, Z)."""
    axes = np.eye(3, dtype=int)
    found = [ndimage.gaussian_filter(volume, EDGE_SIGMA_VOX, order=axis) for axis in axes]
    return np.stack(found).astype(np.float32)
