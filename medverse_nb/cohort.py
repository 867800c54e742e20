"""Which cases of some folders serve as context and which are predicted, and their mean score."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .dicom import holds_dicom
from .errors import ContextError, InputError
from .io import Source, name_of
from .many import Case
from .pair_folder import by_name, case_name, find_pairs, list_volumes
from .zarr_volumes import is_zarr

Sources = str | Path | Sequence[Source] | Mapping[str, Source]


@dataclass(frozen=True)
class Plan:
    """Names of the context pairs, and the cases to predict: never one of them."""

    context: list[str]
    cases: list[Case]


def plan_cohort(
    targets: Sequence[Path],
    images: Path,
    labels: Path,
    *,
    context_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Plan:
    """Choose the context by seed, then the cases; a case is never its own context.

    Parameters
    ----------
    targets : files, folders of files, zarr and DICOM folders, in any mixture. One that is a
        scan itself is kept out of the context.
    images, labels : the labelled folders in nnU-Net layout.
    context_size : L; None takes every labelled case that is not a target.
    limit : at most so many cases, in name order.

    Raises
    ------
    ContextError : too few labelled cases, two targets of one name, or no case left to
        predict.
    InputError : a target that is not there, a size below one.
    """
    pairs = find_pairs(images, labels)
    truths = {name: label for name, (_, label) in pairs.items()}
    return plan_around(
        targets, truths, str(images), context_size=context_size, limit=limit, seed=seed
    )


def plan_around(
    targets: Sequence[Path],
    labelled: Mapping[str, Path | None],
    place: str,
    *,
    context_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Plan:
    """Choose as `plan_cohort` does, among labelled cases that are known by name.

    Parameters
    ----------
    labelled : names and, where a case may be scored, its label.
    place : of these cases, told in messages.

    Raises
    ------
    ContextError, InputError : as `plan_cohort`.
    """
    for option, value in (("context_size", context_size), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, got {value}")
    scans = {target: _scans_in(_there(target)) for target in targets}
    explicit = {case_name(target) for target in targets if scans[target] == [target]}
    listed = [path for target in targets for path in scans[target]]
    files = by_name({path.absolute(): path for path in listed}.values(), case_name)
    pool = [name for name in labelled if name not in explicit]
    if context_size is None:
        context = [name for name in pool if name not in files] or pool
    else:
        if len(pool) < context_size:
            raise ContextError(
                f"{len(pool)} labelled cases in {place} can serve as context, {context_size} wanted"
            )
        order = np.random.default_rng(seed).permutation(len(pool))[:context_size]
        context = sorted(pool[int(index)] for index in order)
    if not context:
        raise ContextError(f"every labelled case in {place} is a target; none is left as context")
    left = [name for name in sorted(files) if name not in context]
    if not left:
        raise ContextError(
            "no case is left to predict: all targets serve as context; ask for fewer pairs "
            "(context_size), or name a target's file"
        )
    return Plan(context, [Case(name, files[name], labelled.get(name)) for name in left[:limit]])


def with_truths(plan: Plan, folder: Path) -> Plan:
    """Return the plan with the labels of a folder, by name, for the scans to be scored with.

    Raises
    ------
    ContextError : no such folder, or no NIfTI file in it.
    InputError : no label has the name of a scan.
    """
    known = by_name(list_volumes(folder), case_name)
    if not any(case.name in known for case in plan.cases):
        raise InputError(
            f"no label in {folder} has the name of a scan, such as {plan.cases[0].name}"
        )
    cases = [replace(case, truth=known.get(case.name, case.truth)) for case in plan.cases]
    return replace(plan, cases=cases)


def cases_of(
    targets: Sources, truths: str | Path | Mapping[str, Source] | None = None
) -> list[Case]:
    """Return the cases of scans and, by the same names, of known labels.

    Parameters
    ----------
    targets : scans by name; or scans, called as their files are; or a folder of them, in which
        `NAME_0000.nii.gz` is NAME, as in nnU-Net.
    truths : labels by name, or a folder of them; some may be missing.

    Raises
    ------
    ContextError : a folder without a NIfTI file.
    InputError : a folder that is not there, or a truth without a scan.
    """
    known = dict(_named(truths)) if truths else {}
    scans = _named(targets)
    if alone := sorted(set(known) - {name for name, _ in scans}):
        raise InputError(f"truths without a scan of that name: {', '.join(alone)}")
    return [Case(name, scan, known.get(name)) for name, scan in scans]


def _named(sources: Sources) -> list[tuple[str, Source]]:
    if isinstance(sources, Mapping):
        return list(sources.items())
    if isinstance(sources, (str, os.PathLike)):
        sources = _scans_in(_there(Path(sources)))
    return [
        (case_name(one) if isinstance(one, (str, os.PathLike)) else name_of(one), one)
        for one in sources
    ]


def _there(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path.name}: no such file or folder: {path}")
    return path


def _scans_in(target: Path) -> list[Path]:
    """Return a folder's NIfTI files, or the target itself: a file, a zarr or a DICOM folder."""
    if target.is_dir() and not is_zarr(target):
        try:
            return list_volumes(target)
        except ContextError:
            if not holds_dicom(target):
                raise
    return [target]


def mean_scores(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean of every score column by class, over the rows that have one."""
    sums: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for score in row.get("score") or []:
            for column, value in score.items():
                if column != "class" and value is not None:
                    sums.setdefault(score["class"], {}).setdefault(column, []).append(value)
    return {
        name: {column: float(np.mean(values)) for column, values in columns.items()}
        for name, columns in sums.items()
    }
