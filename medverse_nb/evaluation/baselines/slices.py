"""2D in-context learning, slice by slice: each slice of the target beside those of the pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...regions import read
from ...resampling import FloatArray
from .protocol import Outcome, Trial

# Target slice (B, 1, H, W), context images and labels (B, L, 1, H, W), all in [0, 1], to the
# probability (B, 1, H, W).
SliceModel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SliceBySlice:
    """A 2D in-context model run along an axis; its answers are stacked.

    The pairs are placed on the target first, so that slice n of a pair shows what slice n of
    the target shows, as far as the placement is right. Slices in which no pair has the class
    are background: an empty context asks for nothing.

    Parameters
    ----------
    model : see `SliceModel`; on the CPU, or one that moves what it is given.
    axis : the canonical axis the slices lie across: 0 sagittal, 1 coronal, 2 axial.
    side : slices are stretched to side x side pixels, and the answers back.
    """

    name: str
    model: SliceModel
    axis: Literal[0, 1, 2] = 2
    side: int = 128

    def predict(self, trial: Trial) -> Outcome:
        grid = trial.canonical.grid
        scan = self._slices(read(trial.canonical.view))
        images = [self._slices(read(p.image_on(grid, trial.align))) for p in trial.pairs]
        answers, empty = [], 0
        for spec in trial.classes:
            labels = [
                self._slices(read(p.label_on(grid, trial.align, spec.values))) for p in trial.pairs
            ]
            answer = np.zeros_like(scan)
            for number, target in enumerate(scan):
                trial.check()
                context = torch.stack([self._stretched(label[number]) for label in labels])
                context = (context > 0.5).float()
                if not context.any():
                    empty += 1
                    continue
                shown = torch.stack([self._stretched(image[number]) for image in images])
                with torch.inference_mode():
                    got = self.model(self._stretched(target)[None], shown[None], context[None])
                answer[number] = _resize(got.float().cpu(), target.shape)[0, 0].numpy()
            answers.append(np.moveaxis(answer, 0, self.axis))
        asked = len(scan) * len(trial.classes) - empty
        return Outcome(trial.mask(answers), f"{asked} slices asked across axis {self.axis}")

    def _slices(self, volume: FloatArray) -> FloatArray:
        return np.ascontiguousarray(np.moveaxis(volume, self.axis, 0), np.float32)

    def _stretched(self, image: FloatArray) -> Tensor:
        """Return one slice as (1, side, side)."""
        return _resize(torch.from_numpy(image)[None, None], (self.side, self.side))[0]


def _resize(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    return F.interpolate(images, tuple(shape), mode="bilinear", antialias=True)
