"""Where the answer of a scale is kept while it grows: memory, or a folder that can be resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..files import check_writable, write_atomically
from ..geometry import Shape
from ..resampling import FloatArray
from ..scratch import make_place, remove_with
from ..stored import is_large
from ..zarr_files import create_array, open_array

MANIFEST = "run.json"


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
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], sides: Shape) -> None:
        self.folder, self.sides = folder, sides
        self.marks = folder / "finished"
        if not self.marks.is_dir():
            create_array(folder / "voxels.zarr", shape, (1, *sides), np.float32)
            self.marks.mkdir()
        self.array = open_array(folder / "voxels.zarr", writable=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        return np.asarray(self.array[index])

    def write(self, number: int, index: Any, voxels: FloatArray) -> None:
        try:
            self.array[index] = voxels
            (self.marks / str(number)).touch()
        except OSError as error:
            raise OutputError(
                f"{self.folder}: could not be written ({error.strerror or error}); what is "
                "finished is kept, run again to go on"
            ) from error

    def has(self, number: int) -> bool:
        return (self.marks / str(number)).exists()

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self.folder, self.shape, self.sides)


def in_memory_or_scratch(scale: int, shape: tuple[int, ...], sides: Shape) -> Store:
    """Keep a scale in memory, a large one in scratch space until nothing refers to it."""
    if not is_large(shape):
        return MemoryStore(shape)
    place = make_place(4 * math.prod(shape), f"scale {scale}")
    store = FolderStore(place, shape, sides)
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
        asked = json.loads(json.dumps(asked))
        if (path / MANIFEST).is_file():
            before = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if changed := [key for key in asked | before if asked.get(key) != before.get(key)]:
                raise InputError(
                    f"{path} holds another run: {', '.join(changed)} changed since; give another "
                    "folder, or delete this one"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} is no folder of a run and not empty; give another one")
        else:
            text = json.dumps(asked, indent=2)
            write_atomically(path / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))

    def storage(self, scale: int, shape: tuple[int, ...], sides: Shape) -> FolderStore:
        """Keep a scale in this folder; finished chunks of an earlier attempt are there."""
        return FolderStore(self.path / f"scale-{scale}", shape, sides)
