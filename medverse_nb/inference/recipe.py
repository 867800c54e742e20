"""How a run goes from coarse to fine: our own recipe and the released one.

Ours pads thin axes and keeps their resolution; `compat="released"` follows the released
code to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from ..errors import InputError
from ..geometry import Shape
from ..model.config import NetworkConfig, Precision
from ..regions import View
from ..views import resized
from .schedule import scale_count, scale_shape

Compat = Literal["released"] | None
MOST_SCALES = 12


@dataclass(frozen=True)
class Settings:
    """How a run is done; `None` lets the recipe choose.

    window : side of the windows, a multiple of the network's; None for the network's own.
    overlap : of neighbouring windows, in [0, 1).
    scales : T; None for Medverse Eq. 3, or, without an autoregressive branch, for one pass over
        the volume resized to the window. 1 is a direct sliding window for every network.
    mini_context_size : pairs in one pass; None chooses by free memory.
    compat : "released" for the released recipe.
    batch : windows in one pass.
    skip_empty : keep the coarser answer, for segmentation, in a window where no class exceeds
        `engine.EMPTY_BELOW` there; what the coarser scale missed stays missed.
    """

    window: int | None = None
    overlap: float = 0.1
    scales: int | None = None
    mini_context_size: int | None = None
    compat: Compat = None
    precision: Precision = "float32"
    batch: int = 1
    skip_empty: bool = False


@dataclass(frozen=True)
class Recipe:
    """The scales of a run over a volume of `shape`, and what its windows run on.

    whole : one pass over the volume resized to the window.
    """

    shape: Shape
    scales: int
    window: int
    whole: bool
    released: bool

    def level(self, scale: int) -> Shape:
        """Return the shape of a scale's answer."""
        return scale_shape(self.shape, scale, self.scales, None if self.released else self.window)

    def working(self, scale: int) -> Shape:
        """Return the shape a scale's windows run on."""
        level = self.level(scale)
        too_small = self.released and min(level) < self.window
        return (self.window,) * 3 if self.whole or too_small else level

    def resize(self, view: View, shape: Shape) -> View:
        """Return the volume resized to `shape`, by this recipe's convention."""
        return resized(view, shape, align_corners=self.released, antialias=not self.released)


def choose_recipe(config: NetworkConfig, shape: Shape, settings: Settings) -> Recipe:
    """Return the recipe for a network and a volume; the released one may enlarge the volume.

    Raises
    ------
    InputError : a setting that is out of range, or that the network cannot follow.
    """
    window = config.window if settings.window is None else settings.window
    if not isinstance(window, Integral) or window < 1 or window % config.multiple:
        raise InputError(
            f"window={window} must be an integer multiple of {config.multiple} for this network; "
            f"it was trained on {config.window}"
        )
    if settings.compat not in (None, "released"):
        raise InputError(f'compat={settings.compat!r} is not None or "released"')
    released = settings.compat == "released"
    if not config.autoregressive:
        if settings.scales not in (None, 1):
            raise InputError(
                f"{config.architecture} has no autoregressive branch: scales={settings.scales} "
                "must be 1"
            )
        return Recipe(shape, 1, window, whole=settings.scales is None, released=released)
    scales = scale_count(shape, window) if settings.scales is None else settings.scales
    if not isinstance(scales, Integral) or not 1 <= scales <= MOST_SCALES:
        raise InputError(f"scales must be an integer in 1..{MOST_SCALES}, got {scales}")
    if released:
        step = 2 ** (scales - 1)
        x, y, z = (-(-side // step) * step for side in shape)
        shape = (x, y, z)
    return Recipe(shape, scales, window, whole=False, released=released)
