"""Write measured figures to `results.json`: what, where, with what."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def record(name: str, figures: dict[str, Any], path: Path = RESULTS) -> None:
    """Replace the entry `name`, and say how it was measured."""
    import torch

    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[name] = {
        **figures,
        "measured": {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "versions": {p: version(p) for p in ("medverse_nb", "torch", "numpy", "monai")},
        },
    }
    text = json.dumps(dict(sorted(results.items())), indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def processor() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
