"""How the pairs lie on the target: stretch, overlap, field of view, spacing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...geometry import overlap_of, placement, stretch_of
from ...placement import CanonicalVolume
from .exam import Exam
from .report import Finding

NOTED_STRETCH = 1.3  # crops of one structure differ by as much in most cohorts
LARGEST_STRETCH = 2.0  # above any two of 160 hippocampus crops (1.92 at most)
SMALLEST_OVERLAP = 0.5
MOST_OUTSIDE = 0.5  # of the foreground: more is lost than used
FAR_EXTENT = 2.0  # times; as LARGEST_STRETCH
FAR_SPACING = 3.0  # times: details of one are two steps of scale away in the other


def check_stretch(exam: Exam) -> Iterator[Finding]:
    """Find pairs whose box is stretched to the target's ("box")."""
    if exam.target is None or exam.align != "box":
        return
    grid = CanonicalVolume.of(exam.target).grid
    for pair in exam.pairs:
        stretch = stretch_of(grid, CanonicalVolume.of(pair.image).grid)
        worst = max(max(s, 1 / s) for s in stretch)
        if worst > NOTED_STRETCH:
            shown = " x ".join(f"{s:.2f}" for s in stretch)
            yield Finding(
                "warning" if worst > LARGEST_STRETCH else "note", "stretched", pair.name,
                f"its box is stretched {shown} to the target's",
                'crop to the same field of view, or try align="center"',
                "the pair is stretched to the target's box",
            )  # fmt: skip


def check_overlap(exam: Exam) -> Iterator[Finding]:
    """Find pairs that cover little of the target, or whose foreground lies outside of it."""
    if exam.target is None:
        return
    grid = CanonicalVolume.of(exam.target).grid
    for pair in exam.pairs:
        source = CanonicalVolume.of(pair.image).grid
        overlap = overlap_of(grid, source, exam.align)
        if overlap < SMALLEST_OVERLAP:
            yield Finding(
                "error" if overlap == 0 else "warning", "little-overlap", pair.name,
                f"covers {overlap:.0%} of the target", 'use align="box", or register the scans',
                "what a pair does not cover is taken as 0",
            )  # fmt: skip
        elif pair.name in exam.foregrounds and exam.align != "box":
            found = exam.foregrounds[pair.name]
            step = [-(-(side.stop - side.start) // n) for side, n in zip(
                found.box, found.labels.shape, strict=True)]  # fmt: skip
            places = np.argwhere(found.labels) * step + [side.start for side in found.box]
            there = np.linalg.inv(placement(grid, source, exam.align))
            share = _outside(places @ there[:3, :3].T + there[:3, 3], grid.shape)
            if share > MOST_OUTSIDE:
                yield Finding(
                    "warning", "label-outside", pair.name,
                    f"{share:.0%} of its foreground lies outside of the target's box",
                    'use align="box", or a pair with the target\'s field of view',
                    "what lies outside is left out",
                )  # fmt: skip


def check_field_of_view(exam: Exam) -> Iterator[Finding]:
    """Find a target with another field of view than every pair; "box" tells it pair by pair."""
    if exam.new is None or not exam.pairs or exam.align == "box":
        return
    grid = exam.new.canonical.grid
    worst = [
        max(max(s, 1 / s) for s in stretch_of(grid, scan.canonical.grid)) for scan in exam.context
    ]
    if min(worst) > FAR_EXTENT:
        yield Finding(
            "warning", "field-of-view", "target",
            f"its field of view is {_times(grid.extent_mm)} mm, along some axis at least "
            f"{min(worst):.1f} times larger or smaller than every pair's",
            "crop it, or use pairs of the same field of view",
        )  # fmt: skip


def check_spacing(exam: Exam) -> Iterator[Finding]:
    """Find a target far finer or coarser than every pair."""
    if exam.new is None or not exam.pairs:
        return
    ours = np.array(exam.new.canonical.grid.spacing_mm)
    worst = [
        float(np.exp(np.abs(np.log(ours / scan.canonical.grid.spacing_mm)).max()))
        for scan in exam.context
    ]
    if min(worst) > FAR_SPACING:
        yield Finding(
            "warning", "spacing-far", "target",
            f"its spacing is {_times(tuple(ours))} mm, along some axis at least {min(worst):.1f} "
            "times finer or coarser than every pair's",
            "use pairs of about the same resolution", "pairs are resampled to the target's grid",
        )  # fmt: skip


CHECKS = (check_stretch, check_overlap, check_field_of_view, check_spacing)


def _outside(places: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    inside = ((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(axis=1)
    return 1 - float(inside.mean())


def _times(sides: tuple[float, ...]) -> str:
    return " x ".join(f"{side:.4g}" for side in sides)
