"""Files and folders that appear whole or not at all, and whether a file is still the same."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError, OutputError, first_line

Stamp = tuple[int, int]


def check_writable(path: Path) -> Path:
    """Return `path` if a file could be made there, else raise `OutputError`; makes nothing."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    return check_place(path)


def check_place(path: Path) -> Path:
    """Return `path` if a file or folder could be made there, else raise `OutputError`."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"{path}: no permission to write there")
    return path


def found_among(paths: Iterable[Path], others: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the paths that are one of the others, under whatever name."""
    known = {key for other in others for key in _identity(Path(other))}
    return [path for path in paths if not known.isdisjoint(_identity(path))]


def _identity(path: Path) -> set[Any]:
    """Return what a file has in common with its other names: where links lead, its inode."""
    found: set[Any] = {path.resolve()}
    if path.exists():
        status = path.stat()
        found.add((status.st_dev, status.st_ino))
    return found


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write` with a temporary path of the same suffix, then rename it to `path`.

    `write` makes a file, or a folder; a folder replaces another one at the very end. Missing
    folders above are made. On any failure, Ctrl-C included, what is temporary is removed, new
    folders too, and `path` is as it was.
    """
    partial = _beside(path, "partial")
    new = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if partial.is_dir():
            _replace_folder(partial, path)
        else:
            os.replace(partial, path)
    except OutputError:  # of a file that `write` puts beside this one
        raise
    except OSError as error:
        raise OutputError(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()
        for folder in new:
            with suppress(OSError):  # what has something in it stays
                folder.rmdir()
    return path


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file does: when it was written, and its size."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def check_unchanged(path: Path, stamp: Stamp, owner: Path | None = None) -> None:
    """Refuse a file that is no longer the one of which this was the stamp.

    owner : the folder to name in its place.
    """
    if not path.is_file():
        raise InputError(f"{owner or path}: is gone since it was read; put it back as it was")
    if stamp_of(path) != stamp:
        raise InputError(f"{owner or path}: has changed since it was read; read it again")


def _replace_folder(partial: Path, path: Path) -> None:
    """Rename a folder; what was there is moved aside first, since none replaces a full folder."""
    aside = _beside(path, "before")
    if path.exists():
        os.replace(path, aside)
    try:
        os.replace(partial, path)
    except BaseException:
        if aside.exists():
            os.replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Whether a name is one that `write_atomically` gives, left by a process that was killed."""
    return re.fullmatch(r"\.\d+\.partial\..+", path.name) is not None


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{os.getpid()}.{what}.{path.name}")


def in_words(size: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def read_question(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object that says what a folder of results was asked.

    Raises
    ------
    InputError : it cannot be read; `what` says what is lost.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: damaged, {what} cannot be read ({first_line(error)}); delete this folder, "
            "or give another one"
        ) from error
