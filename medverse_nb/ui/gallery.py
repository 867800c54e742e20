"""Small pictures of context pairs, and the scene that shows one of them at its full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..classes import ClassSpec
from ..pair import ContextPair
from ..volume import grid_of
from .display import LARGEST_SHOWN, Display
from .layers import grey_layer, label_layer
from .scene import Panel, Scene, blend, in_plane, plane_of

AXIAL = 2
SIDE_PIXELS = 96  # of a thumbnail, at most
SHOWN_VOXELS = SIDE_PIXELS**3


@dataclass(frozen=True, eq=False)
class Card:
    """A pair of the gallery.

    picture : (rows, columns, 3) uint8, the first row on top: the axial plane with most label
        on it, the label over the image; of an image task beside it.
    """

    pair: ContextPair
    picture: NDArray[np.uint8]

    @property
    def name(self) -> str:
        """Name of the pair."""
        return self.pair.name


def make_card(pair: ContextPair, classes: Sequence[ClassSpec]) -> Card:
    """Draw a pair's thumbnail; the volume is read once, in slabs."""
    scene = pair_scene(pair, classes, SHOWN_VOXELS)
    at = scene.focus[AXIAL]
    pictures = []
    for panel in scene.panels:
        planes = [plane_of(layer.codes, AXIAL, at) for layer in panel.layers]
        pictures.append(blend(planes, [layer.table for layer in panel.layers]))
    across, up = (scene.display.grid.spacing_mm[a] for a in in_plane(AXIAL))
    upright = [square_pixels(picture, across, up).swapaxes(0, 1)[::-1] for picture in pictures]
    return Card(pair, np.ascontiguousarray(np.concatenate(upright, axis=1)))


def pair_scene(
    pair: ContextPair, classes: Sequence[ClassSpec], limit: int = LARGEST_SHOWN
) -> Scene:
    """Show a pair: its label over the image, or beside it where the label is an image.

    classes : of segmentation, by label value.
    """
    display = Display.of(grid_of(pair.image), limit=limit)
    image = grey_layer(display, pair.image, name="image")
    if pair.task == "image":
        label = grey_layer(display, pair.label, name="label")
        return Scene(display, (Panel(pair.name, (image,)), Panel("label", (label,))))
    labels = label_layer(display, pair.label, classes, by_value=True)
    return Scene(display, (Panel(pair.name, (image, labels)),))


def square_pixels(picture: NDArray[np.uint8], across_mm: float, up_mm: float) -> NDArray[np.uint8]:
    """Repeat or leave out pixels (right, up, 3) until they are square and few enough."""
    extent = picture.shape[0] * across_mm, picture.shape[1] * up_mm
    pixel = max(extent) / SIDE_PIXELS
    places = []
    for size, mm in zip(picture.shape[:2], extent, strict=True):
        count = max(1, round(mm / pixel))
        places.append((2 * np.arange(count) + 1) * size // (2 * count))
    return picture[np.ix_(*places)]
