"""Evaluate a network on a cohort: every test case from every context, resumable row by row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from numpy.typing import NDArray

from ..checks import VolumeWarning
from ..classes import Classes, ClassTable
from ..errors import MedverseError, OutputError
from ..files import check_writable
from ..geometry import Align
from ..inference.estimate import check_memory
from ..inference.recipe import Settings, choose_recipe
from ..io import Source
from ..model.network import ICLNetwork
from ..pair import ContextPair, Task, make_pair
from ..pair_folder import find_class_table, find_pairs
from .answers import OnPrediction, predictor
from .protocol import DRAWS, Context, Draws, draw_orders, split_cohort
from .result_folder import ASKED, Key, ResultFolder, Row
from .scorers import TOLERANCE_MM, Asked, Measures, Scorer, scorer_of
from .summary import summarise, write_summary

PACKAGES = ("medverse_nb", "torch", "monai", "numpy")
ANY_SHAPE = (1, 1, 1)  # the window of a run, and so its memory, does not depend on the volume


@dataclass(frozen=True)
class Cohort:
    """Labelled cases by name, image and label each, and the names of their classes."""

    cases: Mapping[str, tuple[Source, Source]]
    table: ClassTable = field(default_factory=ClassTable)

    @classmethod
    def from_folder(cls, images: str | Path, labels: str | Path) -> Cohort:
        """Find the cases of an nnU-Net folder; class names come from its `dataset.json`.

        Raises
        ------
        ContextError : no folder, or an image or label alone.
        """
        return cls(find_pairs(images, labels), find_class_table(labels, images) or ClassTable())


class Evaluation(NamedTuple):
    """What came out.

    rows : a line a case, class and context, as `docs/evaluation.md` tells.
    summary : mean and spread over the draws, as `summarise` tells.
    left_out : cases that could not serve as context, and why.
    measures : the columns that have the scores.
    """

    rows: pd.DataFrame
    summary: pd.DataFrame
    left_out: dict[str, str]
    measures: Measures


def evaluate(
    network: ICLNetwork,
    cohort: Cohort,
    out: str | Path,
    *,
    weights_sha256: str,
    task: Task = "segmentation",
    classes: Classes = None,
    test: float = 0.2,
    sizes: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    tolerance_mm: float = TOLERANCE_MM,
    align: Align = "box",
    settings: Settings | None = None,
    on_progress: OnPrediction | None = None,
) -> Evaluation:
    """Predict and score the test cases from contexts of several sizes and draws.

    A case that cannot be read or predicted gets rows with an `error` and the rest go on. The
    same question to the same folder computes only what is missing.

    Parameters
    ----------
    out : folder for `asked.json`, `rows.csv`, `summary.csv` and `curve.png`, and `rows.parquet`
        where pyarrow or fastparquet is installed; written by one process at a time.
    weights_sha256 : of the network, told in every row.
    task : "segmentation", or "image", where labels are images.
    classes : as in `ICLSession.predict`; None for every value in the meta-context.
    test, seed : as in `split_cohort`.
    sizes, draws : as in `draw_orders`.
    tolerance_mm : of the surface Dice.
    on_progress : called with what is being done, how many are, and of how many: first cases
        are read, then predictions made.

    Raises
    ------
    InputError : a folder of another question, or that another process writes to; a setting that
        cannot be; a window that does not fit into memory.
    ContextError : too few cases, no foreground, or a class that no pair has.
    OutputError : the folder cannot be written.

    Source: Neuroverse3D 4.4 and C.2, Medverse Figure 6: Dice and PSNR by context size, over draws of
    the context. Surface Dice, HD95 and SSIM are added here.
    """
    out, settings = Path(out), settings or Settings()
    check_writable(out / ASKED)
    check_memory(network, choose_recipe(network.config, ANY_SHAPE, settings), settings)
    scorer = scorer_of(task, align=align, tolerance_mm=tolerance_mm)
    split = split_cohort([*cohort.cases], test, seed=seed)
    tell = on_progress or (lambda _what, _done, _count: None)
    facts = _read_facts(cohort, task, tell)
    left_out = {name: facts[name].error for name in split.meta_context if facts[name].error}
    usable = [name for name in split.meta_context if name not in left_out]
    contexts = draw_orders(usable, sizes=sizes, draws=draws, seed=seed)
    found = {value for name in usable for value in facts[name].values}
    questions = scorer.questions(classes, found, cohort.table)
    asked = {
        **scorer.to_dict(),
        "cases": {name: facts[name].hash for name in sorted(facts)},
        "test": split.test,
        "sizes": contexts.sizes,
        "draws": draws,
        "seed": seed,
        "classes": questions,
        "align": align,
        "weights_sha256": weights_sha256,
        "settings": asdict(settings),
    }
    common = {
        "weights_sha256": weights_sha256,
        "seed": seed,
        "versions": "; ".join(f"{package} {version(package)}" for package in PACKAGES),
    }
    order = [
        Key(case, draw, size)
        for draw in range(draws)
        for case in split.test
        for size in contexts.sizes
    ]
    runner = Runner(network, cohort, contexts, questions, scorer, align, settings)
    names = [one.name for one in questions]
    with ResultFolder(out, asked, names, scorer.measures.columns) as folder:
        _fill(folder, runner, order, common, tell)
        table = folder.table(order)
        folder.write_parquet(table)
        summary = summarise(table, scorer.measures)
        write_summary(summary, out, scorer.measures)
    return Evaluation(table, summary, left_out, scorer.measures)


def _fill(
    folder: ResultFolder, runner: Runner, order: Sequence[Key], common: Row, tell: OnPrediction
) -> None:
    """Predict and score what the folder has no rows of."""
    for done, key in enumerate(order):
        tell(f"{key.case}, {key.size} pairs", done, len(order))
        if key in folder.done:
            continue
        rows = runner.rows(key.case, runner.contexts.context(key.draw, key.size))
        folder.append([{**row, **common} for row in rows])
    tell("", len(order), len(order))


class Facts(NamedTuple):
    """What is known of a case before anything runs; `error` where it cannot be used."""

    hash: str
    values: tuple[int, ...]
    error: str


def _read_facts(cohort: Cohort, task: Task, tell: OnPrediction) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    for name in cohort.cases:
        tell(f"reading {name}", len(facts), len(cohort.cases))
        facts[name] = _facts_of(name, cohort, task)
    return facts


def _facts_of(name: str, cohort: Cohort, task: Task) -> Facts:
    try:
        pair = make_pair(*cohort.cases[name], name=name, task=task)
    except OutputError:
        raise  # no scratch space: the next case would be lost too
    except MedverseError as error:
        return Facts("cannot be read", (), str(error))
    return Facts(pair.hash, pair.values, "")


@dataclass
class Runner:
    """Predicts a case from a context and has it scored; keeps the pairs of one draw and case."""

    network: ICLNetwork
    cohort: Cohort
    contexts: Draws
    questions: tuple[Asked, ...]
    scorer: Scorer
    align: Align
    settings: Settings
    kept: dict[str, ContextPair] = field(default_factory=dict)

    def rows(self, case: str, context: Context) -> list[Row]:
        """Return a row a question: scores, or what was wrong."""
        common: Row = {
            "case": case,
            "size": context.size,
            "draw": context.draw,
            "context": ";".join(context.names),
        }
        try:
            scored = list(self._scored(case, context))
        except OutputError:
            raise
        except MedverseError as error:
            message = " ".join(str(error).split())
            return [{**common, "class": one.name, "error": message} for one in self.questions]
        return [{**common, **row} for row in scored]

    def _scored(self, case: str, context: Context) -> Iterator[Row]:
        pairs, target = self._read(case, context)
        shown = {one: sum(one.shown_by(pair) for pair in pairs) for one in self.questions}
        started = time.perf_counter()
        answers = self._predict(target, pairs, [one for one in self.questions if shown[one]])
        seconds = round(time.perf_counter() - started, 3)
        scored = self.scorer.score(answers, target, pairs) if answers else {}
        changes = [f"target: {change}" for change in target.changes]
        changes += [f"context {pair.name}: {change}" for pair in pairs for change in pair.changes]
        for one in self.questions:
            if one not in scored:
                error = f"none of the {len(pairs)} pairs has this class"
                yield {"class": one.name, "error": error}
                continue
            scores, special = scored[one]
            without = len(pairs) - shown[one]
            lack = [f"{without} of {len(pairs)} pairs without this class"] if without else []
            note = "; ".join([*changes, *lack, *special])
            yield {"class": one.name, "seconds": seconds, **scores, "note": note}

    def _read(self, case: str, context: Context) -> tuple[list[ContextPair], ContextPair]:
        """Return the context's pairs and the target; those read before are kept."""
        largest = self.contexts.context(context.draw, self.contexts.sizes[-1])
        still = {case, *largest.names}
        self.kept = {name: pair for name, pair in self.kept.items() if name in still}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VolumeWarning)  # told before, and in the notes
            for name in {case, *context.names} - set(self.kept):
                source = self.cohort.cases[name]
                self.kept[name] = make_pair(*source, name=name, task=self.scorer.task)
        return [self.kept[name] for name in context.names], self.kept[case]

    def _predict(
        self, target: ContextPair, pairs: Sequence[ContextPair], questions: Sequence[Asked]
    ) -> dict[Asked, NDArray[Any]]:
        """Return the network's answer (X, Y, Z) to each question, in [0, 1]."""
        if not questions:
            return {}
        predict = predictor(
            self.network,
            target.image,
            [one.values for one in questions],
            align=self.align,
            settings=self.settings,
        )
        return dict(zip(questions, predict(pairs), strict=True))
