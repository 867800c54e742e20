"""Where this runs: in a notebook, in which of its cells, under a test run, in an app."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any


def in_notebook() -> bool:
    """Whether a notebook kernel runs this; whether someone watches it cannot be known."""
    return hasattr(_shell(), "kernel")


def under_test() -> bool:
    """Whether a test run (pytest, nbval) started this process or the one that started it."""
    return "PYTEST_VERSION" in os.environ


def in_voila() -> bool:
    """Whether the notebook is shown as an app by Voila."""
    return any(name.startswith("VOILA_") for name in os.environ)


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # taken out of sys.modules, or put there without a spec
        return False


def running_cell() -> tuple[str, int] | None:
    """Return the id of the cell that runs and the number of the run; None where none is known."""
    shell = _shell()
    metadata = (getattr(shell, "parent_header", None) or {}).get("metadata") or {}
    cell = metadata.get("cellId")
    return (str(cell), int(shell.execution_count)) if cell else None


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
