"""Multi-atlas registration: each pair is warped onto the target, and the warped labels vote.

Source: Heckemann et al. 2006 (voting over propagated labels).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...pair import ContextPair
from ...regions import read
from ...registration import Kind, Warp, register, require_simpleitk
from ...resampling import FloatArray
from ..similarity import choose
from .protocol import Outcome, Trial


@dataclass(frozen=True)
class Registration:
    """Labels propagated from every pair and averaged, the most alike pairs first.

    The seconds are shared by the pairs: a registration that runs out of its part is used as far
    as it came, and what is left of it goes to the next. At least one pair is registered.

    deform : False for the affine step alone.
    """

    name: str = "registration"
    deform: bool = True
    clock: Callable[[], float] = time.monotonic

    def predict(self, trial: Trial) -> Outcome:
        """Return the vote.

        Raises
        ------
        InputError : SimpleITK is not installed.
        """
        require_simpleitk("the baseline 'registration'")
        pairs = choose(trial.target, trial.pairs, len(trial.pairs), align=trial.align)
        end = self.clock() + trial.seconds
        grid = trial.canonical.grid
        scan = read(trial.canonical.view).astype(np.float32, copy=False)
        total = np.zeros((len(trial.classes), *grid.shape), np.float32)
        used = cut_short = 0
        for pair in pairs:
            trial.check()
            left = end - self.clock()
            if used and left <= 0:
                break
            until = self.clock() + left / (len(pairs) - used)
            warp = self._register(trial, scan, pair, until)
            for number, spec in enumerate(trial.classes):
                label = read(pair.label_on(grid, trial.align, spec.values))
                total[number] += warp.apply(label)
            used += 1
            cut_short += not warp.finished
        notes = []
        if used < len(pairs):
            notes.append(f"time for {used} of {len(pairs)} pairs, the most alike")
        if cut_short:
            notes.append(f"{cut_short} of {used} registrations cut short")
        return Outcome(trial.mask(total / np.float32(used)), "; ".join(notes))

    def _register(self, trial: Trial, scan: FloatArray, pair: ContextPair, until: float) -> Warp:
        """Register a pair; it comes as it is placed, so the search starts where the model does."""
        grid, started = trial.canonical.grid, self.clock()

        def stop(share: float) -> bool:
            cancelled = trial.cancel is not None and trial.cancel.is_set()
            return cancelled or self.clock() > until - (1 - share) * (until - started)

        moving = read(pair.image_on(grid, trial.align)).astype(np.float32, copy=False)
        kind: Kind = "deformable" if self.deform else "affine"
        warp = register(scan, moving, grid, kind, seed=trial.seed, stop=stop)
        trial.check()
        return warp
