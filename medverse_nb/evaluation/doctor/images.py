"""Intensities: constant, clipped, inverted, of another modality, or far from the context's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...resampling import FloatArray
from .exam import Exam, Scan
from .report import Finding

FAR_DISTANCE = 0.3  # between cumulative histograms, in [0, 1]
HISTOGRAM_BINS = 32
MOST_CLIPPED = 0.01  # of the voxels at the largest value: 50 times what real scans have
FEWEST_LEVELS = 16  # fewer values, or voxels at the top, are a drawing or chance
AIR_HU, SOFT_HU = -300.0, 200.0  # below is air or lung; soft tissue and fat lie in +-SOFT_HU
LEAST_SOFT = 0.4  # of what is not air
# Correlation of two images laid box on box. Real crops of one structure reach 0.35 or more in
# the median over other subjects, and an inverted one the same below zero.
LIKE, UNLIKE = 0.2, -0.2


def check_constant(exam: Exam) -> Iterator[Finding]:
    """Find images without contrast."""
    for scan in exam.scans:
        if not scan.coarse.any() and scan.scale.low == scan.scale.high:
            yield Finding(
                "error" if scan.pair is None else "warning", "constant-image", scan.name,
                f"every voxel is {scan.sample[0]:g}", "this is not a scan", "it is taken as 0",
            )  # fmt: skip


def check_clipped(exam: Exam) -> Iterator[Finding]:
    """Find images whose bright end was cut off."""
    for scan in exam.scans:
        values = scan.sample
        count = np.count_nonzero(values == values.max())
        share = count / values.size
        if (
            share > MOST_CLIPPED
            and count >= FEWEST_LEVELS
            and len(np.unique(values)) >= FEWEST_LEVELS
        ):
            yield Finding(
                "warning", "clipped", scan.name,
                f"{share:.1%} of the voxels have the largest value, {values.max():g}",
                "use the image before it was windowed or cut to 8 bits",
            )  # fmt: skip


def check_modality(exam: Exam) -> Iterator[Finding]:
    """Find CT in Hounsfield units among other images, or the other way round."""
    is_ct = {scan.name: in_hounsfield_units(scan.sample) for scan in exam.scans}
    of_pairs = [is_ct[scan.name] for scan in exam.context]
    if exam.new is not None and of_pairs and is_ct["target"] not in of_pairs:
        yield _other_modality("target", is_ct["target"], "no pair does")
    count = sum(of_pairs)
    if 0 < count < len(of_pairs):
        rare = count <= len(of_pairs) / 2
        told = f"{len(of_pairs) - (count if rare else len(of_pairs) - count)} pairs do not"
        for scan in exam.context:
            if is_ct[scan.name] == rare:
                yield _other_modality(scan.name, rare, told)


def check_inverted(exam: Exam) -> Iterator[Finding]:
    """Find images that are dark where the others are bright."""
    varied = [scan for scan in exam.scans if scan.coarse.std() > 0]
    if len(varied) < 3:
        return
    vectors = np.stack([_centred(scan.coarse) for scan in varied])
    alike = vectors @ vectors.T
    for number, scan in enumerate(varied):
        others = [n for n, other in enumerate(varied) if n != number and other.pair is not None]
        if len(others) < 2:
            continue
        among = alike[np.ix_(others, others)][np.triu_indices(len(others), 1)]
        ours = float(np.median(alike[number, others]))
        if ours < UNLIKE and np.median(among) > LIKE:
            yield Finding(
                "warning", "inverted", scan.name,
                f"its correlation with the other images is {ours:.2f} in the median, theirs among "
                f"themselves {np.median(among):.2f}",
                "invert it, or leave it out: it has another contrast",
            )  # fmt: skip


def check_intensity(exam: Exam) -> Iterator[Finding]:
    """Find a target whose scaled histogram is far from every pair's."""
    if exam.new is None or not exam.pairs or exam.new.scale.low == exam.new.scale.high:
        return
    ours = _cumulative(exam.new)
    nearest = min(float(np.abs(ours - _cumulative(scan)).mean()) for scan in exam.context)
    if nearest > FAR_DISTANCE:
        yield Finding(
            "warning", "intensity-far", "target",
            f"its intensities are far from every pair's (distance {nearest:.2f} of 1)",
            "use pairs of the same modality and contrast",
        )  # fmt: skip


CHECKS = (check_constant, check_clipped, check_modality, check_inverted, check_intensity)


def in_hounsfield_units(values: NDArray[np.generic]) -> bool:
    """Whether these look like CT: air far below zero, and soft tissue around it."""
    numbers = values.astype(np.float32)
    if numbers.min() > -SOFT_HU or numbers.max() < SOFT_HU:
        return False
    body = numbers[numbers > AIR_HU]
    return bool(body.size) and float(np.mean(np.abs(body) <= SOFT_HU)) >= LEAST_SOFT


def _other_modality(name: str, is_ct: bool, others: str) -> Finding:
    looks = "looks like CT in Hounsfield units" if is_ct else "does not look like CT"
    against = (
        others if is_ct else others.replace("do not", "do").replace("no pair does", "pairs do")
    )
    return Finding(
        "warning", "modality", name, f"{looks}, {against}", "use pairs of one modality",
        "each image is scaled by its own quantiles",
    )  # fmt: skip


def _centred(image: FloatArray) -> NDArray[np.float64]:
    vector = image.ravel().astype(np.float64)
    vector -= vector.mean()
    return np.asarray(vector / np.linalg.norm(vector))


def _cumulative(scan: Scan) -> NDArray[np.float64]:
    counts, _ = np.histogram(scan.scaled_sample, bins=HISTOGRAM_BINS, range=(0, 1))
    return np.asarray(np.cumsum(counts) / scan.scaled_sample.size)
