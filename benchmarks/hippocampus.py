"""Dice on real hippocampus, native grid, beside the mean label: an unseen structure.

    python benchmarks/hippocampus.py --folder Task04_Hippocampus

The folder is in nnU-Net layout (imagesTr, labelsTr). Cases are predicted through
`ICLSession.predict` with contexts drawn by seed from the other cases. `--minute` then gives
eight pairs a minute: tuned in context, and, as the alternative, a MONAI U-Net trained on
the same pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from record import record

import medverse_nb as mv
from medverse_nb.evaluation.baselines import Trained, Trial
from medverse_nb.pair_folder import find_pairs

CLASSES = {"hippocampus": (1, 2)}
PAIRS_OF_A_MINUTE, SECONDS, UNET_SECONDS = 8, 60, 90


@dataclass(frozen=True)
class Cohort:
    """Cases to predict, and the pool their context is drawn from."""

    folder: Path
    cases: Sequence[str]
    pool: Sequence[str]

    @classmethod
    def split(cls, folder: Path, count: int) -> Cohort:
        """Keep `count` cases, always the same, for prediction."""
        names = list(find_pairs(folder / "imagesTr", folder / "labelsTr"))
        cases = sorted(np.random.default_rng(7).choice(names, count, replace=False).tolist())
        return cls(folder, cases, [name for name in names if name not in cases])

    def open_session(self, model: str, size: int, seed: int) -> mv.ICLSession:
        """Open a session with the first `size` pairs of a shuffled pool: sizes are nested."""
        chosen = np.random.default_rng(seed).permutation(self.pool)[:size]
        session = mv.ICLSession(model)
        session.add_context_folder(
            self.folder / "imagesTr", self.folder / "labelsTr", names=sorted(chosen.tolist())
        )
        return session

    def read(self, case: str) -> tuple[xr.DataArray, NDArray[np.bool_]]:
        """Return a case's scan and its hippocampus."""
        image, label = find_pairs(self.folder / "imagesTr", self.folder / "labelsTr")[case]
        return mv.read_volume(image), np.isin(mv.read_volume(label).values, *CLASSES.values())

    def score(self, session: mv.ICLSession) -> list[tuple[float, float]]:
        """Return our Dice and the mean label's of every case."""
        pairs = find_pairs(self.folder / "imagesTr", self.folder / "labelsTr")
        rows = []
        for case in self.cases:
            image, label = pairs[case]
            row = session.predict(image, classes=CLASSES, truth=label).score.loc["hippocampus"]
            rows.append((float(row["dice"]), float(row["mean_label_dice"])))
        return rows


def score_sizes(cohort: Cohort, model: str, sizes: Sequence[int], draws: int) -> list[dict]:
    """Return one row for each context size."""
    rows = []
    for size in sizes:
        started = time.perf_counter()
        scores = [
            pair
            for seed in range(draws)
            for pair in cohort.score(cohort.open_session(model, size, seed))
        ]
        seconds = (time.perf_counter() - started) / len(scores)
        ours, baseline = np.mean(scores, axis=0)
        rows.append(
            {
                "context_size": size,
                "dice": round(float(ours), 4),
                "mean_label_dice": round(float(baseline), 4),
                "cases_above_mean_label": int(sum(a > b for a, b in scores)),
                "seconds_a_case": round(seconds, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def score_minute(cohort: Cohort, model: str) -> dict[str, Any]:
    """Return Dice with eight pairs: untuned, tuned for a minute, and a U-Net trained on them."""
    session = cohort.open_session(model, PAIRS_OF_A_MINUTE, seed=0)
    untuned = cohort.score(session)
    started = time.perf_counter()
    tuning = session.tune(SECONDS, classes=CLASSES)
    seconds = time.perf_counter() - started
    print(tuning, flush=True)
    tuned = cohort.score(session)
    pairs, specs = session.context.pairs, session.resolve(CLASSES)
    unet = Trained("U-Net", "unet").fit(pairs, specs, UNET_SECONDS)
    alternative = []
    for case in cohort.cases:
        image, truth = cohort.read(case)
        mask = unet.predict(Trial(image, pairs, specs)).mask
        alternative.append(mv.metrics.dice(mask > 0, truth))
    figures = {
        "untuned_dice": round(float(np.mean([a for a, _ in untuned])), 4),
        "tuned_dice": round(float(np.mean([a for a, _ in tuned])), 4),
        "held_out_dice_before": round(tuning.tuned.before, 4),
        "held_out_dice_after": round(tuning.tuned.after, 4),
        "tuning_seconds": round(seconds, 1),
        "tuning_steps": tuning.tuned.steps,
        "unet_dice": round(float(np.mean(alternative)), 4),
        "unet_seconds": UNET_SECONDS,
        "unet_steps": unet.networks[0].steps,
        "mean_label_dice": round(float(np.mean([b for _, b in untuned])), 4),
    }
    print(figures, flush=True)
    return figures


def main() -> None:
    """Score every context size on the same cases and record the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="medverse-tiny")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--minute", action="store_true")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    cohort = Cohort.split(args.folder, args.cases)
    about = {"model": args.model, "cases": args.cases}
    rows = score_sizes(cohort, args.model, args.sizes, args.draws)
    if rows and not args.no_record:
        record("hippocampus", {**about, "draws": args.draws, "rows": rows})
    if args.minute:
        figures = score_minute(cohort, args.model)
        if not args.no_record:
            record("minute", {**about, "pairs": PAIRS_OF_A_MINUTE, **figures})


if __name__ == "__main__":
    main()
