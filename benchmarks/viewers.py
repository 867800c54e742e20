"""What looking inside costs: a recorded run, and a step of the cursor on Python's side.

    python benchmarks/viewers.py

Recorded and unrecorded runs of a virtual brain take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, record

import medverse_nb as mv
from medverse_nb.ui.canvas import SliceCanvas

SIDE = 256
STEPS = 60


def measure_recording(repeats: int) -> dict[str, Any]:
    """Return seconds of a run with and without `record=True`, and what was kept."""
    target, *context = mv.datasets.demo_cohort(5)
    session = mv.ICLSession()
    for case in context:
        session.add_context(case.image, case.label, name=case.name)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for recorded, taken in seconds.items():
            started = time.perf_counter()
            prediction = session.predict(target.image, classes=target.classes, record=recorded)
            taken.append(time.perf_counter() - started)
    without, recorded_s = (statistics.median(taken[1:]) for taken in seconds.values())
    return {
        "windows": sum(prediction.manifest["settings"]["windows"]),
        "seconds": round(without, 2),
        "recorded_seconds": round(recorded_s, 2),
        "more": round(recorded_s / without - 1, 3),
        "attention_mb": round(prediction.attention.nbytes / 1e6, 1),
    }


def measure_slices() -> dict[str, Any]:
    """Return milliseconds from a cursor's message to the answer's bytes, 256^3 with labels."""
    values = np.random.default_rng(0).integers(0, 1000, (SIDE,) * 3, dtype=np.int16)
    scan = mv.read_volume(values, affine=np.eye(4))
    canvas = SliceCanvas(mv.view(scan, (values > 500).astype(np.uint8), backend="static").state)
    sent: list[Any] = []
    canvas.send = lambda message, buffers=None: sent.append((message, buffers))
    taken = []
    for step in range(STEPS):
        cursor = [(37 * step + 11 * axis) % SIDE for axis in range(3)]  # all three planes change
        started = time.perf_counter()
        canvas._handle_custom_msg({"type": "cursor", "cursor": cursor}, [])  # noqa: SLF001
        taken.append(1e3 * (time.perf_counter() - started))
    assert (
        sum(plane.nbytes for plane in sent[-1][1]) == 3 * 2 * SIDE**2
    )  # three planes of two layers
    return {"median_ms": round(statistics.median(taken), 2), "most_ms": round(max(taken[1:]), 2)}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to record in")
    args = parser.parse_args()
    figures = {"slices": measure_slices(), "recording": measure_recording(args.repeats)}
    print(figures)
    record("viewers", figures, args.results)


if __name__ == "__main__":
    main()
