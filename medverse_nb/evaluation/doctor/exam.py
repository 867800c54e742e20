"""What the checks look at: each volume read in slabs, and small versions of it kept.

A check asks for what it needs; nothing is read that no check asks for, and nothing twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...geometry import Align, Grid
from ...intensity import IntensityScale, quantile_scale
from ...pair import ContextPair, content_hash
from ...placement import CanonicalVolume
from ...regions import Region, View, bounds_of, slabs
from ...resampling import FloatArray, resize
from ...volume import grid_of, view_of

COARSE_SIDE = 32  # voxels: the box of any volume, for comparing images as wholes
SAMPLE_VOXELS = 2**17  # of the values of one volume: a share of 1% is known to 0.1%
PICKED_SIDE = 64  # voxels along an axis of the foreground's box


@dataclass(frozen=True)
class Scan:
    """One image, a pair's or the target."""

    name: str
    image: xr.DataArray
    pair: ContextPair | None = None

    @property
    def grid(self) -> Grid:
        """In the file's order of axes."""
        return grid_of(self.image)

    @cached_property
    def canonical(self) -> CanonicalVolume:
        """Canonical axes, scaled to [0, 1] as a run does."""
        if self.pair is not None:
            return self.pair.canonical_image
        return CanonicalVolume.of(self.image).scaled(self.scale)

    @cached_property
    def scale(self) -> IntensityScale:
        """What scales the image to [0, 1]."""
        return quantile_scale(view_of(self.image))

    @cached_property
    def hash(self) -> str:
        """Content hash, equal for any storage orientation."""
        if self.pair is not None:
            return self.pair.image_hash
        volume = CanonicalVolume.of(self.image)
        return content_hash(volume.view, volume.grid)

    @cached_property
    def coarse(self) -> FloatArray:
        """The scaled image, its box cut into `COARSE_SIDE` voxels along each axis."""
        return resize(self.canonical.view, (COARSE_SIDE,) * 3)

    @cached_property
    def sample(self) -> NDArray[Any]:
        """Evenly spaced voxels of the file, in its own units."""
        view = view_of(self.image)
        return pick(view, (spread(math.prod(view.shape), SAMPLE_VOXELS),) * 3).ravel()

    @cached_property
    def scaled_sample(self) -> FloatArray:
        """Evenly spaced voxels of the scaled image."""
        view = self.canonical.view
        return pick(view, (spread(math.prod(view.shape), SAMPLE_VOXELS),) * 3).ravel()


@dataclass(frozen=True)
class Foreground:
    """Where a pair's label is not zero.

    voxels, share : how many, and of all; `box` holds them, in canonical voxels.
    labels, image : label values and scaled intensities of evenly spaced voxels of that box.
    centroids : label value to its centre of mass in canonical voxels.
    """

    voxels: int
    share: float
    box: Region
    labels: NDArray[Any]
    image: FloatArray
    centroids: dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class Exam:
    """A context, the target it is meant for if there is one, and how pairs are placed."""

    pairs: tuple[ContextPair, ...]
    target: xr.DataArray | None
    align: Align

    @cached_property
    def context(self) -> tuple[Scan, ...]:
        """The pairs' images."""
        return tuple(Scan(pair.name, pair.image, pair) for pair in self.pairs)

    @cached_property
    def new(self) -> Scan | None:
        """The target."""
        return None if self.target is None else Scan("target", self.target)

    @property
    def scans(self) -> tuple[Scan, ...]:
        """All images, the target last."""
        return self.context if self.new is None else (*self.context, self.new)

    @property
    def labelled(self) -> tuple[ContextPair, ...]:
        """Pairs whose label marks something; none in image tasks."""
        return tuple(pair for pair in self.pairs if pair.values)

    @cached_property
    def foregrounds(self) -> dict[str, Foreground]:
        """Foreground of each labelled pair, by name."""
        return {pair.name: find_foreground(pair) for pair in self.labelled}


def find_foreground(pair: ContextPair) -> Foreground:
    """Go through a pair's label once, and through the foreground's box a second time."""
    view = pair.canonical_label.view
    voxels, rows = 0, []
    columns, planes = (np.zeros(side, bool) for side in view.shape[1:])
    for slab in slabs(view):
        flat = np.any(slab, axis=2)
        rows.append(np.any(flat, axis=1))
        columns |= np.any(flat, axis=0)
        planes |= np.any(slab, axis=(0, 1))
        voxels += int(np.count_nonzero(slab))
    spans = [np.flatnonzero(along)[[0, -1]] for along in (np.concatenate(rows), columns, planes)]
    x, y, z = (slice(int(low), int(high) + 1) for low, high in spans)
    box: Region = (x, y, z)
    sx, sy, sz = (-(-(side.stop - side.start) // PICKED_SIDE) for side in box)
    labels = pick(view, (sx, sy, sz), box)
    image = pick(pair.canonical_image.view, (sx, sy, sz), box)
    start, step = np.array([side.start for side in box]), np.array((sx, sy, sz))
    centroids = {
        value: start + step * np.argwhere(labels == value).mean(axis=0)
        for value in pair.values
        if (labels == value).any()
    }
    return Foreground(voxels, voxels / math.prod(view.shape), box, labels, image, centroids)


def pick(view: View, step: tuple[int, int, int], region: Region | None = None) -> NDArray[Any]:
    """Read every `step`-th voxel of a region, slab by slab."""
    parts, start = [], 0
    for slab in slabs(view, bounds_of(view.shape, region)):
        parts.append(slab[-start % step[0] :: step[0], :: step[1], :: step[2]].copy())
        start += len(slab)
    return np.concatenate(parts)


def spread(voxels: int, most: int) -> int:
    """Return the step along three axes that leaves about `most` of the voxels."""
    return max(1, round((voxels / most) ** (1 / 3)))
