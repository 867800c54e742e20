"""How alike each pair's image is to the target, and which pairs to choose for it.

Source: retrieval of the nearest examples, Zhang et al. 2023, "What Makes Good Examples for
Visual In-Context Learning?" (there with features of another network).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import xarray as xr
from scipy import ndimage
from scipy.stats import wasserstein_distance
from torch import Tensor

from ..errors import ContextError, InputError
from ..geometry import Align, Grid
from ..model.network import ICLNetwork
from ..pair import ContextPair
from ..placement import CanonicalVolume, place
from ..regions import View
from ..resampling import FloatArray, resize
from .answers import check_pairs

HISTOGRAM_BINS = 32
EDGE_SIGMA_VOX = 1.0


@dataclass(frozen=True)
class Descriptor:
    """What of an image is compared, and how.

    Parameters
    ----------
    describe : turns an image (X, Y, Z) in [0, 1], on the target's box, into a vector.
    compare : gives the similarity of two such vectors: 1 where they are equal, less elsewhere.
    side : in voxels; the target's box is cut into at most so many along each axis.
    """

    name: str
    describe: Callable[[FloatArray], FloatArray]
    compare: Callable[[FloatArray, FloatArray], float]
    side: int = 32


def cosine(a: FloatArray, b: FloatArray) -> float:
    """Return the cosine of the angle between two vectors, in [-1, 1]; 1 for two zero vectors."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    if lengths == 0:
        return float(np.array_equal(first, second))
    return float(np.clip(first @ second / lengths, -1, 1))


def intensity_histogram(image: FloatArray) -> FloatArray:
    """Return the share of voxels in each of `HISTOGRAM_BINS` bins over [0, 1]."""
    counts, _ = np.histogram(image, bins=HISTOGRAM_BINS, range=(0, 1))
    return (counts / image.size).astype(np.float32)


def histogram_similarity(a: FloatArray, b: FloatArray) -> float:
    """Return 1 minus the earth mover's distance of two histograms over [0, 1]; in [0, 1]."""
    centres = (np.arange(len(a)) + 0.5) / len(a)
    return 1 - float(wasserstein_distance(centres, centres, a, b))


def centred_image(image: FloatArray) -> FloatArray:
    """Return the voxels minus their mean: the cosine of two of them is their correlation."""
    return (image - image.mean()).ravel()


def edge_orientations(image: FloatArray) -> FloatArray:
    """Return how every voxel's edge lies, whichever side of it is the brighter.

    Of each gradient, shortened where it is weak, the outer product with itself less its
    trace, so that a random orientation has no similarity on average. The cosine of two such
    vectors lies in [-0.5, 1].

    Source: normalized gradient fields, Haber and Modersitzki 2006, their squared form.
    """
    axes = np.eye(3, dtype=int)
    gradient = np.stack([ndimage.gaussian_filter(image, EDGE_SIGMA_VOX, order=a) for a in axes])
    length = np.linalg.norm(gradient, axis=0)
    if length.any():
        gradient /= np.sqrt(length**2 + length.mean() ** 2)
    outer = np.einsum("ixyz,jxyz->xyzij", gradient, gradient)
    trace = np.trace(outer, axis1=-2, axis2=-1)[..., None, None]
    return np.asarray(outer - trace / 3 * np.eye(3), np.float32).ravel()


def feature_descriptor(network: ICLNetwork) -> Descriptor:
    """Return the descriptor of what this network sees in an image: its target bottleneck.

    The box is stretched to one window and encoded. Each channel is brought to mean 0 and
    spread 1 over the map: by level alone all images are alike, to a hundredth. Compared by
    the cosine, in [-1, 1].
    """
    device = next(network.parameters()).device
    window = (network.config.window,) * 3

    @torch.inference_mode()
    def describe(image: FloatArray) -> FloatArray:
        cube = torch.from_numpy(resize(image, window))[None, None].to(device)
        features: Tensor = network.target_encoder(cube)[-1]
        return F.instance_norm(features.float()).ravel().cpu().numpy()

    return Descriptor("features", describe, cosine, window[0])


DESCRIPTORS: dict[str, Descriptor] = {
    descriptor.name: descriptor
    for descriptor in (
        Descriptor("histogram", intensity_histogram, histogram_similarity, 64),
        Descriptor("image", centred_image, cosine),
        Descriptor("edges", edge_orientations, cosine),
    )
}


def similarity(
    target: xr.DataArray,
    pairs: Sequence[ContextPair],
    descriptor: str | Descriptor | Sequence[str | Descriptor] = "image",
    *,
    align: Align = "box",
) -> pd.DataFrame:
    """Return how alike each pair's image is to the target, a row a pair and descriptor.

    Both are scaled to [0, 1] as a run does and laid on the target's box, coarsely: a large
    volume is read in slabs and never held whole. Labels are not looked at.

    Parameters
    ----------
    target : (x, y, z) as it was read.
    descriptor : one or several: "histogram" in [0, 1], 1 minus the earth mover's distance;
        "image" in [-1, 1], the correlation of the voxels; "edges" in [-0.5, 1], where the
        contrast does not matter; a `Descriptor` of your own; `feature_descriptor(network)`.
    align : how a pair is placed; outside of it is 0, as the network sees it.

    Returns
    -------
    `pair`, `descriptor`, `similarity`; pairs in their order. Of any descriptor 1 is what the
    target has with itself; only values of one descriptor can be compared.

    Raises
    ------
    ContextError : no pairs, or two of one name.
    InputError : an unknown descriptor, or two of one name.

    Examples
    --------
    With a session::

        scan = mv.read_volume("sub-09_T1w.nii.gz")
        features = feature_descriptor(session.network)
        similarity(scan, session.context.pairs, ["image", features], align=session.align)
    """
    check_pairs(pairs)
    given = [descriptor] if isinstance(descriptor, str | Descriptor) else descriptor
    chosen = [_find(one) for one in given]
    if len({one.name for one in chosen}) < len(chosen):
        raise InputError(f"descriptors need names of their own, got {[one.name for one in chosen]}")
    volume = CanonicalVolume.of(target).scaled()
    grids = {one.side: _coarse(volume.grid, one.side) for one in chosen}

    def describe(image: View, source: Grid) -> list[FloatArray]:
        # the target goes the same way: a pair of the same voxels is exactly alike
        images = {side: place(image, source, grid, align) for side, grid in grids.items()}
        return [one.describe(images[one.side]) for one in chosen]

    ours = describe(volume.view, volume.grid)
    rows = []
    for pair in pairs:
        theirs = describe(pair.canonical_image.view, pair.canonical_image.grid)
        rows += [
            {"pair": pair.name, "descriptor": one.name, "similarity": one.compare(a, b)}
            for one, a, b in zip(chosen, ours, theirs, strict=True)
        ]
    return pd.DataFrame(rows, columns=["pair", "descriptor", "similarity"])


def choose(
    target: xr.DataArray,
    pairs: Sequence[ContextPair],
    size: int,
    descriptor: str | Descriptor = "image",
    *,
    align: Align = "box",
    seed: int = 0,
) -> list[ContextPair]:
    """Return the `size` pairs that are most alike to the target, the most alike first.

    The order of `pairs` changes nothing, and a smaller choice is the beginning of a larger one.
    A pair made of the target itself would come first: leave it out before you measure.

    Parameters
    ----------
    descriptor : as in `similarity`, or "random": pairs drawn by `seed` alone, to compare with.

    Raises
    ------
    ContextError : no pairs, two of one name, or a `size` that is not in 1..L.
    InputError : an unknown descriptor.
    """
    check_pairs(pairs)
    if not 1 <= size <= len(pairs):
        raise ContextError(f"size={size} must lie in 1..{len(pairs)}, the number of pairs")
    by_name = sorted(pairs, key=lambda pair: pair.name)
    if descriptor == "random":
        order = np.random.default_rng(seed).permutation(len(by_name))
    else:
        likeness = similarity(target, by_name, descriptor, align=align)["similarity"]
        order = np.argsort(-likeness.to_numpy(), kind="stable")
    return [by_name[i] for i in order[:size]]


def _find(descriptor: str | Descriptor) -> Descriptor:
    if isinstance(descriptor, Descriptor):
        return descriptor
    if descriptor not in DESCRIPTORS:
        raise InputError(
            f"descriptor={descriptor!r} is not one of {', '.join(DESCRIPTORS)}; features of a "
            "network are feature_descriptor(network)"
        )
    return DESCRIPTORS[descriptor]


def _coarse(grid: Grid, side: int) -> Grid:
    x, y, z = (min(n, side) for n in grid.shape)
    return grid.resized((x, y, z))
