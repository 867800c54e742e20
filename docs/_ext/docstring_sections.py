"""Lay out this house's docstrings: NumPy sections whose entries are `name : anything to know`.

The usual readers of NumPy sections take what follows the colon for a type, and a closing line
such as `Source: Medverse Eq. 7` for one more parameter. So they are turned into fields here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

NAMES = r"[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*"
ENTRY = re.compile(rf"({NAMES}) : +(.*)")
NAME = re.compile(r"`[A-Za-z_]\w*(\.\w+)*`")
CODE = re.compile(r"(`[^`]+`)")
SPECIAL = re.compile(r"([*|\\]|_(?=\W|$))")


def to_fields(lines: list[str]) -> list[str]:
    """Turn a docstring into reStructuredText: its text, then a field for each section."""
    text, sections, sources = _split(lines)
    result = _paragraphs(text)
    for title, body in sections:
        result += [
            "",
            f":{title}:",
            *_indent(_entries(body) if _has_entries(body) else _escaped(body)),
        ]
    for source in sources:
        result += (
            [f":Source: {_escape(source)}"] if sections else ["", f":Source: {_escape(source)}"]
        )
    return [*result, ""]


def _split(lines: list[str]) -> tuple[list[str], list[tuple[str, list[str]]], list[str]]:
    """Return what stands before the sections, the sections by title, and the sources."""
    text: list[str] = []
    sections: list[tuple[str, list[str]]] = []
    sources: list[str] = []
    where = text
    underlines = {
        number for number, (one, two) in enumerate(pairwise(lines)) if _is_title(one, two)
    }
    for number, line in enumerate(lines):
        if number in underlines:
            sections.append((line.strip(), []))
            where = sections[-1][1]
        elif number - 1 in underlines:
            continue
        elif line.startswith("Source: "):
            sources.append(line.removeprefix("Source: "))
            where = sources
        elif where is sources:
            if line.strip():
                sources[-1] += " " + line.strip()
        else:
            where.append(line)
    return text, sections, sources


def _is_title(line: str, below: str) -> bool:
    return bool(line.strip()) and set(below.strip()) == {"-"}


def _paragraphs(lines: list[str]) -> list[str]:
    """Return running text; a paragraph of entries, as of a dataclass, becomes a list."""
    result: list[str] = []
    for paragraph in _blocks(lines):
        listed = _has_entries(paragraph)
        result += ["", *(_entries(paragraph) if listed else _escaped(paragraph))]
    return result


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _has_entries(lines: list[str]) -> bool:
    first = next((line for line in lines if line.strip()), "")
    return ENTRY.match(first) is not None


def _entries(lines: list[str]) -> list[str]:
    """Return a bullet for each entry, its names bold."""
    result: list[str] = []
    for line in lines:
        if found := ENTRY.match(line):
            names = ", ".join(f"**{name}**" for name in found[1].split(", "))
            result.append(f"* {names} – {_escape(found[2])}")
        elif line.strip():
            result.append(f"  {_escape(line.strip())}")
    return result


def _escaped(lines: Iterable[str]) -> list[str]:
    """Return text in which nothing but `code` and indentation means anything."""
    return [_escape(line) for line in lines]


def _escape(line: str) -> str:
    parts = CODE.split(line)
    for number, part in enumerate(parts):
        parts[number] = _code(part) if number % 2 else SPECIAL.sub(r"\\\1", part)
    for number in range(1, len(parts), 2):  # "`side`**3": a role must not touch a letter
        if parts[number + 1][:1].isalnum() or parts[number + 1].startswith("\\"):
            parts[number] += "\\ "
    return "".join(parts)


def _code(part: str) -> str:
    """Return code as a link to what has that name, anywhere for a class; else as a literal."""
    if not NAME.fullmatch(part):
        return f"`{part}`"
    name = part.strip("`")
    return f"`{name} <.{name}>`" if name[0].isupper() else part


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def replace(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Answer autodoc's question for a docstring, in place."""
    lines[:] = to_fields(lines)


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
