"""Whom a run tells of its progress, and how it is ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Literal

from .errors import Cancelled
from .inference.autoregressive import OnProgress

Progress = Callable[[str, int, int], None]  # what is being done, done, of how many


@contextmanager
def shown(on_progress: Progress | Literal["bar"] | None, unit: str) -> Iterator[Progress | None]:
    """Yield whom to tell: what was given, or a bar that counts units."""
    if on_progress != "bar":
        yield on_progress
        return
    from .ui.progress_bar import progress_bar

    with progress_bar(unit) as move:
        yield move


def reporting(on_progress: Progress | None, cancel: Event | None) -> OnProgress:
    """Return what is told of every window: it passes it on, or ends the run."""

    def report(scale: int, scales: int, done: int, count: int) -> None:
        if on_progress:
            on_progress(f"scale {scale} of {scales}", done, count)
        if cancel and cancel.is_set():
            raise Cancelled(
                f"cancelled at scale {scale} of {scales}, after {done} of {count} windows"
            )

    return report


def counting(
    what: str, count: int, on_progress: Progress | None, cancel: Event | None
) -> Callable[[], None]:
    """Return what is called before each of `count` runs: it counts them, or ends them."""
    numbers = iter(range(count))

    def before() -> None:
        done = next(numbers, count)
        if cancel and cancel.is_set():
            raise Cancelled(f"cancelled at the {what}, after {done} of {count} runs")
        if on_progress:
            on_progress(what, done, count)

    return before


def in_seconds(what: str, on_progress: Progress | None) -> Callable[[float, float], None] | None:
    """Return what is called with the seconds used, and of how many: it passes whole ones on."""
    if on_progress is None:
        return None
    return lambda used, of: on_progress(what, round(used), round(of))
