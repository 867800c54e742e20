"""Shapes on a slice: the voxels a brush takes, and what lies between two drawn slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def rasterise(
    path: NDArray[np.float64],
    shape: tuple[int, int],
    radius_vox: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the voxels of a slice that a round brush touches along a path.

    Parameters
    ----------
    path : (n, 2) voxel coordinates; voxel centres are whole numbers.
    radius_vox : reach from the path to a voxel's centre, in sides of the smaller voxel side.
    spacing : of the slice's voxels, in any unit.

    Returns
    -------
    The box of the slice that holds them, and which of its voxels they are; an empty box for
    a path that stays outside.
    """
    side = np.asarray(spacing) / min(spacing)  # a voxel's, where the smaller one is 1
    low = np.floor(path.min(axis=0) - radius_vox / side - 0.5).clip(0, shape).astype(int)
    high = np.ceil(path.max(axis=0) + radius_vox / side + 1.5).clip(0, shape).astype(int)
    inside = np.zeros(np.maximum(high - low, 0), np.bool_)
    for start, end in pairwise(path if len(path) > 1 else np.repeat(path, 2, axis=0)):
        _mark_segment(inside, start - low, end - low, radius_vox, side)
    return (
        slice(low[0], low[0] + inside.shape[0]),
        slice(low[1], low[1] + inside.shape[1]),
    ), inside


def _mark_segment(
    inside: NDArray[np.bool_],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radius: float,
    side: NDArray[np.float64],
) -> None:
    """Mark the voxels near a straight piece, and those it runs through, so that none is missed."""
    steps = int(np.ceil(2 * np.abs(end - start).max())) + 1
    on_line = np.floor(np.linspace(start, end, steps) + 0.5).astype(int)
    on_line = on_line[((on_line >= 0) & (on_line < inside.shape)).all(axis=1)]
    inside[on_line[:, 0], on_line[:, 1]] = True
    low = np.floor(np.minimum(start, end) - radius / side).clip(0, inside.shape).astype(int)
    high = np.ceil(np.maximum(start, end) + radius / side + 1).clip(0, inside.shape).astype(int)
    rows, columns = np.ogrid[low[0] : high[0], low[1] : high[1]]
    run = (end - start) * side
    off = (rows - start[0]) * side[0], (columns - start[1]) * side[1]
    length = float(run @ run)
    along = (off[0] * run[0] + off[1] * run[1]) / length if length else np.zeros(1)
    along = along.clip(0, 1)
    squared = (off[0] - along * run[0]) ** 2 + (off[1] - along * run[1]) ** 2
    inside[low[0] : high[0], low[1] : high[1]] |= squared <= radius**2 + 1e-9


def between(
    first: NDArray[np.bool_], last: NDArray[np.bool_], steps: int, spacing: Sequence[float]
) -> Iterator[NDArray[np.bool_]]:
    """Yield the shapes on the way from one to another, both ends left out.

    The shape's centre moves evenly, and so does its signed distance.

    Parameters
    ----------
    first, last : (n, m), each with a voxel inside.
    steps : how far apart they lie; one shape fewer is given.
    spacing : of the slice's voxels.
    """
    box = ndimage.find_objects((first | last).astype(np.uint8))[0]
    centres = [np.array(ndimage.center_of_mass(one[box])) for one in (first, last)]
    room = int(np.ceil(np.abs(centres[1] - centres[0]).max())) + 1  # to move, and an outside
    ends = [np.pad(one[box], room) for one in (first, last)]
    depths = [
        ndimage.distance_transform_edt(one, spacing) - ndimage.distance_transform_edt(~one, spacing)
        for one in ends
    ]
    inner = (slice(room, -room), slice(room, -room))
    for step in range(1, steps):
        share = step / steps
        centre = (1 - share) * centres[0] + share * centres[1]
        moved = [
            ndimage.shift(depth, centre - own, order=1, mode="nearest")
            for depth, own in zip(depths, centres, strict=True)
        ]
        shape = np.zeros(first.shape, np.bool_)
        shape[box] = ((1 - share) * moved[0] + share * moved[1])[inner] > 0
        yield shape
