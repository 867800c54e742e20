"""Linear resampling by region: any box of the result from only the voxels it needs.

A box cut out of the whole result and the same box computed alone are equal, which is
what lets windows be resampled one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from . import regions
from .geometry import Affine, Shape
from .regions import Region, View, bounds_of, slabs

FloatArray = NDArray[np.float32]
WHOLE_MARGIN_SIGMAS = 4.0
LARGEST_KNOWN = 160  # voxels along an axis: a window's weights are remembered


@dataclass(frozen=True)
class AxisMap:
    """One axis of a resampling: source coordinate = scale * index + offset.

    Beyond the source's edge, `edge` repeats the border; otherwise the value is 0.
    With `antialias`, shrinking averages over the source voxels behind a result voxel.
    """

    size_in: int
    size_out: int
    scale: float
    offset: float
    edge: bool = True
    antialias: bool = True

    def weights(self, start: int, stop: int) -> tuple[int, FloatArray]:
        """Return (first, W): result[start:stop] = W @ source[first : first + W.shape[1]]."""
        if stop - start > LARGEST_KNOWN:
            return self._weights(start, stop)
        return _known_weights(self, start, stop)

    def _weights(self, start: int, stop: int) -> tuple[int, FloatArray]:
        centres = self.scale * np.arange(start, stop, dtype=np.float64) + self.offset
        width = max(1.0, abs(self.scale)) if self.antialias else 1.0
        columns = np.arange(
            math.floor(float(centres.min()) - width), math.ceil(float(centres.max()) + width) + 1
        )
        weights: NDArray[np.float64] = np.maximum(
            0.0, 1.0 - np.abs(columns[None] - centres[:, None]) / width
        )
        weights /= weights.sum(axis=1, keepdims=True)
        inside = np.clip(columns, 0, self.size_in - 1)
        if not self.edge:
            weights *= inside == columns
        first = int(inside[0])
        folded = np.zeros((stop - start, int(inside[-1]) - first + 1), np.float32)
        np.add.at(folded.T, inside - first, weights.T)
        folded.setflags(write=False)
        return first, folded


@lru_cache(maxsize=2048)
def _known_weights(axis_map: AxisMap, start: int, stop: int) -> tuple[int, FloatArray]:
    """Return weights that many windows ask for."""
    return axis_map._weights(start, stop)  # noqa: SLF001, of the class above


def resize_map(
    size_in: int, size_out: int, *, align_corners: bool = False, antialias: bool = True
) -> AxisMap:
    """Return the map that resizes an axis; voxel centres unless `align_corners`."""
    if align_corners:
        scale = (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
        return AxisMap(size_in, size_out, scale, 0.0, antialias=antialias)
    scale = size_in / size_out
    return AxisMap(size_in, size_out, scale, 0.5 * scale - 0.5, antialias=antialias)


def resample_axes(volume: Any, maps: Sequence[AxisMap], region: Region | None = None) -> FloatArray:
    """Resample a volume, each axis by its own map; it is read in slabs.

    Parameters
    ----------
    volume : (X, Y, Z), array or view.
    maps : one for each of the three axes.
    region : the box of the result to compute; None for all of it.
    """
    bounds = bounds_of([axis_map.size_out for axis_map in maps], region)
    plans = [m.weights(b.start, b.stop) for m, b in zip(maps, bounds, strict=True)]
    x, y, z = (slice(first, first + w.shape[1]) for first, w in plans)
    weigh_x, weigh_y, weigh_z = (weights for _, weights in plans)
    result: FloatArray | None = None
    start = 0
    for slab in slabs(volume, (x, y, z)):
        part = _weigh(_weigh(slab.astype(np.float32, copy=False), weigh_y, 1), weigh_z, 2)
        if len(part) == weigh_x.shape[1]:
            return np.ascontiguousarray(_weigh(part, weigh_x, 0), dtype=np.float32)
        if result is None:
            result = np.zeros((len(weigh_x), *part.shape[1:]), np.float32)
        weights = weigh_x[:, start : start + len(part)]
        rows = np.flatnonzero(weights.any(axis=1))  # that these planes have a share in
        if rows.size:
            reached = slice(rows[0], rows[-1] + 1)
            result[reached] += _weigh(part, weights[reached], 0)
        start += len(part)
    assert result is not None, "a volume has planes"
    return result


def _weigh(volume: NDArray[Any], weights: FloatArray, axis: int) -> NDArray[Any]:
    """Replace an axis by weighted sums of its voxels; one that keeps them is not touched."""
    if weights.shape[0] == weights.shape[1] and np.array_equal(weights, np.eye(len(weights))):
        return volume
    if axis == 0:
        return (weights @ volume.reshape(len(volume), -1)).reshape(-1, *volume.shape[1:])
    return weights @ volume if axis == 1 else volume @ weights.T


def resize(
    volume: View,
    shape: Shape,
    *,
    align_corners: bool = False,
    antialias: bool = True,
    region: Region | None = None,
) -> FloatArray:
    """Resize a volume to `shape`; `region` is the box of the result to compute."""
    maps = [
        resize_map(a, b, align_corners=align_corners, antialias=antialias)
        for a, b in zip(volume.shape, shape, strict=True)
    ]
    return resample_axes(volume, maps, region)


def resample_affine(
    volume: View,
    matrix: Affine,
    shape: Shape,
    *,
    edge: bool = False,
    region: Region | None = None,
) -> FloatArray:
    """Sample (X, Y, Z) where `matrix` maps the result's voxels to the volume's.

    Axis-aligned maps are separable and exact; oblique ones are smoothed by a Gaussian
    where they shrink, then sampled linearly.

    Parameters
    ----------
    volume : array or view.
    shape : of the whole result.
    edge : repeat the border outside the volume, otherwise 0.
    region : the box of the result to compute; None for all of it.
    """
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if np.count_nonzero(linear - np.diag(np.diag(linear))) == 0:
        maps = [
            AxisMap(n_in, n_out, float(linear[a, a]), float(offset[a]), edge=edge)
            for a, (n_in, n_out) in enumerate(zip(volume.shape, shape, strict=True))
        ]
        return resample_axes(volume, maps, region)
    bounds = [(b.start, b.stop) for b in bounds_of(shape, region)]
    return _sample_oblique(volume, linear, offset, edge, bounds)


def _sample_oblique(
    volume: View,
    linear: NDArray[np.float64],
    offset: NDArray[np.float64],
    edge: bool,
    bounds: list[tuple[int, int]],
) -> FloatArray:
    start = np.array([low for low, _ in bounds], np.float64)
    corners = np.stack(np.meshgrid(*[(low, high - 1) for low, high in bounds], indexing="ij"))
    places = linear @ corners.reshape(3, -1) + offset[:, None]
    places = np.clip(places, 0, np.array(volume.shape)[:, None] - 1)  # the border, if repeated
    sigma = np.maximum(0.0, (np.linalg.norm(linear, axis=1) - 1) / 2)
    margin = np.ceil(WHOLE_MARGIN_SIGMAS * sigma) + 1
    low = np.clip(np.floor(places.min(axis=1) - margin), 0, np.array(volume.shape) - 1).astype(int)
    high = np.clip(np.ceil(places.max(axis=1) + margin), 0, np.array(volume.shape) - 1).astype(int)
    (first, last), *others = bounds
    if math.prod(high - low + 1) > regions.SLAB_VOXELS and last - first > 1:  # in two halves
        middle = (first + last) // 2
        halves = [[(first, middle), *others], [(middle, last), *others]]
        parts = [_sample_oblique(volume, linear, offset, edge, half) for half in halves]
        return np.concatenate(parts)
    i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    crop = np.asarray(volume[i, j, k], dtype=np.float32)
    if sigma.any():
        crop = ndimage.gaussian_filter(crop, sigma, mode="nearest", truncate=WHOLE_MARGIN_SIGMAS)
    result = ndimage.affine_transform(
        crop,
        linear,
        offset=linear @ start + offset - low,
        output_shape=tuple(high - low for low, high in bounds),
        order=1,
        mode="nearest" if edge else "grid-constant",
        output=np.float32,
    )
    return np.asarray(result, dtype=np.float32)
