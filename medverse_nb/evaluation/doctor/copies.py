"""Copies: an image that comes twice, with other labels, or as the target, exactly or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .exam import Exam, Scan
from .report import Finding

DETAIL_SIGMA_VOX = 2.0  # broader structure is alike in all subjects
# Correlation of the details: 0.54 at most between any two of 160 hippocampi, 0.86 between two of
# our phantoms, which share every outline; 0.97 or more of a copy, unless few voxels are left of it.
COPY_CORRELATION = 0.92
FEWEST_VOXELS = 16**3  # fewer have too little detail to tell two scans apart


def check_duplicates(exam: Exam) -> Iterator[Finding]:
    """Find images that come twice, and the target among the context, by content hash."""
    first: dict[str, Scan] = {}
    for scan in exam.context:
        same = first.setdefault(scan.hash, scan)
        if same is scan:
            continue
        assert scan.pair is not None
        assert same.pair is not None
        if scan.pair.hash == same.pair.hash:
            yield Finding(
                "warning", "duplicate", scan.name, f"the same image as {same.name!r}, same label",
                "remove one: it counts twice in the mean",
            )  # fmt: skip
        else:
            yield Finding(
                "warning", "conflicting-labels", scan.name,
                f"the same image as {same.name!r} with another label",
                "keep the better label, or name the union of both as one class in one file",
                "the mean of both is used",
            )  # fmt: skip
    if exam.new is not None and exam.new.hash in first:
        yield Finding(
            "warning", "target-in-context", first[exam.new.hash].name,
            "the target is this pair's own image", "remove the pair before you trust a score",
        )  # fmt: skip


def check_near_duplicates(exam: Exam) -> Iterator[Finding]:
    """Find resampled or rescaled copies, by their details at a coarse size."""
    scans = [scan for scan in exam.scans if scan.image.size >= FEWEST_VOXELS]
    prints = {scan.name: fingerprint(scan) for scan in scans}
    for one, other in combinations(scans, 2):
        alike = float(prints[one.name] @ prints[other.name])
        if alike < COPY_CORRELATION or one.hash == other.hash:
            continue
        evidence = f"the details of both correlate by {alike:.2f} (1 for a copy)"
        if other.pair is None:
            yield Finding(
                "warning", "target-copy", one.name,
                f"looks like the target, resampled or rescaled: {evidence}",
                "remove the pair before you trust a score",
            )  # fmt: skip
        else:
            yield Finding(
                "warning", "near-duplicate", other.name,
                f"looks like {one.name!r}, resampled or rescaled: {evidence}",
                "remove one if it is the same scan: it counts twice in the mean",
            )  # fmt: skip


CHECKS = (check_duplicates, check_near_duplicates)


def fingerprint(scan: Scan) -> NDArray[np.float64]:
    """Return the details of a coarse image as a vector of length one, or zeros of a flat one."""
    detail = scan.coarse - ndimage.gaussian_filter(scan.coarse, DETAIL_SIGMA_VOX)
    vector = detail.ravel().astype(np.float64)
    vector -= vector.mean()
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length > 0 else vector)
