"""Scratch space: where large volumes lie unpacked, and large answers grow, while in use."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import tell
from .errors import OutputError
from .files import in_words, stamp_of
from .geometry import Shape
from .regions import View, slabs
from .stored import LAZY_CHUNK, FileVoxels, slab_depth
from .zarr_files import ZarrVoxels, create_array, open_array, write_region

VARIABLE = "MEDVERSE_NB_SCRATCH"
MORE_SPACE = f"set {VARIABLE} to a folder with more space"


def unpack(
    slabs: Iterable[NDArray[Any]], shape: Shape, dtype: np.dtype[Any], name: str
) -> ZarrVoxels:
    """Write slabs along z into a scratch zarr and return a view of it; size and place are told.

    The scratch is removed once nothing in this process holds the view, at the latest when
    the process ends, and on any failure. Pickled copies only know its place.

    Parameters
    ----------
    slabs : each (X, Y, planes), best `slab_depth` planes.

    Raises
    ------
    OutputError : no such place, or too little space there.
    """
    size = math.prod(shape) * dtype.itemsize
    with new_place(size, name) as place:
        tell(
            f"{name}: is large; its voxels are unpacked into {place}, up to {in_words(size)}, and "
            f"removed after use; {VARIABLE} names another folder"
        )
        try:
            view = ZarrVoxels.of(_filled(place / "voxels.zarr", slabs, shape, dtype))
        except OSError as error:
            raise OutputError(
                f"{name}: could not be unpacked into {place.parent} ({error.strerror or error}); "
                f"{MORE_SPACE}"
            ) from error
    remove_with(view, place)
    return view


def set_aside(view: View) -> FileVoxels:
    """Write a view once, float32, into a scratch file, and return a view of that.

    It is removed as `unpack` says; pickled copies only know its place.

    Raises
    ------
    OutputError : no such place, or too little space there.
    """
    shape: Shape = (view.shape[0], view.shape[1], view.shape[2])
    with new_place(4 * math.prod(shape), "a volume at a coarser scale") as place:
        path = place / "voxels"
        try:
            with path.open("wb") as file:
                for slab in slabs(view):
                    file.write(np.ascontiguousarray(slab, np.float32).tobytes())
        except OSError as error:
            raise OutputError(
                f"{path.parent}: could not be written ({error.strerror or error}); {MORE_SPACE}"
            ) from error
        kept = FileVoxels(str(path), stamp_of(path), np.dtype(np.float32), shape, 0, fortran=False)
    remove_with(kept, place)
    return kept


@contextmanager
def new_place(size: int, name: str) -> Iterator[Path]:
    """Make a folder for so many bytes of what `name` says; on any failure inside it is removed.

    Raises
    ------
    OutputError : no such place, or too little space there.
    """
    folder = Path(os.environ.get(VARIABLE) or tempfile.gettempdir())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise OutputError(f"{folder}: no folder for scratch files; set {VARIABLE} to one")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(
            f"{name}: {in_words(size)} of voxels are to be kept in {folder}, where "
            f"{in_words(free)} are free; {MORE_SPACE}"
        )
    place = Path(tempfile.mkdtemp(prefix="medverse_nb-", dir=folder))
    try:
        yield place
    except BaseException:
        _remove(place, os.getpid())
        raise


def remove_with(holder: Any, place: Path) -> None:
    """Remove a folder once nothing refers to `holder` any more, or the process ends."""
    weakref.finalize(holder, _remove, place, os.getpid())


def _filled(path: Path, slabs: Iterable[NDArray[Any]], shape: Shape, dtype: np.dtype[Any]) -> Path:
    x, y, _ = LAZY_CHUNK
    create_array(path, shape, (x, y, slab_depth(shape, dtype.itemsize)), dtype)
    array, start = open_array(path, writable=True), 0
    for slab in slabs:
        stop = start + slab.shape[2]
        write_region(array, (slice(None), slice(None), slice(start, stop)), slab)
        start = stop
    return path


def _remove(place: Path, owner: int) -> None:
    if os.getpid() == owner:  # not at the end of a process that was forked off
        shutil.rmtree(place, ignore_errors=True)
