"""Tables of `evidence.py` and `trust.py`: what is worth what, and what can be told from chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOLD_APART = 2  # standard errors of a difference


def dice(result: dict[str, Any]) -> str:
    """Return Dice by method and context size, the seconds, and who is better than the model."""
    sizes, model = result["sizes"], result["model"]
    methods = list(dict.fromkeys(name for rows in sizes.values() for name in rows))
    methods.sort(key=lambda name: name != model)  # the others keep their order
    headings = [pairs_of(size) for size in sizes]
    scores = [[name, *(cell(sizes[size].get(name)) for size in sizes)] for name in methods]
    seconds = []
    for name in methods:
        rows = [sizes[size].get(name, {}) for size in sizes]
        once = max(row.get("once_seconds", 0) for row in rows)
        answers = [f"{row['seconds']:.2f}" if "seconds" in row else "-" for row in rows]
        seconds.append([name, f"{once:.0f}" if once else "none", *answers])
    draws = result["draws"]
    return (
        f"{table(['method', *headings], scores)}\n\n{winners(sizes, model)}\n\n"
        f"{table(['seconds', 'once a context', *headings], seconds)}\n\n"
        f"{result['cases']} real hippocampus cases, {draws} draw{'s' * (draws > 1)} of the context, "
        f"{result['budget']:g} seconds for what learns, and for registration at most. Dice; in "
        f"brackets the difference from {model} on the same cases, and its standard error over the "
        "cases. Seconds: once a context, and of an answer, the median."
    )


def winners(sizes: dict[str, Any], model: str) -> str:
    """Return the sentence that says which methods are better than the model, and where."""
    found: dict[str, list[str]] = {}
    for size, rows in sizes.items():
        for name, row in rows.items():
            if row.get("error") and row["difference"] > TOLD_APART * row["error"]:
                found.setdefault(name, []).append(size)
    said = [f"{name} ({', '.join(at)})" for name, at in found.items()]
    better = "; ".join(said) or "none"
    return (
        f"**Better than {model} by more than {TOLD_APART} standard errors** (at so many pairs): "
        f"{better}."
    )


def registration(result: dict[str, Any]) -> str:
    """Return what each stage of the registration is worth, and costs."""
    rows = [
        [name, cell(row), f"{row['seconds_a_pair']:.2f}"] for name, row in result["rows"].items()
    ]
    return (
        f"{table(['what', 'Dice', 'seconds a pair'], rows)}\n\n{result['cases']} real hippocampus "
        f"cases, {result['pairs']} other pairs for each. In brackets the difference from the affine "
        "step alone, and its standard error over the cases."
    )


def retrieval(result: dict[str, Any]) -> str:
    """Return Dice by how pairs were chosen."""
    columns = {pairs_of(size): rows for size, rows in result["sizes"].items()}
    columns[f"contrast inverted, {pairs_of(result['inverted_size'])}"] = result["inverted"]
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    rows = [[name, *(cell(at.get(name)) for at in columns.values())] for name in names]
    return (
        f"{table(['chosen by', *columns], rows)}\n\n{result['cases']} real hippocampus cases, pairs "
        f"chosen for each from the same {result['pool']}, all answered by {result['model']}. Dice; "
        f"in brackets the difference from random choice (mean of {result['random_draws']}), and its "
        "standard error over the cases. Last column: the target's contrast inverted, for the "
        "choice and for the answer."
    )


def adversarial(result: dict[str, Any]) -> str:
    """Return Dice and volume of contexts and targets that are wrong on purpose."""
    methods = list(dict.fromkeys(name for row in result["rows"].values() for name in row))
    methods.sort(key=lambda name: not name.startswith(result["model"]))

    def shown(row: dict[str, Any] | None) -> str:
        return f"{row['dice']:.3f}, {row['volume']:.2f}" if row else "-"

    rows = [
        [situation, *(shown(row.get(name)) for name in methods)]
        for situation, row in result["rows"].items()
    ]
    return (
        f"{table(['Dice, volume', *methods], rows)}\n\n{result['cases']} real hippocampus cases, "
        f"{result['pairs']} pairs, {result['seconds']} seconds for what learns. Volume: of the "
        "answer, over the true one of the case as it is; 0 is right where there is nothing to find "
        "(Dice 1), and anything else is found by mistake. Wrong contexts were given to the model and "
        "the mean label alone."
    )


def enhance(result: dict[str, Any]) -> str:
    """Return PSNR of restored images, and where nothing or something else was to be restored."""
    columns = {
        "spoilt": "spoilt",
        "restored": result["model"],
        "median_filter": "median filter",
        "wrong_context": "context of another task",
        "clean_target": "clean target",
    }
    rows = [[name, *(f"{row[key]:.1f}" for key in columns)] for name, row in result["rows"].items()]
    return (
        f"{table(['PSNR, dB', *columns.values()], rows)}\n\n{result['subjects']} held-out heads. "
        "Median filter: 3 x 3 x 3 voxels, no context. Context of another task: of the row below, "
        "for the last one of the first. Clean target: the answer to a "
        "target that was not spoilt."
    )


def trust(result: dict[str, Any]) -> str:
    """Return how the Dice to expect and the true one agree."""
    rows = []
    parts = {**result["sizes"], "all": result["all"], 'all, `trust="fast"`': result["fast"]}
    for name, row in parts.items():
        ranks, shares = (
            " to ".join(f"{end:.2f}" for end in row[f"{figure}_90"])
            for figure in ("spearman", "coverage")
        )
        rows.append([
            name, f"{row['predictions']}", f"{row['spearman']:.2f} ({ranks})",
            f"{row['coverage']:.0%} ({shares})", f"{row['mean_dice']:.3f}",
            f"{row['mean_expected']:.3f}", f"{row['mean_error']:.3f}", f"{row['mean_width']:.2f}",
        ])  # fmt: skip
    headings = ["pairs", "predictions", "Spearman", "in the interval", "mean Dice", "expected",
                "mean error", "width"]  # fmt: skip
    signals = ", ".join(f"`{name}` {rank:.2f}" for name, rank in result["signals"].items())
    return (
        f"{table(headings, rows)}\n\n{result['predictions']} predictions of {result['cases']} real "
        f"hippocampus cases, ten draws of the context, {result['model']}; in brackets ranges of "
        f"90%, bootstrapped by case. Learnt on {result['trials']} trials. Spearman of each signal "
        f"alone: {signals}."
    )


def trust_contexts(result: dict[str, Any]) -> str:
    """Return how many sound and broken contexts raise the alarm."""
    rows = [
        [name, f"{row['contexts']}", f"{row['alarms']}",
         *(f"{row[f'median_{signal}']:.3f}" for signal in ("left_out", "gain", "edges"))]
        for name, row in result["contexts"].items()
    ]  # fmt: skip
    return (
        f"{table(['context', 'contexts', 'told', 'left_out', 'gain', 'edges'], rows)}\n\nHalf of "
        "four pairs, half of eight; signals are medians."
    )


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(row: dict[str, Any] | None) -> str:
    """Return Dice and its difference from the reference, or why there is none."""
    if row is None:
        return "-"
    if "failed" in row:
        return str(row["failed"]).split(",")[0]
    if row["error"] is None or not (row["difference"] or row["error"]):
        return f"{row['dice']:.3f}"
    return f"{row['dice']:.3f} ({row['difference']:+.3f} ± {row['error']:.3f})"


def pairs_of(size: int | str) -> str:
    """Return "1 pair" or "4 pairs"."""
    return f"{size} pair{'s' * (int(size) > 1)}"


EVIDENCE: dict[str, Callable[[dict[str, Any]], str]] = {
    "evidence_dice": dice,
    "evidence_registration": registration,
    "evidence_retrieval": retrieval,
    "evidence_adversarial": adversarial,
    "evidence_enhance": enhance,
    "trust": trust,
    "trust_contexts": trust_contexts,
}
