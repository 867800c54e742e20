"""What a prediction was made of: enough to make it again, as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import xarray as xr

from .context import ContextSet
from .inference.autoregressive import Step
from .intensity import IntensityScale
from .volume import grid_of

PACKAGES = ("medverse_nb", "torch", "numpy", "nibabel", "monai")


def describe_run(
    *,
    model: dict[str, str],
    context: ContextSet,
    target: xr.DataArray,
    scale: IntensityScale,
    settings: dict[str, Any],
    steps: Sequence[Step],
    seconds: float,
) -> dict[str, Any]:
    """Return versions, hashes, settings, timings and what was changed on reading."""
    grid = grid_of(target)
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "model": model,
        "context": [
            {"name": pair.name, "sha256": pair.hash, "changes": list(pair.changes)}
            for pair in context
        ],
        "target": {
            "name": str(target.name),
            "shape": list(grid.shape),
            "spacing_mm": [round(s, 6) for s in grid.spacing_mm],
            "intensity_scale": [scale.low, scale.high],
            "changes": list(target.attrs.get("changes", ())),
        },
        "settings": {
            **settings,
            "scales": len(steps),
            "windows": [len(step.windows) for step in steps],
        },
        "seconds": round(seconds, 3),
    }
