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
from .scorers import Measures

WIDTH_INCHES, HEIGHT_INCHES, DPI = 6.0, 3.6, 120


def summarise(rows: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """Return mean and standard deviation over the draws, a row a class and size.

    A draw's figure is the mean over its cases. Rows with an `error` are not averaged; rows with
    a `note` are. An infinite score is left out of its own mean. All three are counted.

    Returns
    -------
    `class`, `size`, `cases` and `draws` that have a score; each score's mean and, as
    `SCORE_std`, the spread of the draws (NaN of one draw); `seconds` of a prediction;
    `noted`, `infinite` and `errors`, in rows.
    """
    return pd.DataFrame(
        [
            {"class": name, "size": size, **_figures(group, measures.columns)}
            for (name, size), group in rows.groupby(["class", "size"], sort=False)
        ]
    )


def _figures(rows: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    scored = rows[rows["error"] == ""]
    infinite = np.isinf(scored[columns])
    draws = scored[columns].mask(infinite).groupby(scored["draw"]).mean()
    figures: dict[str, Any] = {"cases": scored["case"].nunique(), "draws": len(draws)}
    for column in columns:
        figures[column] = draws[column].mean()
        figures[f"{column}_std"] = draws[column].std()
    return figures | {
        "seconds": scored["seconds"].mean(),
        "noted": int((scored["note"] != "").sum()),
        "infinite": int(infinite.any(axis=1).sum()),
        "errors": len(rows) - len(scored),
    }


def draw_curve(axes: Axes, summary: pd.DataFrame, measures: Measures) -> None:
    """Draw the first score against the number of pairs, with its spread; what to beat is dashed."""
    drawn, baseline = measures.drawn, measures.baseline
    for name, rows in summary.groupby("class", sort=False):
        (line,) = axes.plot(rows["size"], rows[drawn], marker="o", markersize=3, label=str(name))
        spread = rows[f"{drawn}_std"].fillna(0)
        axes.fill_between(rows["size"], rows[drawn] - spread, rows[drawn] + spread, alpha=0.2)
        axes.plot(rows["size"], rows[baseline], linestyle="--", color=line.get_color())
    axes.set_xscale("log", base=2)
    sizes = sorted(summary["size"].unique())
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("pairs in the context", fontsize=8)
    axes.set_ylabel(measures.headings[drawn], fontsize=8)
    draws = summary["draws"].max()
    told = f"mean and spread of {draws} draws" if draws > 1 else "one draw"
    axes.set_title(f"{told}; dashed: {measures.headings[baseline]}", fontsize=8)
    axes.tick_params(labelsize=8)
    # beside the curves, where it covers none
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)


def write_summary(summary: pd.DataFrame, folder: Path, measures: Measures) -> None:
    """Write `summary.csv` and `curve.png`.

    Raises
    ------
    OutputError : they cannot be written.
    """
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw_curve(figure.subplots(), summary, measures)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    text = summary.to_csv(index=False)
    write_atomically(folder / "summary.csv", lambda part: part.write_text(text, encoding="utf-8"))
    write_atomically(folder / "curve.png", lambda part: part.write_bytes(picture.getvalue()))
