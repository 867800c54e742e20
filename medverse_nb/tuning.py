"""What `ICLSession.tune` gives back: tuned weights, and what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import ContextError, InputError, OutputError
from .evaluation.leave_one_out import score_pairs
from .files import check_writable, write_atomically
from .geometry import Align
from .inference.inputs import Values
from .inference.recipe import Settings
from .model.config import NetworkConfig
from .model.network import ICLNetwork
from .model.weights import save_network
from .pair import ContextPair
from .training.tuning import OnProgress, TunedNetwork, TuningTasks, tune_network

CROP = 32  # voxels: many steps in small crops gain more in a minute than few in large ones
FEWEST_PAIRS = 3  # one held out, one the target, one its context
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Tuning:
    """A network tuned on some of the pairs, measured on the others.

    `score` is the mean Dice over held-out pairs and classes (PSNR in dB for an image task),
    each predicted from the pairs that were trained on.
    """

    tuned: TunedNetwork
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    score: str
    seed: int

    @property
    def gain(self) -> float:
        """Score after minus score before; 0 where the untuned network was the best."""
        return self.tuned.after - self.tuned.before

    @property
    def curve(self) -> pd.DataFrame:
        """The held-out score over the seconds."""
        return pd.DataFrame(self.tuned.curve, columns=["seconds", self.score])

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest says about it, as plain JSON values."""
        return {
            "trained_on": list(self.trained_on),
            "held_out": list(self.held_out),
            "steps": self.tuned.steps,
            "seed": self.seed,
            "score": self.score,
            "before": round(self.tuned.before, 4),
            "after": round(self.tuned.after, 4),
        }

    def save(self, path: str | Path) -> Path:
        """Write the tuned weights, for `ICLSession(path)`; the pairs they came from are named inside.

        Parameters
        ----------
        path : ends in `.safetensors`; what is there is replaced at the very end.

        Raises
        ------
        OutputError : another ending, or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise OutputError(f"{path}: weights are written as {path.stem}{SUFFIX}")
        notes = json.dumps(self.to_dict())
        return write_atomically(
            check_writable(path), lambda file: save_network(self.tuned.network, file, tuning=notes)
        )

    def __repr__(self) -> str:
        return (
            f"<Tuning, {self.tuned.steps} steps on {len(self.trained_on)} pairs: {self.score} "
            f"{self.tuned.before:.3f} -> {self.tuned.after:.3f} on held-out "
            f"{', '.join(self.held_out)}>"
        )


def crop_of(config: NetworkConfig) -> int:
    """Return the side of the crops to tune in: about `CROP`, as the network can take it."""
    return min(config.window, math.ceil(CROP / config.multiple) * config.multiple)


def tune_on_pairs(
    network: ICLNetwork,
    pairs: Sequence[ContextPair],
    wanted: Sequence[Values],
    align: Align,
    settings: Settings,
    seconds: float,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Tuning:
    """Tune a copy of the network on three quarters of the pairs and measure it on the rest.

    Raises
    ------
    ContextError : fewer than three pairs.
    InputError : `seconds` that are not positive.
    """
    if len(pairs) < FEWEST_PAIRS:
        raise ContextError(
            f"tuning needs {FEWEST_PAIRS} pairs, one of them to measure on; there are {len(pairs)}"
        )
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds must be a positive number, got {seconds}")
    order = np.random.default_rng(seed).permutation(len(pairs))
    out = max(1, len(pairs) // 4)
    held_out = [pairs[i] for i in sorted(order[:out])]
    rest = [pairs[i] for i in sorted(order[out:])]

    def measure(candidate: ICLNetwork) -> float:
        return float(np.mean(score_pairs(candidate, held_out, rest, wanted, align, settings)))

    tasks = TuningTasks(rest, wanted, align, network.config.window, crop_of(network.config))
    tuned = tune_network(
        network,
        tasks.draw,
        measure,
        seconds,
        precision=settings.precision,
        seed=seed,
        on_progress=on_progress,
    )
    return Tuning(
        tuned,
        tuple(pair.name for pair in rest),
        tuple(pair.name for pair in held_out),
        "psnr" if wanted[0] is None else "dice",
        seed,
    )
