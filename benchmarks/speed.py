"""Seconds and memory of the main job on this machine.

    python benchmarks/speed.py

Medians; every figure in a process of its own, so that peak memory is that job's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from record import record

IMPORT = "import time; t = time.perf_counter(); import medverse_nb; print(time.perf_counter() - t)"
PREDICT = """
import json, resource, sys, time, warnings
import numpy as np
import medverse_nb as mv
warnings.simplefilter("ignore")
rng, side, pairs, precision = np.random.default_rng(0), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
session = mv.ICLSession(device="cpu", precision=precision)
for index in range(pairs):
    image = rng.random((side,) * 3, dtype=np.float32)
    session.add_context(image, (image > 0.9).astype(np.uint8), name=str(index))
target = rng.random((side,) * 3, dtype=np.float32)
session.predict(target)
seconds = []
for _ in range(3):
    started = time.perf_counter()
    session.predict(target)
    seconds.append(time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": sorted(seconds)[1], "peak_mb": peak}))
"""


def run(code: str, *arguments: str) -> str:
    """Run Python code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def main() -> None:
    """Measure import and prediction, print and record."""
    figures = {"import_seconds": round(statistics.median(float(run(IMPORT)) for _ in range(5)), 3)}
    for side, pairs in ((48, 8), (64, 8)):
        for precision in ("bfloat16", "float32"):
            got = json.loads(run(PREDICT, str(side), str(pairs), precision))
            key = f"{side}^3, {pairs} pairs, {precision}"
            figures[f"{key}: seconds"] = round(got["seconds"], 2)
            figures[f"{key}: peak MB"] = round(got["peak_mb"])
    for key, value in figures.items():
        print(f"{key:38} {value}")
    record("speed", figures)


if __name__ == "__main__":
    main()
