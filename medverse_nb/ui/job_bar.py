"""A bar over a `Job`: what is being done, how long it will take, and a button that ends it."""

from __future__ import annotations

from html import escape
from typing import Any

from .job import Job

SHOWN = ("status", "progress", "text", "seconds_left", "error")


def make_job_bar(job: Job) -> Any:
    """Return a bar that is there while work is under way; a failure stays, in words."""
    import ipywidgets as w

    bar = w.FloatProgress(min=0, max=1, layout=w.Layout(width="20em"))
    text = w.HTML()
    cancel = w.Button(description="cancel", icon="stop")
    cancel.on_click(lambda _button: job.cancel())

    def show(_change: Any = None) -> None:
        bar.value = job.progress
        text.value = job_html(job)
        bar.layout.display = cancel.layout.display = "" if job.running else "none"

    job.observe(show, SHOWN)
    show()
    return w.HBox([bar, cancel, text])


def job_html(job: Job) -> str:
    """Return how the job stands, in words."""
    if job.status == "failed":
        return f"<b>Not done:</b> {escape(job.error)}"
    left = "" if job.seconds_left is None else f", {in_time(job.seconds_left)} left"
    return escape(f"{job.text}{left}")


def in_time(seconds: float) -> str:
    """Return a duration to the second, such as "1 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
