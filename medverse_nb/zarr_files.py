"""The only place that uses zarr: 2.18 and 3 alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr


def create_array(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any) -> None:
    """Create an array of zeros; chunks are no larger than the array."""
    fitting = tuple(max(1, min(n, chunk)) for n, chunk in zip(shape, chunks, strict=True))
    zarr.open_array(
        str(path), mode="w", shape=shape, chunks=fitting, dtype=np.dtype(dtype), fill_value=0
    )


def open_array(path: Path, *, writable: bool = False) -> Any:
    """Open an array for reading, or for writing too."""
    return zarr.open_array(str(path), mode="r+" if writable else "r")
