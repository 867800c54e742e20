"""Whether the pairs mean the same by foreground: its values, size, place and brightness.

A pair is compared with the others' median, and stands out where it lies farther from it than a
floor and than several times what the others differ among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ...pair import ContextPair
from ...placement import CanonicalVolume
from .exam import Exam, Foreground
from .report import Finding

FEWEST_TO_VOTE = 3
SPREADS = 5.0  # times the others' median absolute deviation
FAR_VOLUME = 4.0  # times: lesions aside, no organ varies as much between adults
FAR_PLACE = 0.25  # of the field of view
FAR_INTENSITY = 0.3  # of the range from dark to bright


def check_values(exam: Exam) -> Iterator[Finding]:
    """Find pairs that share no label value with any other."""
    if len(exam.labelled) < 2:
        return
    for pair in exam.labelled:
        others = {v for other in exam.labelled if other is not pair for v in other.values}
        if not others & set(pair.values):
            yield Finding(
                "warning", "other-values", pair.name,
                f"its label values {_some(pair.values)} are in no other pair "
                f"(those have {_some(sorted(others))})",
                "give one structure one value, or name a union such as "
                f'classes={{"structure": ({pair.values[0]}, {min(others)})}}',
                "every value is a class of its own",
            )  # fmt: skip


def check_volume(exam: Exam) -> Iterator[Finding]:
    """Find foregrounds far larger or smaller than the others'."""
    sizes = {p.name: np.array([np.log(_size(exam, p))]) for p in exam.labelled}
    for name, far in outliers(sizes, np.log(FAR_VOLUME)).items():
        times = np.exp(far)
        yield Finding(
            "warning", "foreground-volume", name,
            f"its foreground is {times:.1f} times larger or smaller than the others' median "
            f"({exam.foregrounds[name].share:.2g} of its volume)",
            "do all labels mark the same structure, wholly?",
        )  # fmt: skip


def check_place(exam: Exam) -> Iterator[Finding]:
    """Find classes that lie elsewhere than in the other pairs, as they will be placed."""
    told = set()
    for value in sorted({v for found in exam.foregrounds.values() for v in found.centroids}):
        places = {
            pair.name: _place(exam, pair, exam.foregrounds[pair.name].centroids[value])
            for pair in exam.labelled
            if value in exam.foregrounds[pair.name].centroids
        }
        for name, far in outliers(places, FAR_PLACE).items():
            if name in told:
                continue
            told.add(name)
            yield Finding(
                "warning", "foreground-place", name,
                f"label {value} lies {far:.0%} of the field of view from where the others have it",
                "is the pair flipped, cropped otherwise, or are its values swapped?",
            )  # fmt: skip


def check_brightness(exam: Exam) -> Iterator[Finding]:
    """Find foregrounds far brighter or darker than the others'."""
    means = {name: _brightness(found) for name, found in exam.foregrounds.items()}
    for name, far in outliers(means, FAR_INTENSITY).items():
        yield Finding(
            "warning", "foreground-intensity", name,
            f"its foreground has mean intensity {means[name][0]:.2f} (0 dark, 1 bright), "
            f"{far:.2f} from the others' median",
            "do all labels mark the same structure, on the same kind of image?",
        )  # fmt: skip


CHECKS = (check_values, check_volume, check_place, check_brightness)


def outliers(values: Mapping[str, NDArray[np.float64]], floor: float) -> dict[str, float]:
    """Return the names whose vector lies far from the others', and how far.

    Far is more than `floor` and more than `SPREADS` times the others' median distance from
    their own median.
    """
    found: dict[str, float] = {}
    if len(values) < FEWEST_TO_VOTE:
        return found
    for name, value in values.items():
        others = np.array([vector for other, vector in values.items() if other != name])
        centre = np.median(others, axis=0)
        spread = float(np.median(np.linalg.norm(others - centre, axis=1)))
        far = float(np.linalg.norm(value - centre))
        if far > max(floor, SPREADS * spread):
            found[name] = far
    return found


def _size(exam: Exam, pair: ContextPair) -> float:
    """Return the foreground's size as the target will see it: a share of the box, or mm3."""
    found = exam.foregrounds[pair.name]
    if exam.align == "box":
        return found.share
    return found.voxels * float(np.prod(CanonicalVolume.of(pair.image).grid.spacing_mm))


def _place(exam: Exam, pair: ContextPair, centroid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where a class lies as the target will see it, in fields of view."""
    grid = CanonicalVolume.of(pair.image).grid
    if exam.align == "box":
        return (centroid - grid.centre_vox) / np.array(grid.shape)
    extents = [CanonicalVolume.of(p.image).grid.extent_mm for p in exam.labelled]
    place = grid.affine[:3, :3] @ centroid + grid.affine[:3, 3]
    if exam.align == "center":
        place = place - grid.centre_mm
    return np.asarray(place / np.median(extents, axis=0))


def _brightness(found: Foreground) -> NDArray[np.float64]:
    # evenly spaced voxels may all miss a foreground of a few
    inside = found.image[found.labels != 0]
    return np.array([inside.mean() if inside.size else found.image.mean()], np.float64)


def _some(values: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
