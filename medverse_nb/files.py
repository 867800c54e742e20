"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import OutputError


def check_writable(path: Path) -> Path:
    """Return `path` if a file could be made there, else raise `OutputError`; makes nothing."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"{path}: no permission to write there")
    return path


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write` with a temporary path of the same suffix, then rename it to `path`.

    Missing folders are made. On any failure, Ctrl-C included, the temporary file is
    removed and `path` is untouched.
    """
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        if partial.exists():
            partial.unlink()
    return path
