"""What is shown: panels of layers, each a volume of small codes and a table of colours.

Every viewer draws a scene, and all blend it by one rule: a layer's codes are looked up in
its table, and its colour is laid over those below by its alpha. Codes are bytes, so that a
plane is quick to send, and changing colours or opacity sends no voxel again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..classes import Colour
from ..errors import InputError
from ..regions import View, read
from .display import Display, Voxel

Codes = NDArray[np.uint8]  # (X, Y, Z), or a plane of it
Table = NDArray[np.uint8]  # (256, 4), RGBA of each code
OPACITY = 0.45
BUSIEST_VOXELS = 2**21  # enough to find a good plane
AXES = (0, 1, 2)
PLANES = ("sagittal", "coronal", "axial")  # what lies across each axis
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # where an axis begins and where it leads


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a class and its colour, or a scale from one colour to others.

    ends : what the first and the last colour of a scale stand for; empty for a class.
    """

    name: str
    colours: tuple[Colour, ...]
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Layer:
    """One volume as it is shown.

    Parameters
    ----------
    codes : (X, Y, Z) on the scene's grid.
    table : the colour of each code; alpha 0 shows what lies below.
    source : canonical voxels of the whole volume, read one at a time for `value_at`.
    names : what whole numbers in `source` mean; None where a value speaks for itself.
    limits : the values of codes 0 and 255, where codes are a scale.
    """

    codes: Codes
    table: Table
    name: str
    source: View | None = None
    names: Mapping[int, str] | None = None
    limits: tuple[float, float] | None = None
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8 or self.codes.ndim != 3:
            raise InputError(
                f"layer {self.name!r}: codes are a volume of uint8, got "
                f"{self.codes.dtype} of shape {self.codes.shape}"
            )
        if self.table.dtype != np.uint8 or self.table.shape != (256, 4):
            raise InputError(
                f"layer {self.name!r}: a table is (256, 4) uint8, got {self.table.dtype} of "
                f"shape {self.table.shape}"
            )

    def value_at(self, canonical: Voxel) -> float | str | None:
        """Return the value of a voxel, or the name of its class; None where none is known."""
        if self.source is None:
            return None
        i, j, k = canonical
        value = read(self.source, (slice(i, i + 1), slice(j, j + 1), slice(k, k + 1))).item()
        if self.names is None:
            return float(value)
        return self.names.get(int(value), f"label {value:g}") if value else ""


@dataclass(frozen=True, eq=False)
class Panel:
    """Layers over one another, the first below."""

    title: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """Panels side by side, all on one grid.

    Raises
    ------
    InputError : no panel, a panel without a layer, two of one name, or a layer of another shape.
    """

    display: Display
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        titles = [panel.title for panel in self.panels]
        if not titles or len(set(titles)) < len(titles):
            raise InputError(f"a scene has panels, each with its own title, got {titles}")
        for panel in self.panels:
            names = [layer.name for layer in panel.layers]
            if not names or len(set(names)) < len(names):
                raise InputError(f"panel {panel.title!r} has layers, each named, got {names}")
            for layer in panel.layers:
                if layer.codes.shape != self.display.shape:
                    raise InputError(
                        f"layer {layer.name!r} has the shape {layer.codes.shape}, the scene "
                        f"{self.display.shape}"
                    )

    @property
    def legend(self) -> tuple[Key, ...]:
        """What the colours mean, each meaning once."""
        keys = [key for panel in self.panels for layer in panel.layers for key in layer.keys]
        return tuple(dict.fromkeys(keys))

    @property
    def focus(self) -> Voxel:
        """Where to look first: the planes with most on them, else the middle."""
        for panel in self.panels:
            for layer in panel.layers[1:]:
                if (found := busiest(layer)) is not None:
                    return found
        i, j, k = (side // 2 for side in self.display.shape)
        return i, j, k


@dataclass(frozen=True)
class Box:
    """A box drawn over the planes, such as a window of the network.

    low, high : its edges in shown voxels; a voxel i reaches from i to i + 1.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    name: str = ""
    colour: Colour = (255, 255, 255)


def in_plane(axis: int) -> tuple[int, int]:
    """Return the axes that run to the right and up in the plane across `axis`."""
    across, up = (a for a in AXES if a != axis)
    return across, up


def plane_of(codes: Codes, axis: int, index: int) -> Codes:
    """Return a plane (right, up) of a volume; a view of its voxels."""
    return codes[(slice(None),) * axis + (index,)]


def blend(
    planes: Sequence[Codes], tables: Sequence[Table], opacity: float = OPACITY
) -> NDArray[np.uint8]:
    """Lay the colours of layers over one another.

    Parameters
    ----------
    planes : codes of each layer, all of one shape, the first below.
    tables : (256, 4) of each layer.
    opacity : weakens all layers but the first, 0 to 1.

    Returns
    -------
    (..., 3) RGB; black where nothing is.
    """
    colours = np.zeros((*planes[0].shape, 3))
    for number, (codes, table) in enumerate(zip(planes, tables, strict=True)):
        over = table[codes].astype(np.float64)
        alpha = over[..., 3:] / 255 * (opacity if number else 1)
        colours += (over[..., :3] - colours) * alpha
    return np.rint(colours).astype(np.uint8)


def busiest(layer: Layer) -> Voxel | None:
    """Return the plane across each axis that shows most of a layer; None if none stands out."""
    stride = max(1, round((layer.codes.size / BUSIEST_VOXELS) ** 0.5))
    found = []
    for axis in AXES:
        sample = layer.codes[tuple(slice(None, None, 1 if a == axis else stride) for a in AXES)]
        alpha = layer.table[:, 3][sample]
        if alpha.min() == alpha.max():
            return None
        found.append(int(np.argmax(alpha.sum(axis=in_plane(axis), dtype=np.uint64))))
    return found[0], found[1], found[2]
