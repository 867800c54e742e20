"""Methods side by side on one target: what `session.compare` gives back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import pandas as pd
import xarray as xr

from .classes import ClassSpec


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same target answered by several methods from the same pairs.

    Parameters
    ----------
    target, truth : (x, y, z); the truth in class numbers, on the target's grid.
    table : `method`, `class`, `dice`, `seconds`, `note`, `error`; a row a method and class, the
        session's own model first. A method that failed has its error and no score.
    masks : class numbers on the target's grid by method, of those that answered.
    """

    target: xr.DataArray
    truth: xr.DataArray
    classes: tuple[ClassSpec, ...]
    table: pd.DataFrame
    masks: Mapping[str, xr.DataArray]

    def picture(self) -> bytes:
        """Return a PNG: the truth, then each method that answered, a row each."""
        from .ui.static import side_by_side, to_png

        rows = {"truth": self.truth, **self.masks}
        return to_png(side_by_side(self.target, rows, self.classes))

    def __repr__(self) -> str:
        return self.table.to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.picture()).decode("ascii")
        alt = escape(f"three planes of {self.target.name}, a row a method")
        table = self.table.to_html(index=False, float_format="{:.3f}".format, na_rep="")
        return f'<img alt="{alt}" src="data:image/png;base64,{picture}"/>\n{table}'
