"""UniverSeg as a baseline: published 2D weights from a local file, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...model.device import choose_device
from ...model.universeg import SIDE
from ...model.weights import load_universeg
from .protocol import Outcome, Trial
from .slices import SliceBySlice


@dataclass(frozen=True)
class UniverSeg:
    """UniverSeg's weights (`universeg_v1_nf64_ss64_STA.pt`), run along an axis.

    The layout of the file is known from UniverSeg's public code; the file was not at hand, so
    that its scores on real scans are untried here.

    Parameters
    ----------
    path : of the local file; nothing is downloaded.
    axis : as in `SliceBySlice`.
    """

    path: str | Path
    axis: Literal[0, 1, 2] = 2
    device: str = "auto"
    name: str = "UniverSeg"

    def predict(self, trial: Trial) -> Outcome:
        device = choose_device(self.device)
        network = load_universeg(self.path, device)

        def model(target: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            logits: Tensor = network(target.to(device), images.to(device), labels.to(device))
            return logits.sigmoid()

        return SliceBySlice(self.name, model, self.axis, SIDE).predict(trial)
