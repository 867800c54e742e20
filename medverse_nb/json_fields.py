"""JSON from outside: what is missing, or of another kind than asked for, is told with its place."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, first_line

T = TypeVar("T")
KINDS = {
    bool: "true or false", dict: "an object", int: "a whole number", list: "a list", str: "text",
}  # fmt: skip
LARGEST_NUMBER = 1e60  # so that no product of three overflows


class Fields:
    """A JSON object that is asked for its entries by their kind.

    where : told in messages, such as "bank.mvctx: bank.json: pairs[3]".

    Raises
    ------
    InputError : from every method, for an entry that is missing or of another kind.
    """

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise InputError(f"{where} must be an object, is {reprlib.repr(value)}")
        self.value: dict[str, Any] = value
        self.where = where

    def get(self, key: str, kind: type[T]) -> T:
        """Return an entry of exactly this kind: true is no number."""
        value = self._entry(key)
        if type(value) is not kind:
            raise self.wrong(key, f"must be {KINDS[kind]}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return an entry, None where it is null or missing."""
        return None if self.value.get(key) is None else self.get(key, kind)

    def one_of(self, key: str, allowed: Collection[str]) -> Any:
        """Return one of these texts."""
        value = self.get(key, str)
        if value not in allowed:
            raise self.wrong(key, f"must be one of {', '.join(sorted(allowed))}")
        return value

    def count(self, key: str) -> int:
        """Return a whole number that is not negative."""
        value = self.get(key, int)
        if value < 0:
            raise self.wrong(key, "must not be negative")
        return value

    def list_of(self, key: str, kind: type[T], size: int | None = None) -> list[T]:
        """Return a list whose entries are all of this kind, and as many as `size`."""
        values = self.get(key, list)
        if any(type(value) is not kind for value in values):
            raise self.wrong(key, f"must be a list of {KINDS[kind]}")
        if size is not None and len(values) != size:
            raise self.wrong(key, f"must have {size} entries")
        return values

    def numbers(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return finite numbers in lists of this shape."""
        value = self._entry(key)
        found = np.array(value if _are_numbers(value, shape) else None)
        if found.dtype.kind not in "if" or not (np.abs(found) <= LARGEST_NUMBER).all():
            raise self.wrong(key, f"must be finite numbers in the shape {list(shape)}")
        return found.astype(np.float64)

    def fields(self, key: str) -> Fields:
        """Return an object."""
        return Fields(self.get(key, dict), f"{self.where}.{key}")

    def objects(self, key: str) -> list[Fields]:
        """Return a list of objects."""
        values = self.get(key, list)
        return [Fields(value, f"{self.where}.{key}[{n}]") for n, value in enumerate(values)]

    def wrong(self, key: str, requirement: str) -> InputError:
        """Return the error that tells what an entry must be and what it is."""
        return InputError(f"{self.where}.{key} {requirement}, is {reprlib.repr(self.value[key])}")

    def _entry(self, key: str) -> Any:
        if key not in self.value:
            raise InputError(f"{self.where}.{key} is missing")
        return self.value[key]


def _are_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are lists of this shape; looked at first, since NumPy takes anything."""
    if not shape:
        return type(value) in (int, float)
    right = type(value) is list and len(value) == shape[0]
    return right and all(_are_numbers(part, shape[1:]) for part in value)


def parse_json(content: bytes, where: str) -> Fields:
    """Parse a JSON object.

    Raises
    ------
    InputError : not UTF-8, not JSON, nested too deep, NaN or Infinity, or no object.
    """
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deep") from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({first_line(error)})") from error
    return Fields(value, where)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")
