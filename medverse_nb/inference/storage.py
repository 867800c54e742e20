"""Where the answer of a scale is kept while it grows: memory, or a folder that can be resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError, first_line
from ..files import check_writable, is_partial, read_question, write_atomically
from ..geometry import Shape
from ..resampling import FloatArray
from ..scratch import MORE_SPACE, new_place, remove_with
from ..stored import is_large
from ..zarr_files import check_array, create_array, open_array, stamp_of_array, write_region

MANIFEST = "run.json"
LAYOUT = 2  # of the chunks in a run's folder; one of another layout is not gone on with
GO_ON = "what is finished is kept, run again to go on"


class Store(Protocol):
    """An array (K, X, Y, Z) that is written chunk by chunk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """K and three sides."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return voxels; `index` as of an array."""

    def write(self, number: int, index: Any, voxels: FloatArray) -> None:
        """Write the voxels of chunk `number` and remember that it is finished."""

    def has(self, number: int) -> bool:
        """Tell whether a chunk is finished."""


Storage = Callable[[int, tuple[int, ...], Shape], Store]  # scale, shape, a stored chunk's sides


class MemoryStore:
    """Keeps a scale in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.array = np.empty(shape, np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        return self.array[index]

    def write(self, number: int, index: Any, voxels: FloatArray) -> None:  # noqa: ARG002
        self.array[index] = voxels

    def has(self, number: int) -> bool:  # noqa: ARG002, nothing outlives the process
        return False


class FolderStore:
    """Keeps a scale in a folder: a zarr array, and an empty file for each finished chunk.

    A chunk whose writing was cut short has no such file and is written again.

    sides : of a stored chunk; a chunk that is written holds whole ones, since two that share
        one could not be written at a time.
    remedy : what to do when it cannot be written.

    Raises
    ------
    OutputError : it cannot be written.
    InputError : what was finished is damaged, or gone.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], sides: Shape, remedy: str = GO_ON
    ) -> None:
        self.folder, self.sides, self.remedy = folder, sides, remedy
        self.marks, self.voxels = folder / "finished", folder / "voxels.zarr"
        if not self.marks.is_dir():
            with self._writing():
                create_array(self.voxels, shape, (1, *sides), np.float32)
                self.marks.mkdir()
        with self._reading():
            self.array = open_array(self.voxels, writable=True)
            self.stamp = stamp_of_array(self.voxels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        with self._reading():
            check_array(self.voxels, self.stamp)  # else what is gone would be read as zero
            return np.asarray(self.array[index])

    def write(self, number: int, index: Any, voxels: FloatArray) -> None:
        with self._writing():
            write_region(self.array, index, voxels)
            (self.marks / str(number)).touch()

    def has(self, number: int) -> bool:
        return (self.marks / str(number)).exists()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.folder}: could not be written ({error.strerror or error}); {self.remedy}"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # every codec has errors of its own
            raise InputError(
                f"{self.folder}: what a run kept there cannot be read back "
                f"({first_line(error)}); delete this folder and run again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self.folder, self.shape, self.sides)


def storage_of(answer: tuple[int, ...]) -> Storage:
    """Return where a run keeps its scales: in memory, or all in scratch where the last is large.

    answer : (K, X, Y, Z), the shape of the last.
    """
    return in_scratch if is_large(answer) else in_memory


def in_memory(_scale: int, shape: tuple[int, ...], _sides: Shape) -> Store:
    """Keep a scale in memory."""
    return MemoryStore(shape)


def in_scratch(scale: int, shape: tuple[int, ...], sides: Shape) -> Store:
    """Keep a scale in scratch space until nothing refers to it."""
    with new_place(4 * math.prod(shape), f"scale {scale}") as place:
        store = FolderStore(place, shape, sides, MORE_SPACE)
    remove_with(store, place)
    return store


class RunFolder:
    """A folder that keeps a run's scales, and what the run was asked, so that it can go on.

    Raises
    ------
    InputError : the folder holds something else, or a run that was asked something else.
    OutputError : it cannot be written.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path = check_writable(path / MANIFEST).parent
        asked = json.loads(json.dumps({**asked, "layout": LAYOUT}))
        if (path / MANIFEST).is_file():
            before = read_question(path / MANIFEST, "what the run was asked")
            if changed := [key for key in asked | before if asked.get(key) != before.get(key)]:
                raise InputError(
                    f"{path} holds another run: {', '.join(changed)} changed since; give another "
                    "folder, or delete this one"
                )
        elif path.is_dir() and any(not is_partial(inside) for inside in path.iterdir()):
            raise InputError(f"{path} is no folder of a run and not empty; give another one")
        else:
            text = json.dumps(asked, indent=2)
            write_atomically(path / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))

    def storage(self, scale: int, shape: tuple[int, ...], sides: Shape) -> FolderStore:
        """Keep a scale in this folder; finished chunks of an earlier attempt are there."""
        return FolderStore(self.path / f"scale-{scale}", shape, sides)
