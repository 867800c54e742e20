"""A small picture of a pair as an `img` element: the image, and its label's outline."""

from __future__ import annotations

import base64
import io as bytes_io
from html import escape

import numpy as np
from matplotlib.image import imsave
from scipy import ndimage

from ..pair import ContextPair
from ..volume import grid_of
from .display import Display
from .gallery import AXIAL, SHOWN_VOXELS, square_pixels
from .layers import grey_layer
from .scene import in_plane, plane_of

OUTLINE = (255, 170, 0)
GREY_STEP = 8  # 32 greys: a picture of a few kB


def thumbnail(pair: ContextPair) -> str:
    """Draw the axial plane with most label on it; of an image task the middle one, no outline."""
    display = Display.of(grid_of(pair.image), limit=SHOWN_VOXELS)
    codes = grey_layer(display, pair.image).codes
    at = codes.shape[AXIAL] // 2
    mask = np.zeros(codes.shape, bool)
    if pair.task == "segmentation":
        mask = display.pick(display.view_of(pair.label)) != 0
        at = int(mask.sum(axis=(0, 1)).argmax()) if mask.any() else at
    across, up = (display.grid.spacing_mm[axis] for axis in in_plane(AXIAL))
    grey = plane_of(codes, AXIAL, at) // GREY_STEP * GREY_STEP
    shown = np.stack([grey, grey, grey, plane_of(mask, AXIAL, at).astype(np.uint8)], axis=-1)
    shown = square_pixels(shown, across, up)
    inside = shown[..., 3] > 0
    picture = shown[..., :3].copy()
    picture[inside & ~ndimage.binary_erosion(inside)] = OUTLINE
    file = bytes_io.BytesIO()
    imsave(file, np.ascontiguousarray(picture.swapaxes(0, 1)[::-1]), format="png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(pair.name, quote=True)}" src="data:image/png;base64,{data}">'
