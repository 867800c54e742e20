"""Baselines: other ways to segment a target from the same pairs, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import InputError
from .best_pair import BestPair
from .in_context import OtherWeights, ThisNetwork
from .mean import MeanLabel, mean_label
from .protocol import Baseline, Learner, Outcome, Trial
from .registration import Registration
from .slices import SliceBySlice, SliceModel
from .trained import Fitted, Trained
from .universeg import UniverSeg

__all__ = [
    "BASELINES",
    "Baseline",
    "BestPair",
    "Fitted",
    "Learner",
    "MeanLabel",
    "OtherWeights",
    "Outcome",
    "Registration",
    "SliceBySlice",
    "SliceModel",
    "ThisNetwork",
    "Trained",
    "Trial",
    "UniverSeg",
    "find_baselines",
    "mean_label",
]

BASELINES: dict[str, Callable[[], Baseline]] = {
    "mean label": MeanLabel,
    "best pair": BestPair,
    "registration": Registration,
    "U-Net": lambda: Trained("U-Net", "unet"),
    "Swin UNETR": lambda: Trained("Swin UNETR", "swin_unetr"),
}


def find_baselines(wanted: Sequence[str | Path | Baseline], taken: str) -> list[Baseline]:
    """Return the baselines behind names, paths of weights, and baselines themselves.

    Parameters
    ----------
    taken : the name of the model they stand beside.

    Raises
    ------
    InputError : an unknown name, or two of one name.
    """
    found = [_find(one) for one in wanted]
    names = [taken, *(baseline.name for baseline in found)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"methods need names of their own in a table; taken twice: {twice}")
    return found


def _find(wanted: str | Path | Baseline) -> Baseline:
    if not isinstance(wanted, str | Path):
        return wanted
    if isinstance(wanted, str) and wanted in BASELINES:
        return BASELINES[wanted]()
    if Path(wanted).suffix in (".ckpt", ".safetensors"):
        return OtherWeights(wanted)
    raise InputError(
        f"baseline {str(wanted)!r} is not one of {', '.join(BASELINES)}, nor a path to weights "
        "(.ckpt or .safetensors), nor an object with a name and predict(trial)"
    )
