"""Running the network on a batch of windows: device, precision, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model.config import Precision
from ..model.device import autocast
from ..model.network import ICLNetwork, Pairs
from ..resampling import FloatArray
from .crops import Crops, PairCrops
from .read_ahead import CropsAhead

_turns: WeakKeyDictionary[ICLNetwork, threading.Lock] = WeakKeyDictionary()
_names: WeakKeyDictionary[ICLNetwork, str] = WeakKeyDictionary()
_known: WeakValueDictionary[str, ICLNetwork] = WeakValueDictionary()


class WindowRunner:
    """Call a network on NumPy crops; results come back as float32.

    Sent to another process it takes along no weights, only the name that `know` gave the
    network here and there.
    """

    def __init__(
        self, model: ICLNetwork, precision: Precision, mini_context_size: int | None
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.mini_context_size = mini_context_size
        self.threads = torch.get_num_threads()
        self.turn = _turns.setdefault(model, threading.Lock())

    def __call__(self, crops: Crops) -> FloatArray:
        """Predict (K, B, X, Y, Z); callers on other threads wait for their turn.

        Raises
        ------
        InputError : an answer that is not finite.
        """
        if torch.get_num_threads() != self.threads:  # a pool's thread keeps those it began with
            torch.set_num_threads(self.threads)
        with self.turn, torch.inference_mode(), autocast(self.precision, self.device):
            target = self._tensor(crops.target)[:, None]
            several = len(crops.context) > 1
            features = self.model.target_encoder(target) if several else None
            questions = range(len(crops.context))
            answers = [self._ask(target, crops, question, features) for question in questions]
            found = np.stack([answer.float().cpu().numpy() for answer in answers])
        if bad := found.size - int(np.count_nonzero(np.isfinite(found))):
            remedy = '; try precision="float32"' if self.precision != "float32" else ""
            raise InputError(
                f"the network answered {bad} voxels with values that are not finite{remedy}"
            )
        return found

    def _ask(
        self, target: Tensor, crops: Crops, question: int, features: list[Tensor] | None
    ) -> Tensor:
        """Predict (B, X, Y, Z) for one of the K questions."""
        images, labels = map(self._pairs, crops.context[question])
        ar_image = ar_label = None
        if crops.feedback is not None:
            image, predictions = crops.feedback
            ar_image = self._tensor(image)[:, None, None]
            ar_label = self._tensor(predictions[question])[:, None, None]
        prediction: Tensor = self.model(
            target,
            images,
            labels,
            ar_image,
            ar_label,
            mini_context_size=self.mini_context_size,
            target_features=features,
        )
        return prediction[:, 0]

    def _pairs(self, crops: PairCrops) -> Pairs:
        """Return (B, L, 1, X, Y, Z), there or coming."""
        if isinstance(crops, CropsAhead):
            return Coming(crops, self._tensor)
        return self._tensor(crops)[:, :, None]

    def _tensor(self, array: FloatArray) -> Tensor:
        # elsewhere what is copied must outlive the call, and crops that were read ahead do not
        return torch.from_numpy(array).to(self.device, non_blocking=self.device.type == "cuda")

    def __reduce__(self) -> tuple[Any, ...]:
        return recall, (_names[self.model], self.precision, self.mini_context_size)


@dataclass(frozen=True)
class Coming:
    """Pairs (B, L, 1, X, Y, Z) that are read while the network runs, and tensors once it takes them."""

    crops: CropsAhead
    to_tensor: Callable[[FloatArray], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, L, 1, X, Y, Z)."""
        batch, pairs, *sides = self.crops.shape
        return batch, pairs, 1, *sides

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        return self.to_tensor(self.crops[index])[:, :, None]


def know(name: str, model: ICLNetwork) -> None:
    """Name a network, so that runners can be sent to any process that knows it too."""
    _names[model] = name
    _known[name] = model


def name_of_network(model: ICLNetwork) -> str | None:
    """Return the name a network is known by, if it is."""
    return _names.get(model)


def network_called(name: str) -> ICLNetwork:
    """Return the network known by a name."""
    return _known[name]


def recall(name: str, precision: Precision, mini_context_size: int | None) -> WindowRunner:
    """Return a runner of the network of that name."""
    return WindowRunner(network_called(name), precision, mini_context_size)
