"""What an evaluation asks of a case and how it scores the answer: one scorer a task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..classes import Classes, ClassTable, resolve_classes
from ..errors import InputError
from ..geometry import Align
from ..inference.inputs import Values
from ..intensity import quantile_scale
from ..pair import ContextPair, Task
from ..placement import CanonicalVolume
from ..volume import grid_of, values_of
from .answers import Answer
from .baselines import mean_label
from .metrics import SSIM_WINDOW, dice, hd95, psnr, ssim, surface_dice

TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Measures:
    """The scores of a task, as columns of a table.

    headings : each column, as people call it.
    drawn, baseline : the columns drawn against context size; the second is what to beat.
    """

    headings: Mapping[str, str]
    drawn: str
    baseline: str

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.headings)


class Asked(NamedTuple):
    """One question: a class by its label values, or an image (`values` None)."""

    name: str
    values: Values

    def shown_by(self, pair: ContextPair) -> bool:
        """Whether a pair is an example of it that is not empty."""
        return self.values is None or bool({*self.values} & {*pair.values})


class Scored(NamedTuple):
    """The scores of one answer, by column, and what makes them special."""

    scores: dict[str, float]
    notes: list[str]


class Scorer(Protocol):
    """Asks and scores for one task."""

    task: ClassVar[Task]
    measures: ClassVar[Measures]

    def questions(
        self, classes: Classes, found: Iterable[int], table: ClassTable, /
    ) -> tuple[Asked, ...]:
        """Return what is asked of every case.

        Parameters
        ----------
        classes : as in `ICLSession.predict`.
        found, table : label values in the meta-context, and their names.

        Raises
        ------
        InputError, ContextError : a request that does not suit the task or the labels.
        """

    def score(
        self,
        answers: Mapping[Asked, NDArray[Any]],
        case: ContextPair,
        pairs: Sequence[ContextPair],
        /,
    ) -> dict[Asked, Scored]:
        """Return the scores of a case's answers, on its own grid.

        Parameters
        ----------
        answers : (X, Y, Z) each, in [0, 1], as `PredictFrom` describes them.
        pairs : that they came from.

        Raises
        ------
        InputError : an answer or truth that has no score.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the task and what its scores depend on."""


@dataclass(frozen=True)
class SegmentationScorer:
    """Masks, by overlap and by surface, beside the mean label of the same pairs."""

    align: Align = "box"
    tolerance_mm: float = TOLERANCE_MM

    task: ClassVar[Task] = "segmentation"
    measures: ClassVar[Measures] = Measures(
        {
            "dice": "Dice",
            "surface_dice": "surface Dice",
            "hd95_mm": "HD95 mm",
            "mean_label_dice": "mean label",
        },
        drawn="dice",
        baseline="mean_label_dice",
    )

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise InputError(f"tolerance_mm must be 0 or more, got {self.tolerance_mm}")

    def questions(
        self, classes: Classes, found: Iterable[int], table: ClassTable, /
    ) -> tuple[Asked, ...]:
        specs = resolve_classes(classes, found, table)
        return tuple(Asked(spec.name, spec.values) for spec in specs)

    def score(
        self,
        answers: Mapping[Asked, NDArray[Any]],
        case: ContextPair,
        pairs: Sequence[ContextPair],
        /,
    ) -> dict[Asked, Scored]:
        masks = Answer.of(np.stack([*answers.values()]), self.task).masks
        return {
            asked: self._compare(mask, asked, case, pairs)
            for asked, mask in zip(answers, masks, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task, "tolerance_mm": self.tolerance_mm}

    def _compare(
        self, mask: NDArray[Any], asked: Asked, case: ContextPair, pairs: Sequence[ContextPair]
    ) -> Scored:
        truth = np.isin(values_of(case.label), asked.values or ())
        spacing = grid_of(case.image).spacing_mm
        target = CanonicalVolume.of(case.image)
        mean = mean_label(pairs, target.grid, self.align, asked.values) > 0.5
        scores = {
            "dice": dice(mask, truth),
            "surface_dice": surface_dice(
                mask, truth, tolerance_mm=self.tolerance_mm, spacing_mm=spacing
            ),
            "hd95_mm": hd95(mask, truth, spacing_mm=spacing),
            "mean_label_dice": dice(target.reorientation.undo(mean), truth),
        }
        both = {"truth": truth, "prediction": mask}
        empty = [name for name, one in both.items() if not one.any()]
        return Scored(scores, [f"no foreground in {' and '.join(empty)}"] if empty else [])


@dataclass(frozen=True)
class ImageScorer:
    """Images, beside the target as it came in, each scaled to [0, 1] by its own quantiles.

    So that units, which differ from scan to scan, do not count: a session's `score`, in units,
    has other figures. Where a volume is thinner than SSIM's window, the largest window that fits
    is used and noted.

    Source: both papers, data preprocessing; that they score there is an assumption.
    """

    task: ClassVar[Task] = "image"
    measures: ClassVar[Measures] = Measures(
        {
            "psnr": "PSNR dB",
            "ssim": "SSIM",
            "target_psnr": "target's PSNR dB",
            "target_ssim": "target's SSIM",
        },
        drawn="psnr",
        baseline="target_psnr",
    )

    def questions(self, classes: Classes, *_: object) -> tuple[Asked, ...]:
        if classes is not None:
            raise InputError('classes are for task="segmentation"; this one has images for labels')
        return (Asked("image", None),)

    def score(
        self, answers: Mapping[Asked, NDArray[Any]], case: ContextPair, *_: object
    ) -> dict[Asked, Scored]:
        ((asked, answer),) = answers.items()
        if np.ptp(values_of(case.label)) == 0:
            raise InputError("the truth is constant: it has no scale, and no score")
        truth, target = _scaled(case.label), _scaled(case.image)
        shortest = min(truth.shape)
        window = min(SSIM_WINDOW, shortest - 1 + shortest % 2)
        thin = [f"SSIM in windows of {window} voxels: thin volume"] * (window < SSIM_WINDOW)
        scores = {
            "psnr": psnr(answer, truth, 1),
            "ssim": ssim(answer, truth, 1, window=window),
            "target_psnr": psnr(target, truth, 1),
            "target_ssim": ssim(target, truth, 1, window=window),
        }
        return {asked: Scored(scores, thin)}

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task}


def _scaled(volume: xr.DataArray) -> NDArray[np.float32]:
    values = values_of(volume)
    return quantile_scale(values).apply(values)


def scorer_of(task: Task, *, align: Align, tolerance_mm: float) -> Scorer:
    """Return the scorer of a task.

    Raises
    ------
    InputError : no such task, or a tolerance below 0.
    """
    if task not in ("segmentation", "image"):
        raise InputError(f'task={task!r} is not "segmentation" or "image"')
    return ImageScorer() if task == "image" else SegmentationScorer(align, tolerance_mm)
