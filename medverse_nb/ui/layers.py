"""Layers from volumes: grey values, classes, heat from 0 to 1, and signed differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..classes import ClassSpec, Colour
from ..errors import InputError
from ..intensity import quantile_scale
from ..regions import View
from .display import Display
from .scene import Codes, Key, Layer, Table

LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995
QUANTILE_VOXELS = 2**20  # a window for the eye needs no more
TILE = 64  # voxels along each axis
MOST_CLASSES = 255  # codes 1 to 255; 0 is the background
ZERO_CODE = 128  # of a signed layer
# From nothing to much: dark violet, red, orange, pale yellow. Lightness rises all the way.
HEAT: tuple[Colour, ...] = (
    (40, 10, 80),
    (150, 30, 100),
    (225, 80, 40),
    (250, 170, 30),
    (255, 250, 190),
)
# Okabe and Ito's blue and vermilion, told apart by colour-blind readers.
LESS: Colour = (0, 114, 178)
MORE: Colour = (213, 94, 0)


def grey_layer(
    display: Display,
    volume: xr.DataArray | View,
    *,
    name: str = "scan",
    window: tuple[float, float] | None = None,
) -> Layer:
    """Show a volume in grey.

    Parameters
    ----------
    volume : a `DataArray` of the display's grid, or a view in canonical order.
    window : the values that become black and white; None for the 0.005 and 0.995 quantiles
        of what is shown.
    """
    source = display.view_of(volume)
    shown = display.average(source)
    low, high = window or quantile_window(shown)
    levels = np.arange(256, dtype=np.uint8)
    table = np.stack([levels, levels, levels, np.full(256, 255, np.uint8)], axis=1)
    return Layer(to_codes(shown, low, high), table, name, source, limits=(low, high))


def label_layer(
    display: Display,
    mask: xr.DataArray | View,
    classes: Sequence[ClassSpec],
    *,
    name: str = "labels",
    by_value: bool = False,
) -> Layer:
    """Show classes in their colours; all other numbers are see-through.

    Parameters
    ----------
    mask : whole numbers, a `DataArray` of the display's grid or a view in canonical order.
        Where voxels are skipped, a shown one has the label of the voxel behind it.
    by_value : the numbers are label values, of which a class may join several, and not
        class numbers.
    """
    code_of, table = class_codes(classes, by_value=by_value)
    source = display.view_of(mask)
    names = {value: classes[code - 1].name for value, code in code_of.items()}
    codes = recoded(display.pick(source), code_of)
    return Layer(codes, table, name, source, names, keys=class_keys(classes))


def heat_layer(
    display: Display,
    volume: xr.DataArray | View,
    *,
    name: str = "heat",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Layer:
    """Show how much: see-through at the lower limit, opaque and light at the upper."""
    source = display.view_of(volume)
    low, high = limits
    table = np.empty((256, 4), np.uint8)
    for channel in range(3):
        stops = [colour[channel] for colour in HEAT]
        table[:, channel] = np.rint(np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, 5), stops))
    table[:, 3] = np.arange(256)
    codes = to_codes(display.average(source), low, high)
    key = Key(name, HEAT, (f"{low:g}", f"{high:g}"))
    return Layer(codes, table, name, source, limits=limits, keys=(key,))


def signed_layer(
    display: Display,
    volume: xr.DataArray | View,
    *,
    name: str = "change",
    limit: float | None = None,
) -> Layer:
    """Show less in blue and more in red, the stronger the less see-through; zero shows nothing.

    limit : the amount that is opaque; None for the largest there is.
    """
    source = display.view_of(volume)
    shown = np.nan_to_num(display.average(source), nan=0.0, posinf=0.0, neginf=0.0)
    most = float(np.abs(shown).max()) if limit is None else float(limit)
    signed = np.zeros(shown.shape) if most <= 0 else np.clip(shown / most, -1, 1)
    codes = np.rint(ZERO_CODE + 127 * signed).astype(np.uint8)
    strength = np.abs(np.arange(256) - float(ZERO_CODE)).clip(0, 127) / 127
    table = np.empty((256, 4), np.uint8)
    table[:ZERO_CODE, :3], table[ZERO_CODE:, :3] = LESS, MORE
    table[:, 3] = np.rint(255 * strength)
    key = Key(name, (LESS, (255, 255, 255), MORE), (f"-{most:.3g}", f"{most:.3g}"))
    return Layer(codes, table, name, source, limits=(-most, most), keys=(key,))


def quantile_window(shown: NDArray[Any]) -> tuple[float, float]:
    """Return the values to show as black and white, from an even sample of the finite voxels."""
    stride = max(1, round((shown.size / QUANTILE_VOXELS) ** (1 / 3)))
    sample = shown[::stride, ::stride, ::stride]
    sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample.ravel()
    if not sample.size:
        return 0.0, 0.0
    scale = quantile_scale(sample.reshape(-1, 1, 1), LOW_QUANTILE, HIGH_QUANTILE)
    return scale.low, scale.high


def to_codes(shown: NDArray[Any], low: float, high: float) -> Codes:
    """Return 0 at `low` and below (and where nothing is known) to 255 at `high` and above."""
    codes = np.zeros(shown.shape, np.uint8)
    if high <= low:
        return codes
    # Tile by tile: a turned volume is written along one axis and read along another, which
    # takes four times as long where the part does not fit the cache.
    for corner in product(*(range(0, side, TILE) for side in shown.shape)):
        tile = tuple(slice(start, start + TILE) for start in corner)
        part = shown[tile].astype(np.float32)
        part -= low
        part *= 255 / (high - low)
        part += 0.5  # to the nearest, once cut to a whole number
        np.clip(part, 0, 255.5, out=part)
        part[np.isnan(part)] = 0
        codes[tile] = part
    return codes


def class_codes(
    classes: Sequence[ClassSpec], *, by_value: bool = False
) -> tuple[dict[int, int], Table]:
    """Return the code of each number in a mask, and the table that colours the codes.

    Raises
    ------
    InputError : more classes than there are codes, or a number that stands for two.
    """
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{len(classes)} classes; a picture tells {MOST_CLASSES} apart at most: give fewer"
        )
    table = np.zeros((256, 4), np.uint8)
    code_of: dict[int, int] = {}
    for code, spec in enumerate(classes, 1):
        table[code] = (*spec.colour, 255)
        for value in spec.values if by_value else (spec.number,):
            if code_of.setdefault(value, code) != code:
                raise InputError(f"label {value} belongs to two classes; show them one at a time")
    return code_of, table


def class_keys(classes: Sequence[ClassSpec]) -> tuple[Key, ...]:
    """Return the legend of some classes."""
    return tuple(Key(spec.name, (spec.colour,)) for spec in classes)


def recoded(numbers: NDArray[Any], code_of: Mapping[int, int]) -> Codes:
    """Return each number's code, 0 for a number without one."""
    if not code_of:
        return np.zeros(numbers.shape, np.uint8)
    known = np.array(sorted(code_of))
    codes = np.array([code_of[int(number)] for number in known], np.uint8)
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2:  # one look-up, and the usual case
        lookup = np.zeros(np.iinfo(numbers.dtype).max + 1, np.uint8)
        fits = known <= np.iinfo(numbers.dtype).max
        lookup[known[fits]] = codes[fits]
        return lookup[numbers]
    places = np.searchsorted(known, numbers).clip(0, len(known) - 1)
    return np.where(known[places] == numbers, codes[places], 0).astype(np.uint8)
