"""`medverse-nb app`, as a process that ends with its block."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from watched import LONG_S


@contextlib.contextmanager
def serve_app(folder: Path, *options: str) -> Iterator[str]:
    """Serve a folder and yield the address."""
    command = [sys.executable, "-m", "medverse_nb", "app", str(folder), "--no-browser", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = iter(server.stdout.readline, "")
            yield next(line.strip() for line in lines if line.startswith("http"))
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(LONG_S)
            server.kill()
