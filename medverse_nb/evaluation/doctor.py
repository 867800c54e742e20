"""The context doctor: what is wrong with a context, said before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..context import ContextPair, content_hash
from ..geometry import Align, orientation_of, overlap_of, stretch_of
from ..intensity import quantile_scale
from ..placement import CanonicalVolume
from ..resampling import FloatArray
from ..volume import grid_of, values_of

Severity = Literal["error", "warning", "note"]
LARGEST_STRETCH = 1.3
SMALLEST_OVERLAP = 0.5
OBLIQUE_DEGREES = 5.0
LARGEST_INTENSITY_DISTANCE = 0.3
HISTOGRAM_BINS = 32


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found."""

    severity: Severity
    code: str
    pair: str  # the pair's name, "target", or "context" for all of them
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """All findings, most severe first; `ok` is True where none is an error."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against predicting."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        if not self.findings:
            return "nothing found: the context looks sound"
        return "\n".join(
            f"{f.severity:7} {f.code:22} {f.pair}: {f.evidence}; {f.remedy}" for f in self.findings
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.findings:
            return "<p>Nothing found: the context looks sound.</p>"
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in asdict(f).values()) + "</tr>"
            for f in self.findings
        )
        head = "".join(f"<th>{name}</th>" for name in asdict(self.findings[0]))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


@dataclass(frozen=True)
class Exam:
    """What the checks look at."""

    pairs: Sequence[ContextPair]
    target: xr.DataArray | None
    align: Align


def examine(pairs: Sequence[ContextPair], target: xr.DataArray | None, align: Align) -> Report:
    """Run every check on the context and, where given, on its fit to the target."""
    exam = Exam(pairs, target, align)
    found = [finding for check in CHECKS for finding in check(exam)]
    order = ("error", "warning", "note")
    return Report(tuple(sorted(found, key=lambda finding: order.index(finding.severity))))


def check_labels(exam: Exam) -> Iterator[Finding]:
    """Find an empty context and empty labels."""
    if not exam.pairs:
        yield Finding("error", "no-context", "context", "there are no pairs", "add a labelled pair")
        return
    if exam.pairs[0].task == "image":
        return
    empty = [pair.name for pair in exam.pairs if not pair.values]
    if len(empty) == len(exam.pairs):
        yield Finding(
            "error", "no-foreground", "context", "every label is zero",
            "add a pair whose label marks the structure",
        )  # fmt: skip
        return
    for name in empty:
        yield Finding(
            "warning", "empty-label", name, "the label has no foreground",
            "keep it only if the structure is truly absent there",
        )  # fmt: skip


def check_changes(exam: Exam) -> Iterator[Finding]:
    """Tell what reading a volume had to change or assume."""
    for pair in exam.pairs:
        for change in pair.changes:
            yield Finding("warning", "changed-on-reading", pair.name, change, "look at the file")
    for change in () if exam.target is None else exam.target.attrs.get("changes", ()):
        yield Finding("warning", "changed-on-reading", "target", change, "look at the file")


def check_geometry(exam: Exam) -> Iterator[Finding]:
    """Find oblique axes, stretch under "box", overlap under "center" and "world"."""
    volumes = [(pair.name, pair.image) for pair in exam.pairs]
    if exam.target is not None:
        volumes.append(("target", exam.target))
    for name, volume in volumes:
        angle = _obliquity_degrees(volume)
        if angle > OBLIQUE_DEGREES and exam.align == "box":
            yield Finding(
                "note", "oblique", name,
                f"voxel axes are {angle:.0f} degrees off {orientation_of(grid_of(volume).affine)}",
                'axes are taken as they are; align="world" honours the angle',
            )  # fmt: skip
    if exam.target is None:
        return
    grid = CanonicalVolume.of(exam.target).grid
    for pair in exam.pairs:
        source = pair.canonical_image.grid
        stretch = stretch_of(grid, source)
        worst = max(max(s, 1 / s) for s in stretch)
        if exam.align == "box" and worst > LARGEST_STRETCH:
            shown = " x ".join(f"{s:.2f}" for s in stretch)
            yield Finding(
                "warning", "stretched", pair.name,
                f"its box is stretched {shown} to the target's",
                'crop to the same field of view, or try align="center"',
            )  # fmt: skip
        overlap = overlap_of(grid, source, exam.align)
        if overlap < SMALLEST_OVERLAP:
            yield Finding(
                "error" if overlap == 0 else "warning", "little-overlap", pair.name,
                f"covers {overlap:.0%} of the target", 'use align="box", or register the scans',
            )  # fmt: skip


def check_duplicates(exam: Exam) -> Iterator[Finding]:
    """Find the target among the context, and pairs that come twice."""
    seen: dict[str, str] = {}
    for pair in exam.pairs:
        if pair.image_hash in seen:
            yield Finding(
                "warning", "duplicate", pair.name, f"the same image as {seen[pair.image_hash]!r}",
                "remove one: it counts twice in the mean",
            )  # fmt: skip
        seen.setdefault(pair.image_hash, pair.name)
    if exam.target is None:
        return
    volume = CanonicalVolume.of(exam.target)
    same = seen.get(content_hash(volume.view, volume.grid))
    if same:
        yield Finding(
            "warning", "target-in-context", same, "the target is this pair's own image",
            "remove the pair before you trust a score",
        )  # fmt: skip


def check_intensity(exam: Exam) -> Iterator[Finding]:
    """Find a target whose scaled histogram is far from every pair's."""
    if exam.target is None or not exam.pairs:
        return
    target_values = values_of(exam.target)
    if target_values.min() == target_values.max():
        yield Finding(
            "error", "constant-image", "target", f"every voxel is {target_values.min()}",
            "this is not a scan",
        )  # fmt: skip
        return
    ours = _cumulative(_scaled(exam.target))
    distances = [
        float(np.abs(ours - _cumulative(pair.canonical_image.array)).mean()) for pair in exam.pairs
    ]
    if min(distances) > LARGEST_INTENSITY_DISTANCE:
        yield Finding(
            "warning", "intensity-far", "target",
            f"its intensities are far from every pair's (distance {min(distances):.2f} of 1)",
            "use pairs of the same modality and contrast",
        )  # fmt: skip


CHECKS: tuple[Callable[[Exam], Iterable[Finding]], ...] = (
    check_labels,
    check_changes,
    check_geometry,
    check_duplicates,
    check_intensity,
)


def _obliquity_degrees(volume: xr.DataArray) -> float:
    affine = grid_of(volume).affine[:3, :3]
    cosines = np.abs(affine / np.linalg.norm(affine, axis=0)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))


def _scaled(volume: xr.DataArray) -> FloatArray:
    values = values_of(volume)
    return quantile_scale(values).apply(values)


def _cumulative(scaled: FloatArray) -> NDArray[np.float64]:
    counts, _ = np.histogram(scaled, bins=HISTOGRAM_BINS, range=(0, 1))
    return np.asarray(np.cumsum(counts) / scaled.size)
