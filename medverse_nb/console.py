"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .files import write_atomically

if TYPE_CHECKING:
    from .evaluation.doctor import Report
    from .evaluation.evaluate import Evaluation

# No markup: file and class names are shown as they are.
out_console = Console(markup=False, highlight=False, emoji=False)
log_console = Console(stderr=True, markup=False, highlight=False, emoji=False)


def stop(message: str, code: int) -> NoReturn:
    """End the program with an error of one line."""
    log_console.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(code)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line; for `warnings.showwarning`."""
    log_console.print(Text.assemble(("warning: ", "yellow"), str(message)), soft_wrap=True)


def print_json(value: object) -> None:
    """Print a result for programs to read."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def write_json(path: Path, value: object) -> None:
    """Write a result whole, or not at all."""
    text = json.dumps(value, indent=2)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def progress(count: int) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what moves a bar of `count` steps: called with what is done, how many, of how many."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log_console, transient=True) as bar:
        shown = bar.add_task("", total=count)
        yield lambda name, done, of: bar.update(shown, description=name, completed=done, total=of)


def print_cases(rows: list[dict[str, Any]], means: dict[str, dict[str, float]], out: Path) -> None:
    """Print a line a scan and class, with the columns that say something, and the means."""
    lines = []
    for row in rows:
        scores = {score["class"]: score for score in row.get("score") or []}
        trusts = {one["class"]: one for one in (row.get("trust") or {}).get("classes", [])}
        for entry in row.get("statistics", []):
            score, trust = scores.get(entry["class"], {}), trusts.get(entry["class"], {})
            lines.append([
                row["case"], entry["class"], f"{entry['millilitres']:.2f}",
                _number(score.get("dice")), _number(trust.get("expected_dice")),
                _number(score.get("mean_label_dice")), f"{row['seconds']:.1f}",
            ])  # fmt: skip
    headings = ("case", "class", "millilitres", "Dice", "expected", "mean label", "seconds")
    filled = [n for n, cells in enumerate(zip(*lines, strict=True)) if any(cells)]
    table = Table(*(headings[n] for n in filled))
    for line in lines:
        table.add_row(*(line[n] for n in filled))
    out_console.print(table)
    for name, mean in means.items():
        told = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in mean.items())
        out_console.print(f"mean of {name}: {told}")
    out_console.print(f"written to {out}/")


def print_evaluation(found: Evaluation, out: Path) -> None:
    """Print the table of an evaluation, and what its means leave out."""
    headings, drawn = found.measures.headings, found.measures.drawn
    table = Table("class", "pairs", *headings.values())
    for row in found.summary.to_dict("records"):
        means = {column: f"{row[column]:.3f}" for column in headings}
        means[drawn] += f" ± {row[f'{drawn}_std']:.3f}".removesuffix(" ± nan")
        table.add_row(str(row["class"]), str(row["size"]), *means.values())
    out_console.print(table)
    counts = found.summary[["noted", "infinite", "errors"]].sum()
    out_console.print(
        f"{counts['noted']} rows with a note, {counts['infinite']} with an infinite score that its "
        f"mean leaves out, {counts['errors']} errors that no mean contains", soft_wrap=True,
    )  # fmt: skip
    out_console.print(f"written to {out}/: rows.csv, summary.csv, curve.png", soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def print_report(report: Report, pairs: int) -> None:
    """Print what the context doctor found."""
    out_console.print(f"{pairs} pairs")
    if not report.findings:
        out_console.print("nothing found: the context looks sound")
        return
    table = Table("severity", "code", "pair", "evidence", "remedy")
    for finding in report.findings:
        remedy = f"{finding.remedy} (done: {finding.done})" if finding.done else finding.remedy
        table.add_row(finding.severity, finding.code, finding.pair, finding.evidence, remedy)
    out_console.print(table)


def print_demo(rows: list[dict[str, Any]], out: Path) -> None:
    """Print the Dice of each class, beside the mean label's."""
    table = Table("target", "class", "Dice", "mean label", "seconds")
    for row in rows:
        table.add_row(
            row["target"], row["class"], f"{row['dice']:.3f}",
            f"{row['mean_label_dice']:.3f}", f"{row['seconds']:.1f}",
        )  # fmt: skip
    out_console.print(table)
    out_console.print(
        "mean label: the average of the pairs' labels, which looks at no image. Where organs lie "
        "alike from one subject to the next, as in this phantom, it is hard to beat.",
        soft_wrap=True,
    )
    out_console.print(f"written to {out}/: predictions, previews, manifest.json")
