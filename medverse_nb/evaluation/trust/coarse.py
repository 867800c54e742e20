"""Runs of one window: what the trust score asks of the network besides the answer itself.

Everything is compared at most one window wide, so that a score costs the same for a crop of an
organ and for a whole body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...geometry import Align, Grid
from ...inference.autoregressive import run
from ...inference.inputs import PairInputs, Values
from ...inference.recipe import Settings
from ...model.network import ICLNetwork
from ...pair import ContextPair
from ...placement import CanonicalVolume
from ...regions import View, read
from ...resampling import FloatArray
from ...views import resized
from ..answers import Answer

Masks = NDArray[np.bool_]  # (K, X, Y, Z) of K classes


@dataclass(frozen=True)
class Coarse:
    """A scan in canonical axes, at most one window wide.

    scan : (X, Y, Z) in [0, 1].
    """

    scan: FloatArray
    grid: Grid

    @classmethod
    def of(cls, volume: CanonicalVolume, side: int) -> Coarse:
        """Resize a scaled volume so that no axis has more than `side` voxels."""
        x, y, z = (min(n, side) for n in volume.grid.shape)
        grid = volume.grid.resized((x, y, z))
        return cls(read(resized(volume.view, grid.shape)), grid)

    def resized(self, view: View) -> FloatArray:
        """Return another volume of the scan's box on this grid."""
        return read(resized(view, self.grid.shape))


@dataclass(frozen=True)
class Asker:
    """Asks a network for coarse answers.

    wanted : label values of each of K classes.
    before : called before each run; may raise to end it.
    """

    network: ICLNetwork
    wanted: Sequence[tuple[int, ...]]
    align: Align = "box"
    settings: Settings = field(default_factory=Settings)
    before: Callable[[], None] = lambda: None

    @property
    def side(self) -> int:
        """The widest scan that one window answers."""
        return self.network.config.window

    def coarse(self, pair: ContextPair) -> Coarse:
        """Return a pair's image as a scan to be answered."""
        return Coarse.of(pair.canonical_image, self.side)

    def probabilities(self, scan: Coarse, pairs: Sequence[ContextPair]) -> FloatArray:
        """Return (K, X, Y, Z) in [0, 1]: one run of the network."""
        self.before()
        wanted: Sequence[Values] = self.wanted
        inputs = PairInputs(scan.scan, scan.grid, pairs, self.align, wanted)
        answers = run(self.network, inputs, self.settings)[-1].predictions
        return np.clip(np.stack([read(view) for view in answers]), 0, 1)

    def masks(self, scan: Coarse, pairs: Sequence[ContextPair]) -> Masks:
        """Return the likeliest class of each voxel: one run of the network."""
        return masks_of(self.probabilities(scan, pairs))

    def labels(self, pair: ContextPair, scan: Coarse) -> Masks:
        """Return a pair's own label on the grid of any scan."""
        on = [read(pair.label_on(scan.grid, self.align, values)) for values in self.wanted]
        return np.stack(on) > 0.5

    def asking(self, wanted: Sequence[tuple[int, ...]]) -> Asker:
        """Return one that asks for other label values."""
        return replace(self, wanted=wanted)


def masks_of(probabilities: FloatArray) -> Masks:
    """Return the likeliest class of each voxel, none where no class exceeds 0.5."""
    return Answer.of(probabilities, "segmentation").masks
