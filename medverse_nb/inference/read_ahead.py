"""Crops of many pairs, read a few ahead of the network that takes them."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..regions import View
from ..resampling import FloatArray
from .windows import Window, cut

READERS = 2  # one for images, one for labels


@cache
def _threads(_process: int) -> ThreadPoolExecutor:
    """Return this process's readers; a forked one has none of its parent's.

    They stay: a thread for each window would leave the allocator with memory of many.
    """
    return ThreadPoolExecutor(READERS, "crops")


class ReadAhead:
    """The crops of B windows of L volumes for each of K questions, never all at once.

    Other threads read them in order, question after question, at most `ahead` volumes before
    they are taken. What is taken in another order, or again, is read on the spot.
    """

    def __init__(
        self, views: Sequence[Sequence[View]], windows: Sequence[Window], ahead: int
    ) -> None:
        self.views, self.windows, self.ahead = views, windows, ahead
        places = ((k, n) for k, volumes in enumerate(views) for n in range(len(volumes)))
        self._left = iter(places)
        self._coming: deque[tuple[tuple[int, int], Future[FloatArray]]] = deque()
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
            self._coming.append((place, _threads(os.getpid()).submit(cut, view, self.windows)))


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
        batch, pairs, *sides = self.shape
        numbers = range(*part.indices(pairs))
        crops = np.empty((batch, len(numbers), *sides), np.float32)  # a list would be held twice
        for place, number in enumerate(numbers):
            crops[:, place] = self.source.take(self.question, number)
        return crops[every]
