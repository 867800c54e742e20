"""In-context learning by other weights: another 3D network, the same pairs, the same engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...inference.recipe import Settings
from ...model.device import choose_precision
from ...model.network import ICLNetwork
from ...model.registry import load_model
from ...registration import Register, register_pairs
from ..answers import predictor
from .protocol import Outcome, Trial


def name_of_weights(source: str | Path) -> str:
    """Return the file's name without its ending, or the model's name: no folder in a table."""
    return Path(source).stem if Path(source).suffix else str(source)


@dataclass(frozen=True, eq=False)
class ThisNetwork:
    """A network in memory, answering as a session does.

    Neuroverse3D in one pass at its window, Medverse by scales.

    register : as in `ICLSession.predict`.
    """

    name: str
    network: ICLNetwork
    settings: Settings
    register: Register = "off"

    def predict(self, trial: Trial) -> Outcome:
        pairs, align = trial.pairs, trial.align
        if self.register != "off":
            pairs = register_pairs(trial.canonical, pairs, self.register, align, trial.check)
            align = "box"
        predict = predictor(
            self.network,
            trial.target,
            [spec.values for spec in trial.classes],
            align=align,
            settings=self.settings,
            on_progress=lambda *_: trial.check(),
        )
        turn = trial.canonical.reorientation
        return Outcome(trial.mask([turn.apply(answer) for answer in predict(pairs)]))


@dataclass(frozen=True)
class OtherWeights:
    """A released Medverse or Neuroverse3D `.ckpt`, our `.safetensors`, or a model's name.

    Read when it is asked to predict, so that weights that cannot be loaded fail alone.
    """

    source: str | Path
    device: str = "auto"

    @property
    def name(self) -> str:
        return name_of_weights(self.source)

    def predict(self, trial: Trial) -> Outcome:
        network = load_model(self.source, self.device)
        device = next(network.parameters()).device
        settings = Settings(precision=choose_precision("auto", device))
        return ThisNetwork(self.name, network, settings).predict(trial)
