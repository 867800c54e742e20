"""Label maps to draw tasks from: FreeSurfer-style heads and random smooth shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from ..errors import InputError
from ..io import read_volume, stem_of
from ..placement import CanonicalVolume
from .fields import chance, deformed_grid, integer, smooth_field, uniform
from .volumes import LabelDraw, inside_brain

CSF = frozenset({4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72})
WHITE = frozenset({2, 7, 41, 46, 77, 85})
BETWEEN = frozenset({10, 13, 16, 28, 49, 52, 60})  # thalamus, pallidum, brainstem, ventral DC
GREY = frozenset({3, 8, 11, 12, 17, 18, 26, 42, 47, 50, 51, 53, 54, 58, 136, 137, 163, 164})
HIGHEST_LABEL, MOST_LABELS, LABEL_TOLERANCE = 65535, 256, 1e-4

# Poses differ between patients, and some data sets are cropped to an organ.
LARGEST_TURN = 0.25  # rad, deviation of the angle about each axis in the worst aligned tasks
BY_STRUCTURE = 0.4  # share of the tasks whose crops lie around the structure's own centre


@dataclass(frozen=True)
class HeadMap:
    """One head's label map in RAS order, its labels renumbered 0..n-1.

    `classes` (X, Y, Z) uint8 indexes `values`, the labels of the file; `centre` and
    `extent` (3,) describe the brain's box in voxels, so that heads can be laid over
    each other.
    """

    name: str
    classes: Tensor
    values: tuple[int, ...]
    centre: Tensor
    extent: Tensor

    @cached_property
    def centroids(self) -> Tensor:
        """The centre of each class in voxels, (n, 3); NaN where the head does not have it."""
        flat = self.classes.flatten().int()
        count = torch.bincount(flat, minlength=len(self.values))
        places = torch.meshgrid(
            *[torch.arange(side, dtype=torch.float32) for side in self.classes.shape],
            indexing="ij",
        )
        sums = [
            torch.bincount(flat, weights=place.flatten(), minlength=len(self.values))
            for place in places
        ]
        return (torch.stack(sums, 1) / count[:, None]).float()


def read_head_map(path: str | Path) -> HeadMap:
    """Read a 1 mm FreeSurfer label map.

    Raises
    ------
    InputError : a file that cannot be read, values that are no labels, or none of a brain.
    """
    array = CanonicalVolume.of(read_volume(path)).array
    labels = np.rint(array)
    off = float(np.abs(array - labels).max())
    if off > LABEL_TOLERANCE or labels.min() < 0 or labels.max() > HIGHEST_LABEL:
        raise InputError(f"{path}: a label map holds whole numbers from 0 to {HIGHEST_LABEL}")
    labels = labels.astype(np.int32)
    values = tuple(np.flatnonzero(np.bincount(labels.ravel())).tolist())
    if len(values) > MOST_LABELS:
        raise InputError(f"{path}: {len(values)} labels; at most {MOST_LABELS} can be kept")
    lookup = np.zeros(values[-1] + 1, np.uint8)
    lookup[list(values)] = np.arange(len(values))
    brain = np.argwhere(np.isin(labels, [value for value in values if inside_brain(value)]))
    if not len(brain):
        raise InputError(f"{path}: no voxel has a FreeSurfer label of the brain")
    low, high = brain.min(0), brain.max(0)
    return HeadMap(
        name=stem_of(path),
        classes=torch.from_numpy(np.ascontiguousarray(lookup[labels])),
        values=values,
        centre=torch.from_numpy((low + high) / 2).float(),
        extent=torch.from_numpy(high - low).float(),
    )


def share_numbering(heads: Sequence[HeadMap]) -> list[HeadMap]:
    """Renumber the labels of heads alike.

    Raises
    ------
    InputError : more than 256 labels.
    """
    values = tuple(sorted({value for head in heads for value in head.values}))
    if len(values) > MOST_LABELS:
        raise InputError(
            f"{len(values)} labels in {len(heads)} maps; at most {MOST_LABELS} can be kept"
        )
    lookups = [torch.tensor([values.index(v) for v in head.values]).byte() for head in heads]
    return [
        replace(head, classes=lookup[head.classes.int()], values=values)
        for head, lookup in zip(heads, lookups, strict=True)
    ]


def read_head_maps(paths: Sequence[str | Path]) -> list[HeadMap]:
    """Read FreeSurfer label maps with one shared numbering.

    Raises
    ------
    InputError : a missing file, one that is no label map, or more than 256 labels.
    """
    missing = [str(path) for path in paths if not Path(path).is_file()]
    if missing:
        raise InputError(f"label maps not found: {missing}")
    return share_numbering([read_head_map(path) for path in paths])


def gather_nearest(volume: Tensor, coordinates: Tensor) -> Tensor:
    """Look up (X, Y, Z) at voxel coordinates (3, ...), zero outside."""
    index = coordinates.round().long()
    inside = torch.ones(index.shape[1:], dtype=torch.bool)
    for axis in range(3):
        inside &= (index[axis] >= 0) & (index[axis] < volume.shape[axis])
        index[axis].clamp_(0, volume.shape[axis] - 1)
    flat = (index[0] * volume.shape[1] + index[1]) * volume.shape[2] + index[2]
    return torch.where(inside, volume.reshape(-1)[flat], torch.zeros((), dtype=volume.dtype))


def draw_head_labels(
    heads: Sequence[HeadMap], generator: Generator, count: int, side: int, width_mm: float
) -> LabelDraw:
    """Cut the same place, `width_mm` wide, out of `count` heads, each posed and deformed a little.

    The place is around a random voxel of a random structure, so that small structures come as
    often as large ones. Heads are laid over each other by the brain's box, or, as in data sets
    that were cropped to an organ, by the structure's own centre.
    """
    order = torch.randperm(len(heads), generator=generator)
    chosen = [heads[int(order[i % len(heads)])] for i in range(count)]
    first = chosen[0]
    structure = integer(generator, 1, len(first.values) - 1)
    voxels = (first.classes[::2, ::2, ::2] == structure).nonzero()
    if len(voxels):
        point = 2.0 * voxels[integer(generator, 0, len(voxels) - 1)]
    else:
        point = first.centre
    point = point + (torch.rand(3, generator=generator) - 0.5) * 0.5 * width_mm
    by_structure = chance(generator, BY_STRUCTURE)
    # From registered scans, where the mean label is hard to beat, to hardly aligned ones.
    misfit = uniform(generator, 0, 1) ** 1.5
    jitter_mm = (0.08 if by_structure else 0.22) * misfit * width_mm
    affine = 0.02 + 0.08 * misfit
    turn = LARGEST_TURN * uniform(generator, 0, 1) ** 2
    elastic = uniform(generator, 0.02, 0.06)
    maps = []
    for head in chosen:
        centre = head.centre + (point - first.centre) / first.extent * head.extent
        landmark, ours = first.centroids[structure], head.centroids[structure]
        if by_structure and bool((landmark + ours).isfinite().all()):
            centre = ours + (point - landmark)
        centre = centre + (torch.rand(3, generator=generator) * 2 - 1) * jitter_mm
        grid = deformed_grid(generator, side, affine, elastic, turn)
        maps.append(gather_nearest(head.classes, centre.view(3, 1, 1, 1) + grid * width_mm / 2))
    return LabelDraw(torch.stack(maps), first.values, is_brain=True)


def draw_shape_labels(generator: Generator, count: int, side: int) -> LabelDraw:
    """Draw 3 to 13 random smooth shapes, the same in all `count` maps but for a deformation."""
    shapes = integer(generator, 3, 13)
    template_side = 40
    fields = smooth_field(generator, template_side, integer(generator, 3, 9), shapes)
    fields += 0.3 * smooth_field(generator, template_side, 12, shapes)
    if chance(generator, 0.5):  # blobs in a background, not a mosaic
        fields[0] += uniform(generator, 0.3, 1.2)
    template = fields.argmax(0).to(torch.uint8)
    elastic = uniform(generator, 0.03, 0.15)
    affine = uniform(generator, 0.02, 0.2)
    jitter = uniform(generator, 0, 0.25)
    maps = []
    for _ in range(count):
        grid = 0.75 * deformed_grid(generator, side, affine, elastic)
        grid += (torch.rand(3, 1, 1, 1, generator=generator) * 2 - 1) * jitter
        maps.append(gather_nearest(template, (grid + 1) * (template_side / 2) - 0.5))
    return LabelDraw(torch.stack(maps), tuple(range(shapes)), is_brain=False)
