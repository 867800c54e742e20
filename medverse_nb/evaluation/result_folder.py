"""A folder that keeps an evaluation's rows as they come, so that it can be resumed.

`asked.json` has the question, `rows.csv` the answers. Rows come in groups, all classes of one
case and context; a group that is not whole, as `kill -9` leaves one, is not counted.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd
from filelock import FileLock, Timeout

from ..errors import InputError, OutputError, first_line
from ..files import check_writable, is_partial, read_question, write_atomically

ASKED, ROWS, PARQUET = "asked.json", "rows.csv", "rows.parquet"
LOCK = ".lock"
ABOUT = ("case", "class", "size", "draw")
NUMBERS = ("size", "draw", "seconds", "seed")
MADE_WITH = (
    "seconds", "note", "error", "context", "weights_sha256", "seed", "versions",
)  # fmt: skip

Row = Mapping[str, Any]


class Key(NamedTuple):
    """What a group of rows is about; within it the classes differ."""

    case: str
    draw: int
    size: int


class ResultFolder:
    """The rows of one question; `done` are the groups that need not be computed again.

    A context manager: on entering, the folder is locked for this process, and what is there is
    read. The lock is the operating system's, so that it ends with the process, however that ends.

    Parameters
    ----------
    asked : what tells this evaluation from any other, as plain JSON values.
    classes : names, in the order of a group's rows.
    scores : columns that have the scores.

    Raises
    ------
    InputError : another process writes to the folder; it holds something else, another question,
        or rows that cannot be read.
    OutputError : it cannot be written.
    """

    def __init__(
        self, path: Path, asked: dict[str, Any], classes: Sequence[str], scores: Sequence[str]
    ) -> None:
        self.path = path
        self.rows_path = check_writable(path / ROWS)
        self.classes = list(classes)
        self.scores = list(scores)
        self.columns = [*ABOUT, *scores, *MADE_WITH]
        self._asked = json.loads(json.dumps(asked))
        self._lock = FileLock(path / LOCK)
        self._groups: dict[Key, list[list[str]]] = {}

    def __enter__(self) -> Self:
        self._refuse_foreign_folder()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"{self.path}: another process evaluates into this folder; let it finish, or give "
                "another one"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be locked ({error.strerror})") from error
        try:
            self._ask()
            self._groups = self._read_whole_groups()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def done(self) -> set[Key]:
        """Groups that are there."""
        return set(self._groups)

    def append(self, rows: Sequence[Row]) -> None:
        """Add the rows of one case and context, one a class; they are on disk afterwards.

        Raises
        ------
        OutputError : no space left, or no permission.
        """
        lines = [[_text(row.get(column)) for column in self.columns] for row in rows]
        new = not self.rows_path.exists()
        text = _as_csv([self.columns, *lines] if new else lines)
        try:
            with open(self.rows_path, "a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.rows_path}: could not be written ({error.strerror})"
            ) from error
        self._groups[_key(dict(zip(self.columns, lines[0], strict=True)))] = lines

    def table(self, order: Sequence[Key]) -> pd.DataFrame:
        """Return the rows of these groups, in this order, with numbers as numbers."""
        lines = [line for key in order for line in self._groups.get(key, ())]
        table = pd.DataFrame(lines, columns=self.columns)
        for column in (*NUMBERS, *self.scores):
            table[column] = pd.to_numeric(table[column])
        return table

    def write_parquet(self, table: pd.DataFrame) -> None:
        """Write a table as `rows.parquet`, where a library for that is installed.

        Raises
        ------
        OutputError : it cannot be written.
        """
        with suppress(ImportError):  # neither pyarrow nor fastparquet, or one too old for pandas
            write_atomically(self.path / PARQUET, lambda part: table.to_parquet(part, index=False))

    def _refuse_foreign_folder(self) -> None:
        if not self.path.is_dir() or (self.path / ASKED).is_file():
            return
        if any(not is_partial(one) and one.name != LOCK for one in self.path.iterdir()):
            raise InputError(
                f"{self.path} is no folder of an evaluation and not empty; give another one"
            )

    def _ask(self) -> None:
        """Keep the question, or make sure that it is the one that was kept."""
        place, asked = self.path / ASKED, self._asked
        if not place.is_file():
            text = json.dumps(asked, indent=2)
            write_atomically(place, lambda part: part.write_text(text, encoding="utf-8"))
            return
        before = read_question(place, "what was asked")
        if changed := [key for key in asked | before if asked.get(key) != before.get(key)]:
            raise InputError(
                f"{self.path} holds another evaluation: {', '.join(changed)} changed since; "
                "ask as before, give another folder, or delete this one"
            )

    def _read_whole_groups(self) -> dict[Key, list[list[str]]]:
        """Read the rows; what a killed run left half-written is taken out of the file."""
        if not self.rows_path.is_file():
            return {}
        try:
            there = self.rows_path.read_bytes()
            whole = there[: there.rfind(b"\n") + 1]  # a line counts once its end was written
            text = io.StringIO(whole.decode(), newline="")
            header, *lines = list(csv.reader(text)) or [self.columns]
            if header != self.columns:
                raise ValueError("it has other columns")  # noqa: TRY301, told below as the others
            found = [_key(dict(zip(self.columns, line, strict=True))) for line in lines]
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self.rows_path}: damaged ({first_line(error)}); delete the folder, or give "
                "another one"
            ) from error
        groups: dict[Key, list[list[str]]] = {}
        for key, line in zip(found, lines, strict=True):
            groups.setdefault(key, []).append(line)
        groups = {
            key: group
            for key, group in groups.items()
            if [line[ABOUT.index("class")] for line in group] == self.classes
        }
        kept = _as_csv([self.columns, *(line for group in groups.values() for line in group)])
        if kept.encode() != there:
            write_atomically(self.rows_path, lambda part: part.write_bytes(kept.encode()))
        return groups


def _key(row: Mapping[str, str]) -> Key:
    return Key(row["case"], int(row["draw"]), int(row["size"]))


def _text(value: Any) -> str:
    """Return a cell; a number in its shortest exact form."""
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _as_csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
