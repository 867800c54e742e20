"""Long work in a thread: what is told, where, and how it ends."""

import asyncio
import threading

import pytest

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.ui.job import INTERVAL_S, Job, _every_now_and_then
from medverse_nb.ui.job_bar import in_time, job_html, make_job_bar

LONG_S = 20  # nothing here comes near it


@pytest.fixture
def job():
    return Job()


class Gate:
    """Work that stands still until it is let through."""

    def __init__(self, result="answer", heed=True) -> None:
        self.began, self.open = threading.Event(), threading.Event()
        self.result, self.heed = result, heed

    def __call__(self, on_progress, cancel):
        on_progress("half", 1, 2)
        self.began.set()
        assert self.open.wait(LONG_S)
        if self.heed and cancel.is_set():
            raise Cancelled("cancelled after 1 of 2")
        return self.result


def threads_of_changes(job: Job) -> set[int]:
    seen: set[int] = set()
    job.observe(lambda _change: seen.add(threading.get_ident()))
    return seen


def test_it_runs_elsewhere_and_is_told_here(job):
    where, seen, taken = [], threads_of_changes(job), []

    def work(on_progress, cancel):
        where.append(threading.get_ident())
        on_progress("one", 0, 2)
        on_progress("two", 1, 2)
        return 42

    job.start(work, then=lambda result: taken.append((result, job.status)))
    assert job.running
    assert job.wait(LONG_S)
    assert (job.status, job.progress, job.text, job.result) == ("done", 1, "", 42)
    assert job.seconds_left is None
    assert taken == [(42, "running")]  # before the status says so
    assert where != [threading.get_ident()]
    assert seen == {threading.get_ident()}


def test_progress_changes_only_when_it_is_taken(job):
    gate = Gate()
    job.start(gate)
    assert gate.began.wait(LONG_S)
    assert (job.progress, job.text) == (0, "")
    assert not job.wait(0)
    assert (job.progress, job.text) == (0.5, "half")
    assert job.seconds_left >= 0
    gate.open.set()
    assert job.wait(LONG_S)


def test_a_second_piece_of_work_is_refused_and_the_first_goes_on(job):
    gate = Gate()
    job.start(gate)
    assert gate.began.wait(LONG_S)
    job.wait(0)
    with pytest.raises(InputError, match=r"under way \(half\); wait for it or cancel"):
        job.start(lambda *_: "other")
    gate.open.set()
    job.wait(LONG_S)
    assert job.result == "answer"
    job.start(lambda *_: "other")
    assert job.result is None
    job.wait(LONG_S)
    assert job.result == "other"


@pytest.mark.parametrize("heed", [True, False])
def test_what_was_cancelled_changes_nothing(job, heed):
    gate, taken = Gate(heed=heed), []
    job.start(gate, then=taken.append)
    assert gate.began.wait(LONG_S)
    job.cancel()
    job.cancel()
    assert (job.status, job.text) == ("running", "cancelling")
    gate.open.set()
    job.wait(LONG_S)
    assert (job.status, job.result, taken) == ("cancelled", None, [])
    assert job.error == ""
    job.cancel()  # nothing runs: nothing happens
    assert job.status == "cancelled"


def test_an_error_of_ours_is_told(job):
    def work(on_progress, cancel):
        raise ContextError("pair 'one' has no label")

    taken = []
    job.start(work, then=taken.append)
    job.wait(LONG_S)
    assert (job.status, job.error, job.result) == ("failed", "pair 'one' has no label", None)
    assert taken == []
    job.start(Gate())
    assert job.error == ""
    job.cancel()


def test_an_error_in_taking_the_result_is_told_too(job):
    def refuse(result):
        raise InputError("gone")

    job.start(lambda *_: 1, then=refuse)
    job.wait(LONG_S)
    assert (job.status, job.error, job.result) == ("failed", "gone", None)


def test_a_fault_of_the_program_is_told_and_raised(job):
    job.start(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.wait(LONG_S)
    assert (job.status, job.error) == ("failed", "ZeroDivisionError: division by zero")


def test_another_thread_may_cancel_but_neither_start_nor_wait(job):
    gate, said = Gate(), []

    def meddle():
        for act in (lambda: job.start(gate), job.wait):
            try:
                act()
            except InputError as error:
                said.append(str(error))
        job.cancel()

    job.start(gate)
    assert gate.began.wait(LONG_S)
    seen = threads_of_changes(job)
    other = threading.Thread(target=meddle)
    other.start()
    other.join()
    gate.open.set()
    job.wait(LONG_S)
    assert len(said) == 2
    assert all("in the thread that made it" in text for text in said)
    assert job.status == "cancelled"
    assert seen == {threading.get_ident()}


def test_waiting_for_nothing_returns(job):
    assert job.wait()
    assert job.status == "idle"


def test_parts_start_over_and_odd_reports_do_no_harm(job):
    def work(on_progress, cancel):
        on_progress("scale 1", 9, 9)
        on_progress("scale 2", 1, 9)
        on_progress("scale 3", 0, 0)
        on_progress("scale 4", 12, 9)

    seen = []
    job.observe(lambda change: seen.append(change["new"]), "progress")
    job.start(work)
    job.wait(LONG_S)
    assert seen == [1, 1 / 9, 0, 1]


def test_few_of_many_reports_are_passed_on():
    told = []
    report = _every_now_and_then(lambda *news: told.append(news))
    for done in range(1, 100_001):
        report("windows", done, 100_000)
    report("more", 1, 2)
    assert told[0] == ("windows", 1, 100_000)
    assert told[-2:] == [("windows", 100_000, 100_000), ("more", 1, 2)]
    assert len(told) < 3 + LONG_S / INTERVAL_S


# --- with an event loop, as in a notebook ----------------------------------------------------------


async def ended(job: Job) -> None:
    over = asyncio.Event()
    job.observe(lambda _change: over.set(), "status")
    async with asyncio.timeout(LONG_S):
        await over.wait()


def test_the_event_loop_hands_over_and_stays_free(job):
    gate, seen, beats = Gate(), threads_of_changes(job), 0

    async def notebook():
        nonlocal beats
        job.start(gate)
        async with asyncio.timeout(LONG_S):
            while job.text != "half":  # the loop goes round while the work stands still
                await asyncio.sleep(0.001)
                beats += 1
        gate.open.set()
        await ended(job)

    asyncio.run(notebook())
    assert beats > 0
    assert (job.status, job.result) == ("done", "answer")
    assert seen == {threading.get_ident()}


def test_waiting_inside_the_loop_takes_what_the_loop_would(job):
    async def notebook():
        job.start(lambda *_: 7)
        assert job.wait(LONG_S)
        await asyncio.sleep(0)  # what the loop still has to call finds nothing

    asyncio.run(notebook())
    assert job.result == 7


def test_a_fault_reaches_the_loop_which_reports_it(job):
    told = []

    async def notebook():
        asyncio.get_running_loop().set_exception_handler(lambda _, news: told.append(news))
        job.start(lambda *_: 1 / 0)
        await ended(job)

    asyncio.run(notebook())
    assert isinstance(told[0]["exception"], ZeroDivisionError)
    assert job.status == "failed"


def test_work_that_outlives_its_loop_can_still_be_taken(job):
    gate = Gate()

    async def notebook():
        job.start(gate)

    asyncio.run(notebook())
    gate.open.set()
    assert job.wait(LONG_S)
    assert job.result == "answer"


# --- the bar ---------------------------------------------------------------------------------------


def test_the_bar_shows_the_job_and_cancels_it(job):
    box = make_job_bar(job)
    bar, cancel, text = box.children
    assert bar.layout.display == "none"
    gate = Gate()
    job.start(gate)
    assert gate.began.wait(LONG_S)
    job.wait(0)
    assert (bar.value, bar.layout.display) == (0.5, "")
    assert text.value.startswith("half, ")
    assert text.value.endswith(" left")
    cancel.click()
    assert text.value.startswith("cancelling")
    gate.open.set()
    job.wait(LONG_S)
    assert cancel.layout.display == bar.layout.display == "none"
    assert text.value == "cancelled after 1 of 2"
    box.close()
    job.start(lambda *_: 1)  # a bar that is closed does no harm
    job.wait(LONG_S)


def test_a_failure_stays_in_words_and_is_no_markup(job):
    def work(on_progress, cancel):
        raise InputError("<script>")

    job.start(work)
    job.wait(LONG_S)
    assert job_html(job) == "<b>Not done:</b> &lt;script&gt;"


def test_durations_in_words():
    assert [in_time(seconds) for seconds in (0.4, 59.7, 65)] == ["0 s", "1 min 0 s", "1 min 5 s"]
