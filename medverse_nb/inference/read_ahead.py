"""Crops of many pairs, read a few ahead of the network that takes them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..regions import View
from ..resampling import FloatArray
from .windows import Window, cut


class ReadAhead:
    """The crops of B windows of L volumes for each of K questions, never all at once.

    A thread of its own reads them in order, question after question, at most `ahead` volumes
    before they are taken. Every volume is taken once; another order costs a wait, no more.
    """

    def __init__(
        self, views: Sequence[Sequence[View]], windows: Sequence[Window], ahead: int
    ) -> None:
        self.views, self.windows, self.ahead = views, windows, ahead
        places = ((k, n) for k, volumes in enumerate(views) for n in range(len(volumes)))
        self._left = iter(places)
        self._coming: deque[tuple[tuple[int, int], Future[FloatArray]]] = deque()
        self._thread = ThreadPoolExecutor(1, "crops")
        self._go_on()

    @property
    def questions(self) -> list[CropsAhead]:
        """The crops of each question."""
        return [CropsAhead(self, question) for question in range(len(self.views))]

    def take(self, question: int, number: int) -> FloatArray:
        """Return the crops (B, *sides) of one volume, waiting for them where need be."""
        if self._coming and self._coming[0][0] == (question, number):
            crops = self._coming.popleft()[1].result()
            self._go_on()
            return crops
        return cut(self.views[question][number], self.windows)

    def _go_on(self) -> None:
        for place in itertools.islice(self._left, self.ahead - len(self._coming)):
            question, number = place
            view = self.views[question][number]
            self._coming.append((place, self._thread.submit(cut, view, self.windows)))
        if not self._coming:
            self._thread.shutdown(wait=False)


@dataclass(frozen=True)
class CropsAhead:
    """One question's crops (B, L, *sides) of a `ReadAhead`, there when `[:, part]` is taken."""

    source: ReadAhead
    question: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, L, *sides)."""
        windows, volumes = self.source.windows, self.source.views[self.question]
        return len(windows), len(volumes), *windows[0].sides

    def __getitem__(self, index: tuple[slice, slice]) -> FloatArray:
        every, part = index
        numbers = range(*part.indices(self.shape[1]))
        return np.stack([self.source.take(self.question, n) for n in numbers], axis=1)[every]
