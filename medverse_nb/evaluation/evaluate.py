"""Evaluate a network on a cohort: every test case from every context, resumable row by row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..checks import VolumeWarning
from ..classes import Classes, ClassSpec, ClassTable, resolve_classes
from ..context import ContextPair, find_class_table, find_pairs, make_pair
from ..errors import InputError, MedverseError, OutputError
from ..files import check_writable
from ..geometry import Align
from ..inference.recipe import Settings
from ..io import Source
from ..model.network import ICLNetwork
from ..placement import CanonicalVolume
from ..volume import grid_of, values_of
from .answers import Answer, OnPrediction, predictor
from .baselines import mean_label
from .metrics import dice, hd95, surface_dice
from .protocol import DRAWS, Context, Draws, draw_orders, split_cohort
from .result_folder import ASKED, Key, ResultFolder, Row
from .summary import summarise, write_summary

TOLERANCE_MM = 1.0
PACKAGES = ("medverse_nb", "torch", "monai", "numpy")


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
    """

    rows: pd.DataFrame
    summary: pd.DataFrame
    left_out: dict[str, str]


def evaluate(
    network: ICLNetwork,
    cohort: Cohort,
    out: str | Path,
    *,
    weights_sha256: str,
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
    out : folder for `asked.json`, `rows.csv`, `summary.csv` and `curve.png`.
    weights_sha256 : of the network, told in every row.
    classes : as in `ICLSession.predict`; None for every value in the meta-context.
    test, seed : as in `split_cohort`.
    sizes, draws : as in `draw_orders`.
    tolerance_mm : of the surface Dice.
    on_progress : called with what is being predicted, predictions done, and of how many.

    Raises
    ------
    InputError : a folder of another question, or a setting that cannot be.
    ContextError : too few cases, no foreground, or a class that no pair has.
    OutputError : the folder cannot be written.

    Source: Neuroverse3D, evaluation over context sizes and random draws of the context.
    """
    out, settings = Path(out), settings or Settings()
    check_writable(out / ASKED)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
    split = split_cohort([*cohort.cases], test, seed=seed)
    facts = {name: _facts_of(name, cohort) for name in cohort.cases}
    left_out = {name: facts[name].error for name in split.meta_context if facts[name].error}
    usable = [name for name in split.meta_context if name not in left_out]
    contexts = draw_orders(usable, sizes=sizes, draws=draws, seed=seed)
    found = {value for name in usable for value in facts[name].values}
    specs = resolve_classes(classes, found, cohort.table)
    asked = {
        "cases": {name: facts[name].hash for name in sorted(facts)},
        "test": split.test,
        "sizes": contexts.sizes,
        "draws": draws,
        "seed": seed,
        "classes": [spec.to_dict() for spec in specs],
        "tolerance_mm": tolerance_mm,
        "align": align,
        "weights_sha256": weights_sha256,
        "settings": asdict(settings),
    }
    folder = ResultFolder(out, asked, [spec.name for spec in specs])
    scorer = Scorer(network, cohort, contexts, tuple(specs), align, settings, tolerance_mm)
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
    tell = on_progress or (lambda _what, _done, _count: None)
    for done, key in enumerate(order):
        tell(f"{key.case}, {key.size} pairs", done, len(order))
        if key in folder.done:
            continue
        rows = scorer.rows(key.case, contexts.context(key.draw, key.size))
        folder.append([{**row, **common} for row in rows])
    tell("", len(order), len(order))
    table = folder.table(order)
    summary = summarise(table)
    write_summary(summary, out)
    return Evaluation(table, summary, left_out)


class Facts(NamedTuple):
    """What is known of a case before anything runs; `error` where it cannot be used."""

    hash: str
    values: tuple[int, ...]
    error: str


def _facts_of(name: str, cohort: Cohort) -> Facts:
    try:
        pair = make_pair(*cohort.cases[name], name=name)
    except OutputError:
        raise  # no scratch space: the next case would be lost too
    except MedverseError as error:
        return Facts("cannot be read", (), str(error))
    return Facts(pair.hash, pair.values, "")


@dataclass
class Scorer:
    """Predicts a case from a context and scores it; keeps the pairs of one draw and case."""

    network: ICLNetwork
    cohort: Cohort
    contexts: Draws
    classes: tuple[ClassSpec, ...]
    align: Align
    settings: Settings
    tolerance_mm: float
    kept: dict[str, ContextPair] = field(default_factory=dict)

    def rows(self, case: str, context: Context) -> list[Row]:
        """Return a row a class: scores, or what was wrong."""
        common: Row = {
            "case": case,
            "size": context.size,
            "draw": context.draw,
            "context": ";".join(context.names),
        }
        try:
            scored = list(self._scores(case, context))
        except OutputError:
            raise
        except MedverseError as error:
            message = " ".join(str(error).split())
            return [{**common, "class": spec.name, "error": message} for spec in self.classes]
        return [{**common, **row} for row in scored]

    def _scores(self, case: str, context: Context) -> Iterator[Row]:
        pairs, target = self._read(case, context)
        held = {
            spec: sum(bool({*pair.values} & {*spec.values}) for pair in pairs)
            for spec in self.classes
        }
        present = [spec for spec in self.classes if held[spec]]
        started = time.perf_counter()
        masks = self._predict(target, pairs, present)
        seconds = round(time.perf_counter() - started, 3)
        changes = [f"target: {change}" for change in target.changes]
        changes += [f"context {pair.name}: {change}" for pair in pairs for change in pair.changes]
        for spec in self.classes:
            if not held[spec]:
                error = f"none of the {len(pairs)} pairs has this class"
                yield {"class": spec.name, "error": error}
                continue
            notes = [*changes]
            if without := len(pairs) - held[spec]:
                notes.append(f"{without} of {len(pairs)} pairs without this class")
            yield {
                "class": spec.name,
                "seconds": seconds,
                **self._compare(masks[spec.number], spec, target, pairs, notes),
                "note": "; ".join(notes),
            }

    def _read(self, case: str, context: Context) -> tuple[list[ContextPair], ContextPair]:
        """Return the context's pairs and the target; those read before are kept."""
        largest = self.contexts.context(context.draw, self.contexts.sizes[-1])
        still = {case, *largest.names}
        self.kept = {name: pair for name, pair in self.kept.items() if name in still}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VolumeWarning)  # told before, and in the notes
            for name in {case, *context.names} - set(self.kept):
                self.kept[name] = make_pair(*self.cohort.cases[name], name=name)
        return [self.kept[name] for name in context.names], self.kept[case]

    def _predict(
        self, target: ContextPair, pairs: Sequence[ContextPair], classes: Sequence[ClassSpec]
    ) -> dict[int, NDArray[np.bool_]]:
        """Return the mask of each class by its number."""
        if not classes:
            return {}
        predict = predictor(
            self.network,
            target.image,
            [spec.values for spec in classes],
            align=self.align,
            settings=self.settings,
        )
        masks = Answer.of(predict(pairs), "segmentation").masks
        return {spec.number: mask for spec, mask in zip(classes, masks, strict=True)}

    def _compare(
        self,
        mask: NDArray[np.bool_],
        spec: ClassSpec,
        target: ContextPair,
        pairs: Sequence[ContextPair],
        notes: list[str],
    ) -> Row:
        """Return the scores of one mask; what makes them special is added to the notes."""
        truth = np.isin(values_of(target.label), spec.values)
        spacing = grid_of(target.image).spacing_mm
        canonical = CanonicalVolume.of(target.image)
        mean = mean_label(pairs, canonical.grid, self.align, spec.values) > 0.5
        empty = [name for name, a in (("truth", truth), ("prediction", mask)) if not a.any()]
        if empty:
            notes.append(f"no foreground in {' and '.join(empty)}")
        return {
            "dice": dice(mask, truth),
            "surface_dice": surface_dice(
                mask, truth, tolerance_mm=self.tolerance_mm, spacing_mm=spacing
            ),
            "hd95_mm": hd95(mask, truth, spacing_mm=spacing),
            "mean_label_dice": dice(canonical.reorientation.undo(mean), truth),
        }
