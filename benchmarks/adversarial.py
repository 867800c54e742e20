"""Contexts and targets that are wrong on purpose, each beside what a claim was measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from medverse_nb.evaluation.wrong_context import shuffle_labels
from medverse_nb.pair import ContextPair
from medverse_nb.volume import with_data

SHIFT_VOX = 10
BRIGHT = 0.85  # quantile of the voxels
Pairs = Sequence[ContextPair]
Mask = NDArray[np.bool_]


def move_labels(pairs: Pairs) -> list[ContextPair]:
    """Move every label by `SHIFT_VOX` voxels along the first axis; what leaves the box is lost."""
    return [_relabelled(pair, _moved(pair.label.values)) for pair in pairs]


def label_bright(pairs: Pairs) -> list[ContextPair]:
    """Label another structure: the largest bright region, which in T1 is white matter."""
    return [_relabelled(pair, _bright_region(pair.image.values)) for pair in pairs]


def label_bright_in_one(pairs: Pairs) -> list[ContextPair]:
    """Label another structure in the first pair only."""
    return [*label_bright(pairs[:1]), *pairs[1:]]


def invert(target: xr.DataArray, truth: Mask) -> tuple[xr.DataArray, Mask]:
    """Turn bright into dark; the range stays."""
    image = target.values
    return with_data(target, image.max() + image.min() - image, "image"), truth


def flip(target: xr.DataArray, truth: Mask) -> tuple[xr.DataArray, Mask]:
    """Mirror target and truth along the first axis, left to right in the hippocampus cases."""
    return with_data(target, target.values[::-1].copy(), "image"), truth[::-1].copy()


def scramble(target: xr.DataArray, truth: Mask) -> tuple[xr.DataArray, Mask]:
    """Shuffle the voxels: the same intensities, nothing to find, and an empty truth."""
    image = target.values
    shuffled = np.random.default_rng(0).permutation(image.ravel()).reshape(image.shape)
    return with_data(target, shuffled, "image"), np.zeros_like(truth)


CONTEXTS: dict[str, Callable[[Pairs], list[ContextPair]]] = {
    "labels shuffled among the pairs": shuffle_labels,
    f"labels moved {SHIFT_VOX} voxels": move_labels,
    "another structure in one pair": label_bright_in_one,
    "another structure in all pairs": label_bright,
}
TARGETS: dict[str, Callable[[xr.DataArray, Mask], tuple[xr.DataArray, Mask]]] = {
    "target with its contrast inverted": invert,
    "target flipped left to right": flip,
    "target without the structure (voxels scrambled)": scramble,
}


def _relabelled(pair: ContextPair, label: NDArray) -> ContextPair:
    return replace(pair, label=with_data(pair.label, label, "label"))


def _moved(label: NDArray) -> NDArray:
    moved = np.zeros_like(label)
    moved[SHIFT_VOX:] = label[:-SHIFT_VOX]
    return moved


def _bright_region(image: NDArray) -> NDArray:
    regions, _ = ndimage.label(image > np.quantile(image, BRIGHT))
    sizes = np.bincount(regions.ravel())[1:]
    return (regions == 1 + sizes.argmax()).astype(np.uint8)
