"""The context doctor: what is wrong with a context, said before anything runs.

Each file looks at one side of it and names its thresholds at its top; `docs/doctor.md` lists
every finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import xarray as xr

from ...geometry import Align
from ...pair import ContextPair
from . import agreement, copies, fit, headers, images, labels
from .exam import Exam
from .report import Finding, Report

__all__ = ["CHECKS", "Finding", "Report", "examine"]

CHECKS: tuple[Callable[[Exam], Iterable[Finding]], ...] = (
    *labels.CHECKS,
    *headers.CHECKS,
    *fit.CHECKS,
    *images.CHECKS,
    *copies.CHECKS,
    *agreement.CHECKS,
)


def examine(pairs: Sequence[ContextPair], target: xr.DataArray | None, align: Align) -> Report:
    """Run every check on the context and, where given, on its fit to the target.

    Volumes are read in slabs, a few times each; what is kept of one is a few megabytes.
    """
    exam = Exam(tuple(pairs), target, align)
    found = [finding for check in CHECKS for finding in check(exam)]
    order = ("error", "warning", "note")
    found.sort(key=lambda finding: order.index(finding.severity))
    return Report(tuple(found), exam.pairs)
