"""Long work beside the notebook: a thread does it, the thread that asked for it is told.

The kernel stays usable. What the worker reports is handed over by the event loop that ran when
the job was started, as a notebook's does; without a loop `Job.wait` takes it. So widgets
that show a job are only ever changed where they were made.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import traitlets

from ..errors import Cancelled, InputError, MedverseError, first_line
from ..progress import Progress

Work = Callable[[Progress, threading.Event], Any]  # given: whom to tell, and what ends it
STATUSES = ("idle", "running", "done", "failed", "cancelled")
INTERVAL_S = 0.1  # between two reports of one part: more often the eye sees nothing new


class Job(traitlets.HasTraits):
    """One piece of work at a time, in a thread of its own.

    It belongs to the thread that makes it: only there traits change.

    Traits
    ------
    status : "idle", "running", "done", "failed" or "cancelled"; the last to change at an end.
    progress : of the part that is being done, 0 to 1; a run of the network has one a scale.
    text : what is being done.
    seconds_left : of that part, None while nothing is known.
    error : why it failed.
    result : what the work returned, None unless it is done.
    """

    status = traitlets.Enum(STATUSES, "idle")
    progress = traitlets.Float(0.0)
    text = traitlets.Unicode("")
    seconds_left = traitlets.Float(None, allow_none=True)
    error = traitlets.Unicode("")
    result = traitlets.Any(None)

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.get_ident()
        self._arrived: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._cancel = threading.Event()
        self._part_began = 0.0

    @property
    def running(self) -> bool:
        """Whether work is under way."""
        return bool(self.status == "running")

    def check_free(self) -> None:
        """Refuse another piece of work while one runs.

        Raises
        ------
        InputError : one runs, or this is not the thread that made the job.
        """
        if threading.get_ident() != self._owner:
            raise InputError("a job is started and waited for in the thread that made it")
        if self.running:
            doing = f" ({self.text})" if self.text else ""
            raise InputError(f"work is under way{doing}; wait for it or cancel it first")

    def start(self, function: Work, then: Callable[[Any], None] | None = None) -> None:
        """Begin `function(on_progress, cancel)` and return at once.

        Parameters
        ----------
        function : runs in another thread. It tells `on_progress` what is being done, how much
            is done and of how much, and ends with `Cancelled` once `cancel` is set.
        then : takes the result, in this thread, before the status says "done". It is not
            called for work that was cancelled, even where that came too late to stop it.

        Raises
        ------
        InputError : as `check_free`; the work under way goes on.
        """
        self.check_free()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._cancel = cancel = threading.Event()
        self._part_began = time.monotonic()
        self.progress, self.text, self.seconds_left = 0.0, "", None
        self.error, self.result = "", None
        self.status = "running"

        def hand_over(what: Callable[[], None]) -> None:
            self._arrived.put(what)
            if loop is not None:
                with suppress(RuntimeError):  # closed meanwhile; `wait` still takes it
                    loop.call_soon_threadsafe(self._take)

        def work() -> None:
            report = _every_now_and_then(lambda *news: hand_over(partial(self._tell, *news)))
            try:
                result = function(report, cancel)
            except BaseException as error:  # noqa: BLE001  handed to the thread that asked
                ending = partial(self._fail, error)
            else:
                ending = partial(self._finish, result, then)
            hand_over(ending)

        threading.Thread(target=work, name="medverse_nb job", daemon=True).start()

    def cancel(self) -> None:
        """Ask the work to end; may be called twice, when nothing runs, and by any thread."""
        self._cancel.set()
        if self.running and threading.get_ident() == self._owner:
            self.text = "cancelling"

    def wait(self, seconds: float | None = None) -> bool:
        """Take what arrives until the work has ended; return whether it has.

        In a notebook it holds up the kernel, as any long cell does.

        Parameters
        ----------
        seconds : at most so long, 0 for what has arrived by now; None for as long as it takes.

        Raises
        ------
        InputError : not the thread that made the job.
        """
        if threading.get_ident() != self._owner:
            raise InputError("a job is started and waited for in the thread that made it")
        until = None if seconds is None else time.monotonic() + seconds
        while self.running:
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                self._arrived.get(timeout=left)() if left != 0 else self._arrived.get_nowait()()
            except queue.Empty:
                break
        return not self.running

    # --- in the thread that owns the job -------------------------------------------------------

    def _take(self) -> None:
        """Take what has arrived; nothing is there where `wait` was first."""
        while not self._arrived.empty():
            self._arrived.get()()

    def _tell(self, what: str, done: int, count: int) -> None:
        share = min(max(done / count, 0.0), 1.0) if count else 0.0
        now = time.monotonic()
        if share < self.progress:  # another part
            self._part_began = now
        self.progress = share
        self.seconds_left = (now - self._part_began) * (1 / share - 1) if share else None
        if not self._cancel.is_set():
            self.text = what

    def _finish(self, result: Any, then: Callable[[Any], None] | None) -> None:
        if self._cancel.is_set():
            self._end("cancelled", "cancelled")
            return
        try:
            if then:
                then(result)
        except Exception as error:  # noqa: BLE001  told, or raised again
            self._fail(error)
            return
        self.result, self.progress = result, 1.0
        self._end("done", "")

    def _fail(self, error: BaseException) -> None:
        """Tell errors of ours; others are faults of a program, and are raised here."""
        if isinstance(error, Cancelled):
            self._end("cancelled", str(error))
            return
        ours = isinstance(error, MedverseError)
        self.error = str(error) if ours else f"{type(error).__name__}: {first_line(error)}"
        self._end("failed", "")
        if not ours and isinstance(error, Exception):
            raise error

    def _end(self, status: str, text: str) -> None:
        self.text, self.seconds_left = text, None
        self.status = status


def _every_now_and_then(tell: Progress) -> Progress:
    """Pass on the first and the last report of a part, and some between."""
    before: tuple[str, float] = ("", -INTERVAL_S)

    def report(what: str, done: int, count: int) -> None:
        nonlocal before
        now = time.monotonic()
        if what != before[0] or done == count or now - before[1] >= INTERVAL_S:
            before = what, now
            tell(what, done, count)

    return report
