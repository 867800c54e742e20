"""Put the figures of `results.json` into the pages that tell them.

    python benchmarks/tables.py [--check]

Tables stand between `<!-- benchmark:NAME -->` and `<!-- benchmark:end -->`; nobody types
them. `--check` changes nothing and fails where a page is behind. A table that is not measured
at every release is left out, with its heading, while `results.json` has no such entry.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from evidence_tables import EVIDENCE, table

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "<!-- benchmark:" in page.read_text(encoding="utf-8")
)
BLOCK = re.compile(r"(<!-- benchmark:(\w+) -->\n).*?(<!-- benchmark:end -->)", re.DOTALL)


def dice_table(result: dict[str, Any]) -> str:
    """Return Dice by context size, the mean label beside it."""
    lines = ["| context pairs | Dice | mean label |", "|---|---|---|"]
    lines += [
        f"| {row['context_size']} | {row['dice']:.3f} | {row['mean_label_dice']:.3f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def hippocampus(result: dict[str, Any]) -> str:
    """Return the table of real hippocampus, and how it was measured."""
    return (
        f"{dice_table(result)}\n\nWhole hippocampus, native grid, {result['cases']} real cases "
        f"and {result['draws']} draw{'s' * (result['draws'] > 1)} of the context; the model has "
        f"never been trained on a hippocampus or on a real scan. {measured(result)}"
    )


def minute(result: dict[str, Any]) -> str:
    """Return what a minute of training on the pairs is worth, ours and a U-Net's."""
    rows = [
        ("mean label", result["mean_label_dice"], "none"),
        (result["model"], result["untuned_dice"], "none"),
        (f"{result['model']}, tuned", result["tuned_dice"], f"{result['tuning_seconds']:.0f} s"),
        ("MONAI U-Net on the same pairs", result["unet_dice"], f"{result['unet_seconds']} s"),
    ]
    lines = ["| what | Dice | training on the pairs |", "|---|---|---|"]
    lines += [f"| {name} | {dice:.3f} | {time} |" for name, dice, time in rows]
    return "\n".join(lines) + (
        f"\n\n{result['pairs']} pairs, {result['cases']} real hippocampus cases. {measured(result)}"
    )


def structures(result: dict[str, Any]) -> str:
    """Return the table of eleven structures of held-out heads, cut in two ways."""
    by_structure, by_brain = (
        {**result[part]["rows"], "**mean**": result[part]["mean"]}
        for part in ("by structure", "by brain")
    )
    lines = [
        "| structure | Dice | mean label | after a swap | by brain: Dice | mean label |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in by_structure.items():
        other = by_brain[name]
        lines.append(
            f"| {name} | {one['dice']:.3f} | {one['mean_label_dice']:.3f} "
            f"| {one['swapped_dice']:.3f} | {other['dice']:.3f} | {other['mean_label_dice']:.3f} |"
        )
    return "\n".join(lines) + (
        f"\n\n{result['subjects']} held-out heads, {result['pairs']} pairs of other subjects in the "
        "same unseen synthetic contrast, native grid. Each volume is cut around its own structure, "
        "up to 4 mm off; by brain: at one place of the brain's box, where the context lies about "
        "8 mm off. After a swap: the context shows another structure; Dice against the first. "
        f"{measured(result)}"
    )


def image_tasks(result: dict[str, Any]) -> str:
    """Return the table of restored volumes."""
    lines = ["| task | PSNR, dB | spoilt | gain |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        gain = row["psnr"] - row["spoilt_psnr"]
        lines.append(f"| {name} | {row['psnr']:.1f} | {row['spoilt_psnr']:.1f} | {gain:.1f} |")
    return "\n".join(lines) + (
        f"\n\n{result['subjects']} held-out heads, {result['pairs']} pairs. {measured(result)}"
    )


def ablations(result: dict[str, Any]) -> str:
    """Return what each part of the recipe is worth, under a heading of its own."""
    lines = [
        "What each part is worth, in Dice:\n",
        "| arm | steps | 1 pair | mean label | 8 pairs | mean label | native grid | mean label |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['step']:,} | {row['dice_1']:.3f} | {row['mean_label_1']:.3f} "
        f"| {row['dice_8']:.3f} | {row['mean_label_8']:.3f} "
        f"| {row['native_dice']:.3f} | {row['native_mean_label']:.3f} |"
        for name, row in result["rows"].items()
    ]
    return "\n".join(lines) + (
        f"\n\n{result['minutes']:g} minutes from chance, all arms side by side, segmentation alone in "
        f"windows of 32. 1 and 8 pairs: held-out tasks in one window, no feedback. Native grid: eleven structures of {result['subjects']} held-out "
        f"heads, {result['pairs']} pairs, the arms without NA-ICL by a sliding window. "
        f"{measured(result)}"
    )


def speed(result: dict[str, Any]) -> str:
    """Return seconds and memory."""
    lines = ["| what | figure |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in result.items() if key != "measured"]
    return "\n".join(lines) + f"\n\n{measured(result)}"


def viewers(result: dict[str, Any]) -> str:
    """Return what looking inside costs."""
    slices, run = result["slices"], result["recording"]
    return (
        f"A step of the cursor through 256³ voxels with labels takes Python {slices['median_ms']:g} "
        f"ms (at most {slices['most_ms']:g}). A virtual brain in {run['windows']} windows and two "
        f"classes took {run['seconds']:g} s, with `record=True` {run['recorded_seconds']:g} s, and "
        f"kept {run['attention_mb']:g} MB of attention. {measured(result)}"
    )


def engine_overhead(result: dict[str, Any]) -> str:
    """Return milliseconds a window, and what of them is the engine's."""
    columns = {
        "windows": "windows",
        "fed_ms": "ms a window",
        "network_ms": "network",
        "reading_ms": "reading",
        "other_ms": "all else",
        "other_of_network": "all else / network",
    }
    return (
        f"{rows_table(result['rows'], 'volume', columns)}\n\nMilliseconds. A window: after the "
        "first scale, with as many threads as the engine takes; its parts by one thread, over all "
        "scales. Reading is cropping and resampling; all else is planning and blending. Medians of "
        f"{result['rounds']} rounds through all volumes; what is left of the machine's own drift "
        f"shows in the network's column. {measured(result)}"
    )


def engine_workers(result: dict[str, Any]) -> str:
    """Return the seconds of one prediction by one worker and by two."""
    return (
        f"{rows_table(result['rows'], 'workers', {'seconds': 'seconds'})}\n\n"
        f"{result['ratio']:g} times as fast, answers {'' if result['equal'] else 'not '}equal bit "
        f"for bit: {result['side']}³ voxels, {result['pairs']} pairs, {result['windows']} windows, "
        f"workers of one thread. {measured(result)}"
    )


def engine_memory(result: dict[str, Any]) -> str:
    """Return the peak memory of volumes of zarr, under a heading of its own."""
    columns = {"windows": "windows", "peak_mb": "peak, MB", "of_first": "of the first"}
    return (
        "Memory of a large scan, of one twice as large, and with four times the pairs:\n\n"
        f"{rows_table(result['rows'], 'volume', columns)}\n\nThe whole process's peak, Python and "
        "torch included; from zarr folders. In place of the network stands a stub that answers at "
        f"once, but in the row that names it. {measured(result)}"
    )


def engine_estimate(result: dict[str, Any]) -> str:
    """Return what was told over what it took."""
    columns = {
        "told_s": "told, s",
        "seconds": "took, s",
        "of_seconds": "ratio",
        "told_mb": "told, MB",
        "peak_mb": "took, MB",
        "of_peak": "ratio of memory",
    }
    return f"{rows_table(result['rows'], 'volume', columns)}\n\n{measured(result)}"


def engine_skip(result: dict[str, Any]) -> str:
    """Return what `skip_empty` saves and costs."""
    columns = {
        "all_s": "all windows, s",
        "skip_s": "skipping, s",
        "times": "times as fast",
        "all_dice": "Dice, all windows",
        "skip_dice": "Dice, skipping",
    }
    return (
        f"{rows_table(result['rows'], 'organ', columns)}\n\nVirtual abdomen of {result['side']}³ "
        f"voxels, {result['pairs']} pairs. {measured(result)}"
    )


def engine_seams(result: dict[str, Any]) -> str:
    """Return steps across window borders, of the engine and of everything in memory."""
    columns = {
        "windows": "windows",
        "engine": "engine",
        "reference": "in memory",
        "largest_difference": "largest difference",
    }
    return (
        f"{rows_table(result['rows'], '', columns)}\n\nMean step from voxel to voxel across the "
        f"windows' borders over that elsewhere, of a virtual brain. {measured(result)}"
    )


def released_window(result: dict[str, Any]) -> str:
    """Return one window of the full-size network, the released recipe first."""
    columns = {
        "ms": "ms",
        "times": "times as fast",
        "error": "relative error",
        "gflops": "GFLOP/s",
        "of_peak": "of a convolution's peak",
    }
    return (
        f"{rows_table(result['rows'], 'full-size network', columns)}\n\nOne window of "
        f"{result['side']}³ with random weights, one pair and one fed back: {result['tflop']:g} TFLOP. "
        f"{measured(result)}"
    )


def released_volume(result: dict[str, Any]) -> str:
    """Return a whole volume, the released recipe first."""
    columns = {"ms": "ms", "times": "times as fast", "dice_to_float32": "Dice to our float32"}
    return (
        f"{rows_table(result['rows'], 'medverse-tiny', columns)}\n\nVirtual abdomen of "
        f"{result['side']}³ voxels, {result['pairs']} pairs, one organ, from arrays to the answer. "
        f"{measured(result)}"
    )


def rows_table(rows: dict[str, dict[str, Any]], first: str, columns: dict[str, str]) -> str:
    """Return named rows as a table; `columns` gives a heading to each figure that is shown."""
    lines = [
        [name, *(f"{row[k]:,}" if isinstance(row[k], int) else f"{row[k]:g}" for k in columns)]
        for name, row in rows.items()
    ]
    return table([first, *columns.values()], lines)


def measured(result: dict[str, Any]) -> str:
    """Say on what and by which command a figure was measured."""
    how = result["measured"]
    return (
        f"Measured {how['date']} on {how['threads']} threads of {how['processor']}, torch "
        f"{how['versions']['torch']}: `{how['command']}`."
    )


TABLES = {
    "hippocampus": hippocampus,
    "minute": minute,
    "structures": structures,
    "image_tasks": image_tasks,
    "speed": speed,
    "ablations": ablations,
    "viewers": viewers,
    "engine_overhead": engine_overhead,
    "engine_workers": engine_workers,
    "engine_memory": engine_memory,
    "engine_estimate": engine_estimate,
    "engine_skip": engine_skip,
    "engine_seams": engine_seams,
    "released_window": released_window,
    "released_volume": released_volume,
}
MAY_BE_ABSENT = {"ablations", "engine_memory", *EVIDENCE}


def render(page: str, results: dict[str, Any]) -> str:
    """Return a page with its tables made anew."""

    def renew(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name in MAY_BE_ABSENT and name not in results:
            return begin + end
        if name in EVIDENCE:
            text = f"{EVIDENCE[name](results[name])} {measured(results[name])}"
        else:
            text = TABLES[name](results[name])
        return f"{begin}\n{text}\n\n{end}"

    return BLOCK.sub(renew, page)


def main() -> None:
    """Rewrite the pages, or check them."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    behind = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        new = render(text, results)
        if new != text:
            behind.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if behind and "--check" in sys.argv:
        sys.exit(f"behind results.json: {behind}; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
