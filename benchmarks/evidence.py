"""The evidence behind each claim: beside what a user would do instead, and where it breaks.

    python benchmarks/evidence.py --folder Task04_Hippocampus --label-maps DIR [--parts dice ...]

Every row is kept in `--work` as soon as it is measured, so a run that was ended goes on where it
was; a part that is done is recorded in `results.json`. The rows behind the published tables lie in
`rows`, beside this script. On two idle cores, twenty cases:

    registration    3 min   what each stage of the registration is worth
    adversarial    10 min   contexts and targets that are wrong on purpose
    enhance         3 min   restored images, and what should not be touched
    retrieval      15 min   which pairs of a pool to choose
    dice           75 min   all methods on the same cases and contexts; each draw as long again

What learns, learns once a context for `--budget` seconds and answers all cases. Hippocampus is
for evaluation alone: no weights were trained on it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from adversarial import CONTEXTS, TARGETS, invert
from brains import IMAGE_TASKS, draw_image_task, read_heads, restore
from hippocampus import CLASSES, Cohort
from kept_rows import KeptRows, Row
from record import RESULTS, record
from scipy import ndimage
from torch import Tensor

import medverse_nb as mv
from medverse_nb.classes import ClassSpec
from medverse_nb.errors import ContextError
from medverse_nb.evaluation.baselines import (
    Baseline,
    BestPair,
    Learner,
    MeanLabel,
    Registration,
    ThisNetwork,
    Trained,
    Trial,
)
from medverse_nb.evaluation.side_by_side import run_methods
from medverse_nb.evaluation.similarity import Descriptor, choose, feature_descriptor
from medverse_nb.inference.recipe import Settings
from medverse_nb.model.network import ICLNetwork
from medverse_nb.pair import ContextPair
from medverse_nb.tuning import tune_on_pairs

SPECS = (ClassSpec(1, "hippocampus", CLASSES["hippocampus"], (230, 159, 0)),)
SIZES = (1, 4, 8, 16)
POOL, CHOSEN, RANDOM_DRAWS, INVERTED_SIZE = 40, (1, 4, 8), 3, 4
ADVERSARIAL_CASES, ADVERSARIAL_PAIRS, ADVERSARIAL_SECONDS = 10, 8, 60
REGISTERED_CASES, REGISTERED_PAIRS = 10, 4
SUBJECTS = 4
AS_IT_IS = "as it is"
UNET = Trained("U-Net", "unet")


@dataclass(frozen=True)
class Tuned:
    """In-context tuning of a network, as a method that learns once."""

    name: str
    network: ICLNetwork
    settings: Settings

    def fit(
        self,
        pairs: Sequence[ContextPair],
        classes: tuple[ClassSpec, ...],
        seconds: float,
        *,
        seed: int = 0,
        check: Callable[[], None] | None = None,
    ) -> ThisNetwork:
        """Tune as `session.tune` does; the answers are by the copy that held-out pairs prefer."""
        wanted = [spec.values for spec in classes]
        told = (lambda *_: check()) if check else None
        tuning = tune_on_pairs(
            self.network, pairs, wanted, "box", self.settings, seconds, seed, told
        )
        print(tuning, flush=True)
        return ThisNetwork(self.name, tuning.tuned.network, self.settings)


@dataclass(frozen=True)
class Bench:
    """What all parts share: the model, the cases, and where rows are kept."""

    model: str
    cohort: Cohort
    label_maps: Path
    work: Path
    budget: float
    sizes: Sequence[int]
    draws: int
    left_out: Sequence[str] = ()

    @cached_property
    def session(self) -> mv.ICLSession:
        """The model without pairs."""
        return mv.ICLSession(self.model)

    @cached_property
    def ours(self) -> ThisNetwork:
        """The model as a method."""
        settings = Settings(precision=self.session.precision)
        return ThisNetwork(self.model, self.session.network, settings)

    @cached_property
    def registered(self) -> ThisNetwork:
        """The model, shown pairs that were registered to the target first."""
        return replace(self.ours, name=f"{self.model}, registered pairs", register="deformable")

    @cached_property
    def tuned(self) -> Tuned:
        """The model, tuned on the pairs first."""
        return Tuned(f"{self.model}, tuned", self.ours.network, self.ours.settings)

    def pairs(self, size: int, seed: int) -> list[ContextPair]:
        """Return the first pairs of a shuffled pool: sizes are nested."""
        return list(self.cohort.open_session(self.model, size, seed).context.pairs)

    def kept(self, part: str, **asked: Any) -> KeptRows:
        """Open the rows of a part; they depend on the weights, the cases, and what is asked."""
        question = {"weights": self.session.weights_hash, "cases": list(self.cohort.cases), **asked}
        return KeptRows(self.work / f"{part}.jsonl", question)


def answer_cases(
    kept: KeptRows,
    about: Row,
    method: Baseline | Learner,
    pairs: Sequence[ContextPair],
    cohort: Cohort,
    seconds: float,
) -> None:
    """Answer the cases that are not kept yet, and score them.

    What learns does so once, and its answers are kept together: a run that was ended among them
    trains anew, so that no context mixes two trainings.

    Parameters
    ----------
    about : what tells these rows from others, such as the context's size.
    """
    known = {"method": method.name, **about}
    missing = [case for case in cohort.cases if not kept.has(case=case, **known)]
    if not missing:
        return

    def row(answering: Baseline, once: float, case: str) -> Row:
        target, truth = cohort.read(case)
        mask, spent = ask(answering, Trial(target, pairs, SPECS, seconds=seconds))
        figure = round(mv.metrics.dice(mask, truth), 4)
        return {**known, "case": case, "dice": figure, "seconds": spent, "once_seconds": once}

    if not isinstance(method, Learner):
        for case in missing:
            kept.add([row(method, 0.0, case)])
        return
    started = time.perf_counter()
    try:
        learnt = method.fit(pairs, SPECS, seconds)
    except ContextError as error:
        kept.add([{**known, "case": case, "error": str(error)} for case in missing])
        return
    once = round(time.perf_counter() - started, 2)
    kept.add([row(learnt, once, case) for case in missing])


def ask(method: Baseline, trial: Trial) -> tuple[np.ndarray, float]:
    """Return the mask of the one class and the seconds.

    Raises
    ------
    SystemExit : the method failed; what is kept stays kept.
    """
    (run,) = run_methods(trial, [method])
    if run.mask is None:
        raise SystemExit(f"{method.name}: {run.error}")
    return run.mask > 0, round(run.seconds, 3)


def compare(rows: Sequence[Row], by: str, reference: str, score: str = "dice") -> dict[str, Row]:
    """Return the mean score of each method and its difference from one of them, in pairs.

    Draws of a case are averaged first. `error` is the standard error of the mean difference
    over the cases, None for a single one.
    """
    table = pd.DataFrame(rows).pivot_table(index="case", columns=by, values=score, sort=False)
    difference = table.sub(table[reference], axis=0)
    errors = difference.std() / np.sqrt(difference.count())
    return {
        name: {
            score: round(float(table[name].mean()), 4),
            "difference": round(float(difference[name].mean()), 4),
            "error": None if np.isnan(errors[name]) else round(float(errors[name]), 4),
        }
        for name in table
    }


def dice(bench: Bench) -> Row:
    """Score all methods on the same cases and contexts."""
    kept = bench.kept("dice", seconds=bench.budget)
    methods: list[Baseline | Learner] = [
        bench.ours,
        bench.registered,
        MeanLabel(),
        BestPair(),
        Registration(),
        bench.tuned,
        UNET,
        Trained("Swin UNETR", "swin_unetr"),
    ]
    methods = [method for method in methods if method.name not in bench.left_out]
    for draw in range(bench.draws):
        for size in bench.sizes:
            pairs = bench.pairs(size, draw)
            for method in methods:
                about = {"context_size": size, "draw": draw}
                answer_cases(kept, about, method, pairs, bench.cohort, bench.budget)
    names = {method.name for method in methods}
    rows = [row for row in kept.rows if row["method"] in names]
    sizes = {str(size): dice_at(rows, size, bench) for size in bench.sizes}
    return {"budget": bench.budget, "draws": bench.draws, "sizes": sizes}


def dice_at(rows: Sequence[Row], size: int, bench: Bench) -> dict[str, Row]:
    """Return the figures of each method at one context size, or why it has none."""
    asked = [r for r in rows if r["context_size"] == size and r["draw"] < bench.draws]
    scored = [row for row in asked if "error" not in row]
    figures = compare(scored, "method", bench.model)
    frame = pd.DataFrame(scored).groupby("method")[["seconds", "once_seconds"]].median()
    for name, row in figures.items():
        row |= {key: round(float(value), 2) for key, value in frame.loc[name].items()}
    failed = {row["method"]: {"failed": row["error"]} for row in asked if "error" in row}
    return figures | failed


def registration(bench: Bench) -> Row:
    """Score the stages of the registration, with other pairs for each case."""
    kept = bench.kept("registration")
    stages = [MeanLabel(), Registration("affine", deform=False), Registration("affine and demons")]
    cases = bench.cohort.cases[:REGISTERED_CASES]
    for number, case in enumerate(cases):
        alone = Cohort(bench.cohort.folder, [case], bench.cohort.pool)
        pairs = bench.pairs(REGISTERED_PAIRS, seed=100 + number)
        for stage in stages:
            answer_cases(kept, {}, stage, pairs, alone, bench.budget)
    figures = compare(kept.rows, "method", "affine")
    seconds = pd.DataFrame(kept.rows).groupby("method")["seconds"].median() / REGISTERED_PAIRS
    for name, row in figures.items():
        row["seconds_a_pair"] = round(float(seconds[name]), 2)
    return {"cases": len(cases), "pairs": REGISTERED_PAIRS, "rows": figures}


def retrieval(bench: Bench) -> Row:
    """Score the same network with pairs chosen from a pool, by what they have in common."""
    kept = bench.kept("retrieval", pool=POOL)
    pool = bench.pairs(POOL, seed=0)
    own = feature_descriptor(bench.ours.network)
    choices: dict[str, str | Descriptor] = {n: n for n in ("histogram", "image", "edges")}
    asked = [("random", draw, "random") for draw in range(RANDOM_DRAWS)]
    asked += [(name, 0, by) for name, by in [*choices.items(), (own.name, own)]]
    for number, case in enumerate(bench.cohort.cases):
        target, truth = bench.cohort.read(case)
        for seen, scan, sizes in (
            (AS_IT_IS, target, CHOSEN),
            ("inverted", invert(target, truth)[0], (INVERTED_SIZE,)),
        ):
            for name, draw, by in asked:
                about = {"case": case, "target": seen, "choice": name, "draw": draw}
                if kept.has(**about):
                    continue
                order = choose(scan, pool, max(sizes), by, seed=100 * number + draw)
                group = []
                for size in sizes:
                    mask, _ = ask(bench.ours, Trial(scan, order[:size], SPECS))
                    figure = round(mv.metrics.dice(mask, truth), 4)
                    group.append({**about, "context_size": size, "dice": figure})
                kept.add(group)

    def figures(seen: str, size: int) -> dict[str, Row]:
        rows = [r for r in kept.rows if (r["target"], r["context_size"]) == (seen, size)]
        return compare(rows, "choice", "random")

    return {
        "pool": POOL,
        "random_draws": RANDOM_DRAWS,
        "sizes": {str(size): figures(AS_IT_IS, size) for size in CHOSEN},
        "inverted_size": INVERTED_SIZE,
        "inverted": figures("inverted", INVERTED_SIZE),
    }


def adversarial(bench: Bench) -> Row:
    """Score contexts and targets that are wrong on purpose."""
    kept = bench.kept("adversarial", seconds=ADVERSARIAL_SECONDS)
    cases = bench.cohort.cases[:ADVERSARIAL_CASES]
    pairs = bench.pairs(ADVERSARIAL_PAIRS, seed=0)
    unchanged = {AS_IT_IS: lambda target, truth: (target, truth)}
    contexts = {AS_IT_IS: pairs} | {name: change(pairs) for name, change in CONTEXTS.items()}

    def score(method: Baseline, situation: str, case: str) -> Row:
        target, truth = bench.cohort.read(case)
        scan, known = (unchanged | TARGETS).get(situation, unchanged[AS_IT_IS])(target, truth)
        mask, _ = ask(method, Trial(scan, contexts.get(situation, pairs), SPECS))
        return {
            "situation": situation,
            "method": method.name,
            "case": case,
            "dice": round(mv.metrics.dice(mask, known), 4),
            "volume": round(float(mask.sum() / truth.sum()), 4),
        }

    everything, targets = (*contexts, *TARGETS), (AS_IT_IS, *TARGETS)
    for method, situations in (
        (bench.ours, everything),
        (MeanLabel(), everything),
        (Registration(), targets),
    ):
        for situation in situations:
            for case in cases:
                if not kept.has(situation=situation, method=method.name, case=case):
                    kept.add([score(method, situation, case)])
    for learner in (bench.tuned, UNET):  # of right pairs: wrong ones would need a training each
        if not kept.has(method=learner.name):
            learnt = learner.fit(pairs, SPECS, ADVERSARIAL_SECONDS)
            kept.add([score(learnt, name, case) for name in targets for case in cases])
    means = pd.DataFrame(kept.rows).groupby(["situation", "method"])[["dice", "volume"]].mean()
    rows: dict[str, Row] = {name: {} for name in everything}
    for (situation, method), row in means.round(4).iterrows():
        rows[situation][method] = row.to_dict()
    return {
        "cases": len(cases),
        "pairs": ADVERSARIAL_PAIRS,
        "seconds": ADVERSARIAL_SECONDS,
        "rows": rows,
    }


def enhance(bench: Bench) -> Row:
    """Restore images beside a median filter, from a context of another task, and clean ones."""
    kept = bench.kept("enhance")
    heads = read_heads(bench.label_maps)
    names = list(IMAGE_TASKS)
    for task, other in zip(names, names[1:] + names[:1], strict=True):
        for subject in range(SUBJECTS):
            if kept.has(task=task, subject=subject):
                continue
            clean, spoilt = draw_image_task(heads, task, subject)
            shown, target = (clean[1:], spoilt[1:]), (clean[0], spoilt[0])
            # The same subjects: only how they were spoilt differs.
            wrong = tuple(images[1:] for images in draw_image_task(heads, other, subject))
            right = restore(bench.model, shown, target)
            figures = {
                "spoilt": right["target_psnr"],
                "restored": right["psnr"],
                "median_filter": psnr_of_median(*target),
                "wrong_context": restore(bench.model, wrong, target)["psnr"],
                "clean_target": restore(bench.model, shown, (clean[0], clean[0]))["psnr"],
            }
            rounded = {key: round(float(value), 2) for key, value in figures.items()}
            kept.add([{"task": task, "subject": subject, **rounded}])
    means = pd.DataFrame(kept.rows).drop(columns="subject").groupby("task").mean().round(2)
    return {"subjects": SUBJECTS, "rows": {name: means.loc[name].to_dict() for name in names}}


def psnr_of_median(clean: Tensor, spoilt: Tensor) -> float:
    """Return the PSNR in dB of a 3 x 3 x 3 median filter."""
    return mv.metrics.psnr(ndimage.median_filter(spoilt.numpy(), 3), clean.numpy())


PARTS: dict[str, Callable[[Bench], Row]] = {
    "registration": registration,
    "adversarial": adversarial,
    "enhance": enhance,
    "retrieval": retrieval,
    "dice": dice,
}


def main() -> None:
    """Measure the parts and record each as soon as it is whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--parts", nargs="*", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--model", default="medverse-tiny")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[*SIZES])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--budget", type=float, default=300, help="seconds of learning a context")
    parser.add_argument("--leave-out", nargs="*", default=[], help="methods of dice, by name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    cohort = Cohort.split(args.folder, args.cases)
    bench = Bench(
        args.model, cohort, args.label_maps, args.work, args.budget, args.sizes, args.draws,
        args.leave_out,
    )  # fmt: skip
    for part in args.parts:
        figures = PARTS[part](bench)
        about = {"model": args.model, "cases": args.cases}
        record(f"evidence_{part}", {**about, **figures}, args.results)


if __name__ == "__main__":
    main()
