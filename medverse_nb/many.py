"""A cohort, case after case or side by side on a cluster: a bad case is told and the rest go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from .classes import Classes
from .errors import ClusterError, InputError, MedverseError, OutputError
from .evaluation.trust.score import EXPECTED
from .files import found_among
from .io import Source
from .judge import TrustLevel
from .prediction import Prediction
from .progress import Progress
from .registration import Register

if TYPE_CHECKING:
    from .inference.cluster import Cluster

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One scan to predict; `truth` where its label is known."""

    name: str
    image: Source
    truth: Source | None = None


class Predictor(Protocol):
    """What predicts a case: an `ICLSession`."""

    def predict(
        self,
        target: Source,
        *,
        classes: Classes = None,
        name: str | None = None,
        truth: Source | None = None,
        trust: TrustLevel = "off",
        register: Register = "off",
        on_progress: None = None,
    ) -> Prediction:
        """Predict the label of one scan."""


@dataclass(frozen=True)
class CaseTask:
    """Predicts a case and writes it where `out` is given; can be sent to another process."""

    predictor: Predictor
    classes: Classes
    out: Path | None
    trust: TrustLevel = "off"
    register: Register = "off"

    def __call__(self, case: Case) -> Row:
        """Return what is told of the case; of a bad one, its error."""
        try:
            prediction = self.predictor.predict(
                case.image,
                classes=self.classes,
                name=None if isinstance(case.image, (str, os.PathLike)) else case.name,
                truth=case.truth,
                trust=self.trust,
                register=self.register,
                on_progress=None,
            )
            written = self.out and prediction.write(self.out / f"{case.name}.nii.gz")
        except OutputError:
            raise  # the next case would be lost too
        except MedverseError as error:
            return {"case": case.name, "error": str(error)}
        row: Row = {"case": case.name, "output": str(written)} if written else {"case": case.name}
        return row | prediction.to_dict() | {"seconds": prediction.manifest["seconds"]}


def predict_cases(
    task: CaseTask,
    cases: Sequence[Case],
    *,
    cluster: Cluster | None = None,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Predict every case; a bad one is told in its row and the rest go on.

    Parameters
    ----------
    cluster : its workers take a case each, and write it.
    on_progress : called with a case and how many are done: here before it, of a cluster
        after it; once more at the end.

    Returns
    -------
    One row a case, in their order: `case`, then `output`, `seconds` and the prediction's
    classes, statistics, score, trust, warnings and manifest, or `error`.

    Raises
    ------
    InputError : two cases of one name.
    OutputError : a result would overwrite a scan or its label, or cannot be written.
    """
    _check(cases, task.out)
    tell = on_progress or (lambda _name, _done, _count: None)
    rows: dict[str, Row] = {}
    if cluster:
        for case, outcome in cluster.each(task, cases):
            rows[case.name] = (
                {"case": case.name, "error": str(outcome)}
                if isinstance(outcome, ClusterError)
                else outcome
            )
            tell(case.name, len(rows), len(cases))
    else:
        for case in cases:
            tell(case.name, len(rows), len(cases))
            rows[case.name] = task(case)
    tell("", len(cases), len(cases))
    return [rows[case.name] for case in cases]


def _check(cases: Sequence[Case], out: Path | None) -> None:
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"cases need names of their own; more than one is called {twice[0]!r}")
    if out is None:
        return
    given = [source for case in cases for source in (case.image, case.truth)]
    inputs = [path for path in given if isinstance(path, (str, os.PathLike))]
    for path in found_among([out / f"{name}.nii.gz" for name in names], inputs):
        raise OutputError(f"{out}: {path.name} there is an input; choose another folder")


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows of cases as a table: a line a case and class, and one for each bad case.

    Columns: `case`, `class`, the class's statistics and scores, the Dice to expect, `seconds`,
    `output`, `error`; where trust was asked for, `findings`: "pair: what was found; ...".
    """
    lines: list[Row] = []
    for row in rows:
        common: Row = {
            key: row[key] for key in ("case", "seconds", "output", "error") if key in row
        }
        if trust := row.get("trust"):
            told = (f"{one['pair']}: {one['evidence']}" for one in trust["findings"])
            common["findings"] = "; ".join(told)
        classes: dict[str, Row] = {}
        for part in (*row.get("statistics", ()), *(row.get("score") or ()), *_expected(row)):
            classes.setdefault(part["class"], {}).update(part)
        lines += [common | values for values in classes.values()] or [common]
    table = pd.DataFrame(lines)
    first, last = ["case", "class"], ["seconds", "output", "error"]
    if "findings" in table:
        last = ["findings", *last]
    between = [column for column in table.columns if column not in (*first, *last)]
    return table.reindex(columns=[*first, *between, *last])


def _expected(row: Row) -> list[Row]:
    """Return the Dice to expect of each class, where trust was asked for."""
    judged = (row.get("trust") or {}).get("classes", ())
    return [{column: one[column] for column in ("class", *EXPECTED)} for one in judged]
