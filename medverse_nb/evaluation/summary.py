"""Mean and spread of an evaluation over the draws of the context: as a table and as a curve."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from .result_folder import METRICS

WIDTH_INCHES, HEIGHT_INCHES, DPI = 6.0, 3.6, 120


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over the draws, a row a class and size.

    A draw's figure is the mean over its cases. Rows with an `error` are not averaged; rows with
    a `note` are. An infinite `hd95_mm` is left out of its mean. All three are counted.

    Returns
    -------
    `class`, `size`, `cases` and `draws` that have a score; for each metric its mean and, as
    `METRIC_std`, the spread of the draws (NaN of one draw); `seconds` of a prediction;
    `noted`, `hd95_infinite` and `errors`, in rows.
    """
    return pd.DataFrame(
        [
            {"class": name, "size": size, **_figures(group)}
            for (name, size), group in rows.groupby(["class", "size"], sort=False)
        ]
    )


def _figures(rows: pd.DataFrame) -> dict[str, Any]:
    scored = rows[rows["error"] == ""]
    finite = scored.replace({"hd95_mm": {np.inf: np.nan}})
    draws = finite.groupby("draw")[[*METRICS]].mean()
    figures: dict[str, Any] = {"cases": scored["case"].nunique(), "draws": len(draws)}
    for metric in METRICS:
        figures[metric] = draws[metric].mean()
        figures[f"{metric}_std"] = draws[metric].std()
    return figures | {
        "seconds": scored["seconds"].mean(),
        "noted": int((scored["note"] != "").sum()),
        "hd95_infinite": int(np.isinf(scored["hd95_mm"]).sum()),
        "errors": len(rows) - len(scored),
    }


def draw_curve(axes: Axes, summary: pd.DataFrame) -> None:
    """Draw Dice against the number of pairs with its spread; the mean label is dashed."""
    for name, rows in summary.groupby("class", sort=False):
        (line,) = axes.plot(rows["size"], rows["dice"], marker="o", markersize=3, label=str(name))
        spread = rows["dice_std"].fillna(0)
        axes.fill_between(rows["size"], rows["dice"] - spread, rows["dice"] + spread, alpha=0.2)
        axes.plot(
            rows["size"], rows["mean_label_dice"], linestyle="--", color=line.get_color(),
            label=f"{name}, mean label",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    sizes = sorted(summary["size"].unique())
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("pairs in the context", fontsize=8)
    axes.set_ylabel("Dice", fontsize=8)
    axes.set_title(f"mean and spread of {summary['draws'].max()} draws", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def write_summary(summary: pd.DataFrame, folder: Path) -> None:
    """Write `summary.csv` and `curve.png`.

    Raises
    ------
    OutputError : they cannot be written.
    """
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw_curve(figure.subplots(), summary)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    text = summary.to_csv(index=False)
    write_atomically(folder / "summary.csv", lambda part: part.write_text(text, encoding="utf-8"))
    write_atomically(folder / "curve.png", lambda part: part.write_bytes(picture.getvalue()))
