"""The trust score: learnt on drawn trials, then held against real hippocampus.

    python benchmarks/trust.py gather --label-maps DIR --out trials.jsonl [--trials 60] [--seed 0]
    python benchmarks/trust.py fit --trials trials.jsonl
    python benchmarks/trust.py hippocampus --folder DIR --out hippocampus.jsonl
    python benchmarks/trust.py broken --folder DIR --out broken.jsonl
    python benchmarks/trust.py report --hippocampus hippocampus.jsonl --broken broken.jsonl

`gather` predicts trials drawn from heads and shapes and keeps a row each, with all signals and the
true Dice; run again it goes on where it was. `fit` learns the calibration that ships beside the
weights. The others hold it against real scans that neither weights nor calibration have seen, and
record what they find. Several processes share the work by `--first` and `--step`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kept_rows import KeptRows, read_rows
from record import record
from torch import Generator

import medverse_nb as mv
from medverse_nb.evaluation.metrics import dice
from medverse_nb.evaluation.trust.calibration import SUFFIX, Calibration, read_calibration
from medverse_nb.evaluation.trust.coarse import Asker
from medverse_nb.evaluation.trust.context_signals import (
    LEFT_OUT,
    ContextSignals,
    context_signals,
)
from medverse_nb.evaluation.trust.fit import fit
from medverse_nb.evaluation.trust.measuring import SIGNALS, measure
from medverse_nb.evaluation.trust.score import context_findings
from medverse_nb.evaluation.trust.trials import (
    BREAKS,
    FOREGROUND,
    break_context,
    draw_trial,
)
from medverse_nb.inference.autoregressive import run
from medverse_nb.inference.inputs import PairInputs
from medverse_nb.inference.recipe import Settings
from medverse_nb.model.registry import find_weights
from medverse_nb.model.weights import weights_hash
from medverse_nb.pair import ContextPair, make_pair
from medverse_nb.pair_folder import find_pairs
from medverse_nb.placement import CanonicalVolume
from medverse_nb.regions import read
from medverse_nb.tasks.fields import chance, integer
from medverse_nb.tasks.labelmaps import read_head_maps
from medverse_nb.tasks.scenes import HeadSource, Mixture, ShapeSource

HELD_OUT_HEADS = range(13, 17)
HEADS_RATE = 0.75
CONTEXT_SIZES, TARGETS, BROKEN_SHARE = (1, 2, 4, 8), 4, 0.25
WHOLE, DRAWS, BOOTSTRAPS = (1, 2), 10, 500
FULL_ONLY = ("spread", "left_out", "gain")
CONTEXT_SIGNALS = ("edges", "left_out", "gain")
LEARNT_ON = "synthetic contrast over four held-out FreeSurfer label maps, and random shapes"


def score(
    ask: Asker,
    image: Any,
    truth: np.ndarray,
    pairs: Sequence[ContextPair],
    known: ContextSignals | None = None,
) -> tuple[dict[str, float], ContextSignals]:
    """Predict one class as a session does; return true Dice and all signals."""
    target = CanonicalVolume.of(image).scaled()
    inputs = PairInputs(target.view, target.grid, pairs, ask.align, ask.wanted)
    steps = run(ask.network, inputs, ask.settings)
    answers = [step.predictions for step in steps]
    found = measure(ask, target, answers, pairs, "full", known)
    mask = target.reorientation.undo(read(answers[-1][0]) > 0.5)
    return {"dice": dice(mask, truth), **found.classes[0]}, found.context


def left_out_of(context: ContextSignals) -> list[tuple[float, float]]:
    """Return the Dice of each pair left out, and the mean label's."""
    columns = context.left_out[["dice", "mean_label_dice"]].round(4)
    return [tuple(row) for row in columns.itertuples(index=False)]


def open_asker(model: str, values: tuple[int, ...]) -> Asker:
    """Open a model as a session would."""
    session = mv.ICLSession(model)
    return Asker(session.network, [values], session.align, Settings(precision=session.precision))


def gather(args: argparse.Namespace) -> None:
    """Measure drawn trials: every target from every context size, some contexts broken."""
    paths = [args.label_maps / f"training_seg_{n:02d}.nii.gz" for n in HELD_OUT_HEADS]
    heads = HeadSource(read_head_maps(paths))
    source = Mixture((heads, ShapeSource()), (HEADS_RATE, 1 - HEADS_RATE))
    ask, kept = open_asker(args.model, (1,)), open_rows(args, "drawn trials")
    for number in range(args.first, args.trials, args.step):
        generator = Generator().manual_seed(8_000_000 + number)
        chosen = source.choose(generator)
        trial = draw_trial(chosen, generator, max(CONTEXT_SIZES), TARGETS)
        for size in CONTEXT_SIZES:
            pairs, broken = trial.pairs[:size], ""
            if chance(generator, BROKEN_SHARE) and size > 1:
                broken, pairs = break_context(pairs, integer(generator, 0, 10_000))
            known = None
            for n, target in enumerate(trial.targets):
                told = {"trial": number, "size": size, "target": n}
                if kept.has(**told):
                    continue
                truth = target.label.values == FOREGROUND
                found, known = score(ask, target.image, truth, pairs, known)
                told |= {"case": f"trial {number}", "broken": broken}
                kept.add([{**told, **rounded(found), "left_out_pairs": left_out_of(known)}])


def learn(args: argparse.Namespace) -> None:
    """Fit the calibration and write it beside the weights."""
    trials = read_tables(args.trials)
    weights = find_weights(args.model)
    learnt = fit(trials, weights_hash(weights), LEARNT_ON)
    place = weights.with_name(weights.stem + SUFFIX)
    place.write_text(learnt.to_json(), encoding="utf-8")
    print(f"{len(trials)} trials, {(trials['broken'] != '').sum()} of them broken: {place}")
    for curve in learnt.curves:
        print(curve.weights)


def open_rows(args: argparse.Namespace, what: str) -> KeptRows:
    """Open the rows of a part; they depend on the weights."""
    return KeptRows(args.out, {"what": what, "weights": weights_hash(find_weights(args.model))})


def rounded(signals: dict[str, float]) -> dict[str, float]:
    """Return figures as they are kept."""
    return {name: round(float(value), 5) for name, value in signals.items()}


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the rows that several processes kept."""
    return pd.DataFrame([row for path in paths for row in read_rows(path)]).reindex(
        columns=["case", "size", "broken", "dice", *SIGNALS, "left_out_pairs"]
    )


@dataclass(frozen=True)
class Hippocampus:
    """Real cases, read when they are asked for."""

    folder: Path

    @cached_property
    def files(self) -> dict[str, tuple[Path, Path]]:
        """Image and label of each case."""
        return find_pairs(self.folder / "imagesTr", self.folder / "labelsTr")

    def pair(self, name: str) -> ContextPair:
        """Read a case."""
        return make_pair(*self.files[name], name=name)


def score_hippocampus(args: argparse.Namespace) -> None:
    """Predict every case once, from two context sizes of one of ten draws of the context."""
    cases, kept = Hippocampus(args.folder), open_rows(args, "hippocampus")
    ask = open_asker(args.model, WHOLE)
    order = np.random.default_rng(11).permutation([*cases.files])
    for draw, targets in enumerate(np.array_split(order, DRAWS)):
        if draw % args.step != args.first:
            continue
        pool = [name for name in order if name not in targets]
        drawn = np.random.default_rng(100 + draw).permutation(pool)[: max(CONTEXT_SIZES)]
        pairs = [cases.pair(name) for name in drawn]
        known: dict[int, ContextSignals] = {}
        for number, name in enumerate(targets):
            target = cases.pair(name)
            truth = np.isin(target.label.values, WHOLE)
            for size in CONTEXT_SIZES[number % 2 :: 2]:
                if kept.has(case=name, size=size):
                    continue
                found, context = score(ask, target.image, truth, pairs[:size], known.get(size))
                known[size] = context
                left_out = left_out_of(context)
                told = {"case": name, "size": size, **rounded(found), "left_out_pairs": left_out}
                kept.add([told])


def score_broken(args: argparse.Namespace) -> None:
    """Look at sound and at broken contexts of real cases."""
    cases, kept = Hippocampus(args.folder), open_rows(args, "sound and broken contexts")
    for number in range(args.first, args.trials, args.step):
        for broken in ("", [*BREAKS][number % len(BREAKS)]):
            if kept.has(number=number, broken=broken):
                continue
            generator = np.random.default_rng(1000 + number)
            size = (4, 8)[number // len(BREAKS) % 2]
            names = generator.permutation([*cases.files])[:size]
            pairs = [cases.pair(name) for name in names]
            wanted = (1,) if number % len(BREAKS) == 0 else WHOLE  # two structures: its halves
            if broken:
                pairs = BREAKS[broken](pairs, number)
            ask = open_asker(args.model, wanted)
            context = context_signals(ask, pairs, leave_out=True)
            told = {"number": number, "broken": broken, "size": size, "pairs": names.tolist()}
            found = rounded(context.of_class(0))
            kept.add([{**told, **found, "left_out_pairs": left_out_of(context)}])


def report(args: argparse.Namespace) -> None:
    """Hold the calibration against what was measured, and record it."""
    weights = find_weights(args.model)
    learnt = read_calibration(weights, weights_hash(weights))
    assert learnt is not None, "fit it first"
    measured = read_tables(args.hippocampus)
    rows = with_expected(measured, learnt)
    fast = with_expected(measured.assign(**dict.fromkeys(FULL_ONLY)), learnt)
    contexts = read_tables(args.broken)
    contexts["alarm"] = [
        any(context_findings("", read_context(r), 0)) for _, r in contexts.iterrows()
    ]
    figures = {
        "model": args.model,
        "trials": learnt.trials,
        "learnt_on": learnt.learnt_on,
        "confidence": learnt.confidence,
        "predictions": len(rows),
        "cases": rows["case"].nunique(),
        "all": agreement(rows),
        "fast": agreement(fast),
        "sizes": {str(size): agreement(part) for size, part in rows.groupby("size")},
        "signals": {
            name: round(float(rows[name].corr(rows["dice"], method="spearman")), 3)
            for name in SIGNALS
            if rows[name].notna().sum() > 2
        },
    }
    alarms = {
        "model": args.model,
        "contexts": {
            name or "sound": {
                "contexts": len(part), "alarms": int(part["alarm"].sum()),
                **{f"median_{s}": round(float(part[s].median()), 3) for s in CONTEXT_SIGNALS},
            }
            for name, part in contexts.groupby("broken")
        },
    }  # fmt: skip
    for name, entry in (("trust", figures), ("trust_contexts", alarms)):
        print(json.dumps(entry, indent=1))
        if not args.no_record:
            record(name, entry)


def with_expected(rows: pd.DataFrame, learnt: Calibration) -> pd.DataFrame:
    """Return rows with the columns of the Dice to expect."""
    found = [learnt.expect(signals_of(row)) for _, row in rows.iterrows()]
    return rows.join(pd.DataFrame(found).add_prefix("expected_"))


def read_context(row: pd.Series) -> ContextSignals:
    """Return the signals of a context as they were written."""
    left_out = [(str(n), 0, ours, mean) for n, (ours, mean) in enumerate(row["left_out_pairs"])]
    return ContextSignals(float(row["edges"]), pd.DataFrame(left_out, columns=LEFT_OUT))


def signals_of(row: pd.Series) -> dict[str, float]:
    """Return the signals that a row has."""
    return {str(name): float(value) for name, value in row[list(SIGNALS)].dropna().items()}


def agreement(rows: pd.DataFrame) -> dict[str, Any]:
    """Return how predicted and true Dice agree; ranges are of 90%, bootstrapped by case."""
    cases = [part for _, part in rows.groupby("case")]
    generator = np.random.default_rng(0)

    def figures(part: pd.DataFrame) -> tuple[float, float]:
        inside = part["dice"].between(part["expected_low"], part["expected_high"])
        rank = part["expected_dice"].corr(part["dice"], method="spearman")
        return float(rank), float(inside.mean())

    drawn = [
        figures(pd.concat([cases[i] for i in generator.integers(0, len(cases), len(cases))]))
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0).round(3).tolist()
    rank, inside = figures(rows)
    return {
        "predictions": len(rows),
        "spearman": round(rank, 3), "spearman_90": [low[0], high[0]],
        "coverage": round(inside, 3), "coverage_90": [low[1], high[1]],
        "mean_dice": round(float(rows["dice"].mean()), 3),
        "mean_expected": round(float(rows["expected_dice"].mean()), 3),
        "mean_error": round(float((rows["expected_dice"] - rows["dice"]).abs().mean()), 3),
        "mean_width": round(float((rows["expected_high"] - rows["expected_low"]).mean()), 3),
    }  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="medverse-tiny")
    parts = parser.add_subparsers(required=True)
    for name, function in (
        ("gather", gather), ("hippocampus", score_hippocampus), ("broken", score_broken),
    ):  # fmt: skip
        part = parts.add_parser(name)
        place = "--label-maps" if name == "gather" else "--folder"
        part.add_argument(place, type=Path, required=True)
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--first", type=int, default=0, help="of several processes: 0, 1, ...")
        part.add_argument("--step", type=int, default=1, help="how many processes share the work")
        if name != "hippocampus":
            part.add_argument("--trials", type=int, default=60 if name == "gather" else 100)
        part.set_defaults(run=function)
    part = parts.add_parser("fit")
    part.add_argument("--trials", type=Path, nargs="+", required=True)
    part.set_defaults(run=learn)
    part = parts.add_parser("report")
    part.add_argument("--hippocampus", type=Path, nargs="+", required=True)
    part.add_argument("--broken", type=Path, nargs="+", required=True)
    part.add_argument("--no-record", action="store_true")
    part.set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
