"""What a session asks of one scan: from the scan as it was read to the answer on its grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .answer import make_image, make_probability
from .classes import ClassSpec
from .context import ContextSet
from .evaluation.scoring import score_image, score_mask
from .geometry import Align
from .inference.autoregressive import Step
from .inference.inputs import PairInputs, Values
from .intensity import IntensityScale, quantile_scale
from .io import Source
from .pair import Task, content_hash, read_label
from .placement import CanonicalVolume
from .prediction import Prediction, PredictionStep, recorded_steps
from .regions import View
from .registration import Kind, register_pairs
from .views import mapped, members, turned
from .volume import values_of


@dataclass(frozen=True)
class Question:
    """A scan, what is wanted of it, and the pairs to learn that from.

    target : (x, y, z) as it was read.
    classes : empty for an image task.
    """

    target: xr.DataArray
    classes: tuple[ClassSpec, ...]
    context: ContextSet
    task: Task
    align: Align

    @cached_property
    def canonical(self) -> CanonicalVolume:
        """The scan in canonical axis order."""
        return CanonicalVolume.of(self.target)

    @cached_property
    def scale(self) -> IntensityScale:
        """What brings the scan's intensities to [0, 1]."""
        return quantile_scale(self.canonical.view)

    @cached_property
    def scaled(self) -> CanonicalVolume:
        """The scan in canonical axis order, scaled to [0, 1]."""
        return self.canonical.scaled(self.scale)

    @cached_property
    def inputs(self) -> PairInputs:
        """What the network reads."""
        scan, pairs = self.scaled, self.context.pairs
        return PairInputs(scan.view, scan.grid, pairs, self.align, self.wanted)

    def registered(self, kind: Kind, before: Callable[[], None]) -> Question:
        """Return the same question, asked of pairs that lie on the scan.

        before : called before each pair; may raise to end it.

        Raises
        ------
        InputError : no SimpleITK, or a scan too large for it.
        """
        pairs = register_pairs(self.scaled, self.context.pairs, kind, self.align, before)
        return replace(self, context=replace(self.context, pairs=pairs), align="box")

    @property
    def wanted(self) -> list[Values]:
        """Label values of each class, or `[None]` for an image task."""
        return [*(spec.values for spec in self.classes)] or [None]

    @property
    def names(self) -> list[str]:
        """Names of the classes, or "image"."""
        return [spec.name for spec in self.classes] or ["image"]

    @cached_property
    def label_scale(self) -> IntensityScale:
        """What brings the labels of an image task to [0, 1]: the median pair's."""
        scales = [pair.label_scale for pair in self.context]
        low, high = (np.median([getattr(s, end) for s in scales]) for end in ("low", "high"))
        return IntensityScale(float(low), float(high))

    @property
    def warnings(self) -> list[str]:
        """What to know of the context: classes that some pairs lack."""
        messages = []
        for spec in self.classes:
            without = [p.name for p in self.context if not set(p.values) & set(spec.values)]
            if without:
                messages.append(
                    f"{spec.name}: {', '.join(without)} without it; taken as empty examples"
                )
        return messages

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that tell this question from any other, voxels by hash."""
        return {
            "task": self.task,
            "align": self.align,
            "classes": [spec.to_dict() for spec in self.classes],
            "context": [pair.hash for pair in self.context],
            "target": content_hash(self.canonical.view, self.canonical.grid),
        }

    def answer(self, last: Step) -> tuple[xr.DataArray | None, xr.DataArray | None]:
        """Return the probability, or the image of an image task, on the scan's own grid."""
        turn = self.canonical.reorientation
        if self.classes:
            return make_probability(last.predictions, self.names, self.target, turn), None
        return None, make_image(last.predictions[0], self.label_scale, self.target, turn)

    def recorded(
        self, steps: Sequence[Step], truth: NDArray[Any] | None
    ) -> tuple[PredictionStep, ...]:
        """Return all scales of all classes, each where it lies in space.

        truth : in the scan's axis order.
        """
        truths: list[View] | None = None
        if truth is not None:
            view = turned(truth, self.canonical.reorientation)
            truths = [members(view, spec.values) for spec in self.classes] or [
                mapped(view, self.label_scale.apply)
            ]
        pairs = [pair.name for pair in self.context]
        return recorded_steps(steps, self.names, pairs, truths, self.canonical.grid)

    def read_truth(self, truth: Source) -> NDArray[Any]:
        """Return the known label's voxels in the scan's axis order.

        Raises
        ------
        InputError, ContextError : unreadable, or not on the scan's grid.
        """
        label, _ = read_label(self.target, truth, what="truth", task=self.task)
        return values_of(label)

    def score(self, prediction: Prediction, truth: NDArray[Any]) -> pd.DataFrame:
        """Return Dice by class, or PSNR, with the mean label's or the scan's own beside it."""
        answer = values_of(prediction.answer)
        if self.classes:
            return score_mask(answer, truth, self.classes, self.context, self.canonical, self.align)
        return score_image(answer, truth, values_of(self.target))
