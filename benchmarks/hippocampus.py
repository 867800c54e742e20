"""Dice on real hippocampus, native grid, beside the mean label: an unseen structure.

    python benchmarks/hippocampus.py --folder Task04_Hippocampus

The folder is in nnU-Net layout (imagesTr, labelsTr). Cases are predicted through
`ICLSession.predict` with contexts drawn by seed from the other cases.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from record import record

import medverse_nb as mv
from medverse_nb.context import find_pairs

CLASSES = {"hippocampus": (1, 2)}


def score(
    folder: Path, model: str, cases: list[str], pool: list[str], size: int, seed: int
) -> tuple[list[float], list[float], float]:
    """Return our Dice, the mean label's, and seconds a case, with `size` pairs from `pool`."""
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(pool, size, replace=False).tolist())
    session = mv.ICLSession(model)
    session.add_context_folder(folder / "imagesTr", folder / "labelsTr", names=chosen)
    pairs = find_pairs(folder / "imagesTr", folder / "labelsTr")
    ours, baseline = [], []
    started = time.perf_counter()
    for case in cases:
        image, label = pairs[case]
        row = session.predict(image, classes=CLASSES, truth=label).score.loc["hippocampus"]
        ours.append(float(row["dice"]))
        baseline.append(float(row["mean_label_dice"]))
    return ours, baseline, (time.perf_counter() - started) / len(cases)


def main() -> None:
    """Score every context size on the same cases and record the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="medverse-tiny")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    names = list(find_pairs(args.folder / "imagesTr", args.folder / "labelsTr"))
    cases = sorted(np.random.default_rng(7).choice(names, args.cases, replace=False).tolist())
    pool = [name for name in names if name not in cases]
    rows = []
    for size in args.sizes:
        scores = [
            score(args.folder, args.model, cases, pool, size, draw) for draw in range(args.draws)
        ]
        row = {
            "context_size": size,
            "dice": round(float(np.mean([s[0] for s in scores])), 4),
            "mean_label_dice": round(float(np.mean([s[1] for s in scores])), 4),
            "cases_above_mean_label": int(
                sum(a > b for s in scores for a, b in zip(s[0], s[1], strict=True))
            ),
            "seconds_a_case": round(float(np.mean([s[2] for s in scores])), 2),
        }
        rows.append(row)
        print(row, flush=True)
    if not args.no_record:
        record(
            "hippocampus",
            {"model": args.model, "cases": args.cases, "draws": args.draws, "rows": rows},
        )


if __name__ == "__main__":
    main()
