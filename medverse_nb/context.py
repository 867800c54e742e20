"""The context: image-label pairs of other subjects, and how they changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .classes import ClassTable
from .errors import ContextError
from .pair import ContextPair
from .provenance import now

ChangeKind = Literal["added", "accepted", "removed"]
MOST_CHANGES = 20  # that can be undone; a removed pair stays in memory as long as its change


@dataclass(frozen=True, eq=False)
class Change:
    """One change of a context, and what it takes to undo it.

    position : of the first of the pairs, among those of the context.
    places : of each pair, where several were removed that did not lie side by side; else empty.
    came, replaced : entries of the class table that came in, and those that made room.
    """

    kind: ChangeKind
    pairs: tuple[ContextPair, ...]
    position: int
    when: str
    came: ClassTable = field(default_factory=ClassTable)
    replaced: ClassTable = field(default_factory=ClassTable)
    places: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<Change: {self.kind} {', '.join(pair.name for pair in self.pairs)}>"


@dataclass
class ContextSet:
    """An ordered set of pairs with unique names, and the class table they came with.

    `history` has the last `MOST_CHANGES` changes, the newest at the end; `undo` takes them back.
    """

    pairs: list[ContextPair] = field(default_factory=list)
    table: ClassTable = field(default_factory=ClassTable)
    history: list[Change] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContextPair]:
        return iter(self.pairs)

    def __getitem__(self, name: str) -> ContextPair:
        for pair in self.pairs:
            if pair.name == name:
                return pair
        raise ContextError(f"no context pair is called {name!r}; there are {self.names}")

    def __repr__(self) -> str:
        return "\n".join([f"<ContextSet, {len(self)} pairs>", *(f"  {pair}" for pair in self)])

    @property
    def names(self) -> list[str]:
        """Names of the pairs, in order."""
        return [pair.name for pair in self.pairs]

    @property
    def values(self) -> list[int]:
        """Nonzero label values found in any pair, sorted."""
        return sorted({value for pair in self.pairs for value in pair.values})

    @property
    def sources(self) -> list[str]:
        """Where images and labels of the pairs were read from, as `Provenance` tells."""
        origins = [pair.provenance for pair in self.pairs]
        return [path for origin in origins for path in (origin.image, origin.label)]

    def free_name(self, name: str) -> str:
        """Return `name`, or `name-2`, `name-3`, ... where it is taken."""
        free, number = name, 2
        while free in self.names:
            free, number = f"{name}-{number}", number + 1
        return free

    def add(self, *pairs: ContextPair, table: ClassTable | None = None) -> None:
        """Append pairs, as one change; a name that is taken adds none of them.

        table : class names and colours that come with the pairs.
        """
        self._check_names(pairs)
        came = table or ClassTable()
        replaced = self.table.update(came)
        position = len(self)
        self.pairs.extend(pairs)
        if pairs:
            how = pairs[0].provenance.how
            self._remember(Change(how, pairs, position, now(), came, replaced))

    def remove(self, name: str) -> ContextPair:
        """Take a pair out and return it.

        Raises
        ------
        ContextError : no pair of that name.
        """
        pair = self[name]
        position = self.names.index(name)
        del self.pairs[position]
        self._remember(Change("removed", (pair,), position, now()))
        return pair

    def keep(self, names: Sequence[str]) -> list[ContextPair]:
        """Take all other pairs out, as one change, and return them.

        Raises
        ------
        ContextError : a name that no pair has, or none at all.
        """
        kept = {self[name].name for name in names}
        if not kept:
            raise ContextError("a context needs a pair: name one or more to keep")
        left = [place for place, name in enumerate(self.names) if name not in kept]
        removed = tuple(self.pairs[place] for place in left)
        if removed:
            side_by_side = left[-1] - left[0] == len(left) - 1
            self.pairs = [pair for pair in self.pairs if pair.name in kept]
            places = () if side_by_side else tuple(left)
            self._remember(Change("removed", removed, left[0], now(), places=places))
        return list(removed)

    def undo(self) -> Change:
        """Take back the last change and return it.

        Class names that came with pairs go with them, where nothing else was read since.

        Raises
        ------
        ContextError : nothing to take back, or `pairs` were changed past `add` and `remove`.
        """
        if not self.history:
            raise ContextError("nothing to undo: no change of the context is remembered")
        change = self.history[-1]
        removed, size = change.kind == "removed", len(change.pairs)
        start = change.position
        there = self.pairs[start : start + (0 if removed else size)]
        expected = () if removed else change.pairs
        if start > len(self) or [*map(id, there)] != [*map(id, expected)]:
            raise ContextError(f"{change} cannot be undone: the pairs were changed otherwise")
        if removed:
            self._check_names(change.pairs)
            self._put_back(change)
        else:
            del self.pairs[start : start + size]
            self.table.take_back(change.came, change.replaced)
        return self.history.pop()

    def _put_back(self, change: Change) -> None:
        places = change.places or range(change.position, change.position + len(change.pairs))
        pairs = [*self.pairs]
        for number, place in enumerate(places):
            if len(places) != len(change.pairs) or not 0 <= place <= len(pairs):
                raise ContextError(f"{change} cannot be undone: the pairs were changed otherwise")
            pairs.insert(place, change.pairs[number])
        self.pairs = pairs

    def _check_names(self, pairs: Sequence[ContextPair]) -> None:
        names = [pair.name for pair in pairs]
        taken = sorted({name for name in names if name in self.names or names.count(name) > 1})
        if taken:
            raise ContextError(f"context pairs need names of their own; taken: {taken}")

    def _remember(self, change: Change) -> None:
        self.history = [*self.history, change][-MOST_CHANGES:]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the history behind: a worker undoes nothing and has no use for removed pairs."""
        return {**self.__dict__, "history": []}
