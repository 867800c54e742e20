"""Classes: which label values are predicted, their names and their colours."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ContextError, InputError

Classes = Sequence[int] | Mapping[str, int | Sequence[int]] | None
Colour = tuple[int, int, int]
T = TypeVar("T")

# Okabe and Ito's colours, safe for colour-blind readers, then repeated.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip


@dataclass(frozen=True)
class ClassSpec:
    """One class of a prediction: its number in the mask and the label values it joins."""

    number: int
    name: str
    values: tuple[int, ...]
    colour: Colour

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "number": self.number,
            "name": self.name,
            "label_values": list(self.values),
            "colour": list(self.colour),
        }


@dataclass
class ClassTable:
    """Names and colours of label values, as read from a data set's own table."""

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, Colour] = field(default_factory=dict)

    def update(self, other: ClassTable) -> ClassTable:
        """Take over another table's entries; return those that they replaced."""
        replaced = ClassTable(
            {value: self.names[value] for value in other.names if value in self.names},
            {value: self.colours[value] for value in other.colours if value in self.colours},
        )
        self.names.update(other.names)
        self.colours.update(other.colours)
        return replaced

    def take_back(self, other: ClassTable, replaced: ClassTable) -> None:
        """Undo an `update`; entries that came in since stay."""
        _take_back(self.names, other.names, replaced.names)
        _take_back(self.colours, other.colours, replaced.colours)

    def specs(self, values: Sequence[int]) -> list[ClassSpec]:
        """Describe single values; where two share a name, their value is added to it."""
        found = [self.spec(value, (value,)) for value in values]
        names = [one.name for one in found]
        return [
            replace(one, name=f"{one.name} ({one.number})") if names.count(one.name) > 1 else one
            for one in found
        ]

    def spec(self, number: int, values: tuple[int, ...], name: str | None = None) -> ClassSpec:
        """Describe a class; without an entry it is called `class N`."""
        known = self.names.get(values[0]) if len(values) == 1 else None
        colour = self.colours.get(values[0]) if len(values) == 1 else None
        return ClassSpec(
            number,
            name or known or f"class {number}",
            values,
            colour or PALETTE[(number - 1) % len(PALETTE)],
        )


def _take_back(entries: dict[int, T], came: dict[int, T], replaced: dict[int, T]) -> None:
    for value in [v for v, entry in came.items() if entries.get(v) == entry]:
        del entries[value]
        if value in replaced:
            entries[value] = replaced[value]


def read_class_table(path: str | Path) -> ClassTable:
    """Read names and colours from `dataset.json`, a FreeSurfer or an ITK-SNAP table.

    Raises
    ------
    InputError : missing, or none of the three layouts.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a class table ({error})") from error
    table = _from_dataset_json(text, path) if path.suffix == ".json" else _from_lines(text)
    if not table.names:
        raise InputError(
            f"{path}: no class found; give dataset.json, a FreeSurfer colour table or an "
            "ITK-SNAP label file"
        )
    return table


def _from_dataset_json(text: str, path: Path) -> ClassTable:
    try:
        labels = json.loads(text)["labels"]
        pairs = [(k, v) if str(k).lstrip("-").isdigit() else (v, k) for k, v in labels.items()]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: has no usable `labels` ({error})") from error
    table = ClassTable()
    for value, name in pairs:  # nnU-Net regions have lists of values: no single name
        if isinstance(value, int | str) and str(value).isdigit() and int(value) > 0:
            table.names[int(value)] = str(name)
    return table


_SNAP = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+\d+\s+\d+\s+"([^"]*)"')
_FREESURFER = re.compile(r"^\s*(\d+)\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+)(?:\s+\d+)?\s*$")


def _from_lines(text: str) -> ClassTable:
    table = ClassTable()
    for line in text.splitlines():
        if snap := _SNAP.match(line):
            value, colour, name = int(snap[1]), snap.group(2, 3, 4), snap[5]
        elif free := _FREESURFER.match(line):
            value, colour, name = int(free[1]), free.group(3, 4, 5), free[2]
        else:
            continue
        if value > 0:
            table.names[value] = name
            table.colours[value] = (int(colour[0]), int(colour[1]), int(colour[2]))
    return table


def resolve_classes(request: Classes, found: Iterable[int], table: ClassTable) -> list[ClassSpec]:
    """Turn a request into class specs, in order.

    Parameters
    ----------
    request : None for every value found; a list keeps its values; a dict names unions,
        numbered 1..n.
    found : nonzero label values of all pairs.

    Raises
    ------
    ContextError : a value that no pair has, or no foreground at all.
    InputError : an empty or malformed request.
    """
    known = sorted(set(found))
    if not known:
        raise ContextError(
            "no pair has any foreground: every label is zero; add a pair whose label marks "
            "the structure"
        )
    if request is None:
        return table.specs(known)
    if isinstance(request, str | bytes) or not isinstance(request, Collection) or not len(request):
        raise InputError(
            'classes must be a list such as [1, 2] or a dict {"name": (1, 2)}, with an entry or more'
        )
    if isinstance(request, Mapping):
        specs = [
            table.spec(number, _as_values(values), name)
            for number, (name, values) in enumerate(request.items(), 1)
        ]
    else:
        if any(isinstance(v, Collection) and not isinstance(v, str) for v in request):
            raise InputError('classes: a union needs a name: {"name": (1, 2)}')
        values = [_as_values(value)[0] for value in request]
        if len(set(values)) != len(values):
            raise InputError(f"classes has a value twice: {values}")
        specs = table.specs(values)
    for spec in specs:
        missing = sorted(set(spec.values) - set(known))
        if missing:
            raise ContextError(
                f"{spec.name}: no pair has the label value {missing}; found: {known}"
            )
    return specs


def drawn_classes(
    request: Sequence[int] | Mapping[str, int] | Sequence[ClassSpec],
) -> list[ClassSpec]:
    """Return the classes of a mask whose numbers are its label values: {"liver": 1}, or [1].

    Raises
    ------
    InputError : a malformed request, or two classes of one number.
    """
    if isinstance(request, str | bytes) or not isinstance(request, Collection):
        raise InputError('classes must be a dict such as {"liver": 1} or a list such as [1]')
    listed = list(request)
    given = [spec for spec in listed if isinstance(spec, ClassSpec)]
    if len(given) < len(listed):
        named = request.items() if isinstance(request, Mapping) else ((None, n) for n in listed)
        given = [ClassTable().spec(n, (n,), name) for name, n in _single_values(named)]
    numbers = [spec.number for spec in given]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"classes has a number twice: {numbers}")
    return given


def _single_values(named: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, int]]:
    for name, value in named:
        values = _as_values(value)
        if len(values) > 1:
            raise InputError(f"classes: {name!r} has {len(values)} numbers; in a mask it has one")
        yield name, values[0]


def _as_values(values: int | Sequence[int]) -> tuple[int, ...]:
    listed = [values] if not isinstance(values, Sequence) else list(values)
    try:
        numbers = tuple(int(value) for value in listed)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"classes: {values!r} is no label value; give whole numbers, such as [1, 2], or names "
            'with numbers, such as {"liver": 1}'
        ) from error
    if not numbers or any(n <= 0 for n in numbers) or list(numbers) != listed:
        raise InputError(f"classes: {values!r} must be positive integers (0 is the background)")
    return numbers


def likeliest(probability: NDArray[Any], numbers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return each voxel's likeliest class, 0 where none exceeds 0.5.

    Parameters
    ----------
    probability : (K, X, Y, Z).
    numbers : (K,) of the classes; their dtype is the answer's.
    """
    chosen = numbers[probability.argmax(axis=0)]
    chosen[~(probability.max(axis=0) > 0.5)] = 0  # also where it is NaN
    return chosen
