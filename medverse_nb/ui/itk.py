"""itkwidgets, by name only and on trial: volume rendering by a viewer from the internet.

itkwidgets 1.0a55 loads its viewer from jsDelivr, GitHub Pages and IPFS when it is shown.
Where they cannot be reached it shows nothing, and later cells of the notebook wait for it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..errors import InputError
from .front_end import in_voila, under_test
from .scene import Codes
from .slices import SliceState
from .viewer import Viewer


def open_itk(state: SliceState) -> Viewer:
    """Show a scene's one panel in itkwidgets: the scan, and its labels if it has any.

    Raises
    ------
    InputError : under a test run or in Voila, where it never finishes; more than one panel,
        or another overlay than labels.
    """
    if under_test() or in_voila():
        where = "a test run" if under_test() else "Voila"
        raise InputError(
            f'backend="itk" waits for the internet and would hold up {where}; use "auto"'
        )
    panels = state.scene.panels
    layers = panels[0].layers
    if len(panels) > 1 or len(layers) > 2 or (len(layers) == 2 and layers[1].names is None):
        raise InputError('itkwidgets shows one scan with labels; use backend="canvas" for this')
    import itkwidgets
    import ngff_zarr

    warnings.warn(
        'backend="itk" is on trial: it loads its viewer from the internet, and where that '
        "cannot be reached the cells after this one may wait for it (restart the kernel then)",
        UserWarning,
        stacklevel=4,  # whoever called `view`
    )
    spacing = state.scene.display.grid.spacing_mm

    def as_image(codes: Codes) -> Any:
        # ITK counts to the left and to the back, and z is its slowest axis.
        lps = np.ascontiguousarray(codes[::-1, ::-1].transpose(2, 1, 0))
        scale = dict(zip("xyz", spacing, strict=True))
        return ngff_zarr.to_ngff_image(lps, dims=("z", "y", "x"), scale=scale)

    images = {"image": as_image(layers[0].codes)}
    if len(layers) == 2:
        images["label_image"] = as_image(layers[1].codes)
    return ItkViewer(state, itkwidgets.view(**images))


class ItkViewer(Viewer):
    """itkwidgets shows itself and follows neither the cursor nor the opacity."""

    def __init__(self, state: SliceState, shown: Any) -> None:
        super().__init__(state, backend="itk")
        self.shown = shown
