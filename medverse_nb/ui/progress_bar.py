"""Progress bars for what takes longer than two seconds, where someone watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .front_end import in_notebook

DELAY_S = 2.0


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield what moves a bar: called with what is being done, how much is done, and of how much.

    In a terminal or a notebook; elsewhere None, and nothing is shown. tqdm's own variables hold:
    `TQDM_DISABLE=1` keeps bars out of notebooks that are saved.
    """
    if not (in_notebook() or sys.stderr.isatty()):
        yield None
        return
    from tqdm.auto import tqdm  # which finds out where it is when imported

    with tqdm(unit=unit, delay=DELAY_S, leave=False) as bar:

        def move(what: str, done: int, count: int) -> None:
            if done < bar.n:  # another scale
                bar.reset(count)
            bar.total = count
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        yield move
