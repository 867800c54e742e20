"""The sources a configuration names, split into training and validation cases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..errors import InputError, MedverseError
from ..geometry import Grid
from ..io import VolumeWarning
from ..pair import make_pair
from ..pair_folder import find_pairs, list_volumes
from ..resampling import resample_affine
from ..tasks.fields import integer, uniform
from ..tasks.labelmaps import gather_nearest, read_head_map, share_numbering
from ..tasks.scenes import HeadSource, Scene, ShapeSource, Source
from ..tasks.volumes import LabelDraw
from .config import DataConfig

Case = TypeVar("Case")
T = TypeVar("T")
LARGEST_JITTER = 0.1  # of a crop's width: how far apart the same place may be in two subjects


@dataclass(frozen=True)
class Scan:
    """A labelled scan in canonical order: image in [0, 1], labels as indices into shared values."""

    name: str
    image: NDArray[np.float16] = field(repr=False)
    classes: Tensor = field(repr=False)
    grid: Grid

    @cached_property
    def structures(self) -> Tensor:
        """The classes it shows, background apart: looked up once, not at every draw."""
        present = torch.unique(self.classes)
        return present[present > 0]


@dataclass(frozen=True)
class ScanSource:
    """Crops of real scans, from native resolution up to the whole, at the same place of each."""

    scans: Sequence[Scan]
    values: tuple[int, ...]
    never_foreground: frozenset[int]

    def draw(self, generator: Generator, count: int, window: int, *, finer: bool = True) -> Scene:
        order = torch.randperm(len(self.scans), generator=generator).tolist()
        chosen = [self.scans[order[i % len(order)]] for i in range(count)]
        first = chosen[0]
        narrowest = window * min(first.grid.spacing_mm)
        widest = max(narrowest, *first.grid.extent_mm)
        width_mm = narrowest * (widest / narrowest) ** uniform(generator, 0, 1)
        side = 2 * window if finer and width_mm > 1.4 * narrowest else window
        place = self._draw_place(first, generator)
        jitter = LARGEST_JITTER * uniform(generator, 0, 1)
        images, classes = [], []
        for scan in chosen:
            shift_mm = jitter * width_mm * (torch.rand(3, generator=generator).numpy() * 2 - 1)
            centre = place * np.array(scan.grid.shape) - 0.5 + shift_mm / scan.grid.spacing_mm
            images.append(scan_image(scan, centre, width_mm, window))
            classes.append(scan_classes(scan, centre, width_mm, side))
        labels = LabelDraw(
            torch.stack(classes), self.values, is_brain=False, never=self.never_foreground
        )
        painted = torch.stack(images)
        return Scene(labels, lambda _: painted, any_contrast=False)

    def _draw_place(self, scan: Scan, generator: Generator) -> NDArray[np.float64]:
        """Draw a voxel of a random structure, as shares of the scan's box."""
        if not len(scan.structures):
            return torch.rand(3, generator=generator).double().numpy()
        structure = scan.structures[integer(generator, 0, len(scan.structures) - 1)]
        voxels = (scan.classes == structure).nonzero()
        voxel = voxels[integer(generator, 0, len(voxels) - 1)].double().numpy()
        return np.asarray((voxel + 0.5) / np.array(scan.grid.shape))


def crop_map(
    scan: Scan, centre_vox: NDArray[np.float64], width_mm: float, side: int
) -> NDArray[np.float64]:
    """Return the (4, 4) map from a cube of `side` voxels, `width_mm` wide, to a scan's voxels."""
    step = width_mm / side / np.array(scan.grid.spacing_mm)
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = centre_vox - step * (side - 1) / 2
    return matrix


def scan_image(scan: Scan, centre_vox: NDArray[np.float64], width_mm: float, side: int) -> Tensor:
    """Cut a cube out of a scan's image, averaging where it shrinks; zero outside."""
    matrix = crop_map(scan, centre_vox, width_mm, side)
    return torch.from_numpy(resample_affine(scan.image, matrix, (side, side, side))).clamp_(0, 1)


def scan_classes(scan: Scan, centre_vox: NDArray[np.float64], width_mm: float, side: int) -> Tensor:
    """Cut the same cube out of its labels, to the nearest voxel."""
    matrix = torch.from_numpy(crop_map(scan, centre_vox, width_mm, side)).float()
    index = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 3, indexing="ij"))
    coordinates = matrix.diagonal()[:3].view(3, 1, 1, 1) * index + matrix[:3, 3].view(3, 1, 1, 1)
    return gather_nearest(scan.classes, coordinates)


@dataclass(frozen=True)
class Split:
    """One configured source: what is trained on, what is held out, and what was passed over."""

    training: Source
    validation: Source | None
    skipped: tuple[str, ...] = ()


def open_source(config: DataConfig, *, strict: bool = False) -> Split:
    """Read a configured source and split it.

    A case that cannot be used is passed over and reported, or an error if `strict`.

    Raises
    ------
    InputError : no usable case, or none left to train on.
    """
    if config.kind == "shapes":
        return Split(ShapeSource(), None)
    assert config.folder is not None  # the configuration saw to it
    if config.kind == "label_maps":
        maps, skipped = _read_cases(list_volumes(config.folder), read_head_map, strict=strict)
        training, validation = _split(share_numbering(maps), config)
        never = frozenset(config.never_foreground)
        return Split(
            HeadSource(training, never),
            HeadSource(validation, never) if validation else None,
            skipped,
        )
    return _open_scans(config, config.folder, strict)


def _read_cases(
    cases: Iterable[Case], read: Callable[[Case], T], *, strict: bool
) -> tuple[list[T], tuple[str, ...]]:
    """Read every case; return what could be used, and why the others could not."""
    usable, skipped = [], []
    for case in cases:
        try:
            usable.append(read(case))
        except MedverseError as error:
            if strict:
                raise
            skipped.append(str(error))
            warnings.warn(f"passed over: {error}", VolumeWarning, stacklevel=4)
    return usable, tuple(skipped)


def _split(cases: Sequence[T], config: DataConfig) -> tuple[Sequence[T], Sequence[T]]:
    first = len(cases) - config.validation
    if first < 1:
        raise InputError(
            f"{config.folder}: {len(cases)} usable cases, {config.validation} of them for "
            "validation; none is left to train on"
        )
    return cases[:first], cases[first:]


def _open_scans(config: DataConfig, folder: Path, strict: bool) -> Split:
    files = find_pairs(folder / "imagesTr", folder / "labelsTr")
    pairs, skipped = _read_cases(
        files, lambda name: make_pair(*files[name], name=name), strict=strict
    )
    values = (0, *sorted({value for pair in pairs for value in pair.values}))
    if len(values) > 256:
        raise InputError(f"{folder}: {len(values)} label values; at most 256 can be trained on")
    scans = []
    for pair in pairs:
        volume = pair.canonical_image
        index = np.searchsorted(values, pair.canonical_label.array).astype(np.uint8)
        scans.append(
            Scan(pair.name, volume.array.astype(np.float16), torch.from_numpy(index), volume.grid)
        )
    training, validation = _split(scans, config)
    never = frozenset(config.never_foreground)
    return Split(
        ScanSource(training, values, never),
        ScanSource(validation, values, never) if validation else None,
        skipped,
    )
