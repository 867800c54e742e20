"""Rows of a benchmark that are kept as they come: a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, whatever was asked."""
    _, *groups = path.read_text(encoding="utf-8").splitlines()
    return [row for group in groups for row in json.loads(group)]


class KeptRows:
    """The rows of one question, in a JSON-lines file: first the question, then a group a line.

    A group is what is measured together or not at all, such as all answers of a network that
    was trained once. A line without its end, as `kill -9` leaves one, is taken out.

    Parameters
    ----------
    asked : what every row depends on, as plain JSON values.

    Raises
    ------
    SystemExit : the file holds the rows of another question.
    """

    def __init__(self, path: Path, asked: Row) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.read_bytes() if path.is_file() else b""
        whole = there[: there.rfind(b"\n") + 1]
        if whole != there:
            path.write_bytes(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._write(asked)
        elif lines[0] != json.loads(json.dumps(asked)):
            raise SystemExit(
                f"{path} holds rows of {lines[0]}, asked is {asked}: give another --work folder"
            )
        self.rows: list[Row] = [row for group in lines[1:] for row in group]

    def has(self, **key: Any) -> bool:
        """Tell whether a row has all of these values."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, group: Sequence[Row]) -> None:
        """Append a group; it is on disk afterwards."""
        self._write(list(group))
        self.rows += group
        for row in group:
            print(row, flush=True)

    def _write(self, line: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
