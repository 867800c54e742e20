"""Models by name: what ships with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .device import choose_device
from .network import ICLNetwork
from .weights import load_network

SHIPPED = Path(__file__).parent.parent / "weights"


def available_models() -> list[dict[str, Any]]:
    """Return the card of every shipped model: name, file, licence, data, limits."""
    cards = []
    for path in sorted(SHIPPED.glob("*.safetensors")):
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        cards.append({**card, "path": str(path)})
    return cards


def find_weights(source: str | Path) -> Path:
    """Return the weights file behind a registry name or a path.

    Raises
    ------
    WeightsError : neither a shipped model nor an existing file.
    """
    names = [card["name"] for card in available_models()]
    if str(source) in names:
        return SHIPPED / f"{source}.safetensors"
    path = Path(source)
    if not path.is_file():
        raise WeightsError(
            f"no model {str(source)!r}: not one of {names} and not a file; give a path to "
            ".safetensors or a released .ckpt"
        )
    if path.suffix not in (".safetensors", ".ckpt"):
        raise WeightsError(f"{path}: weights are .safetensors or a released .ckpt")
    return path


def load_model(source: str | Path, device: str = "auto") -> ICLNetwork:
    """Load a network by registry name or from a file, ready to predict.

    Parameters
    ----------
    source : a name of `available_models`, or a path to `.safetensors` or a released `.ckpt`.
    device : "auto" (cuda, then mps, then cpu), or a torch device.

    Raises
    ------
    WeightsError : unknown, damaged or unsafe weights, or another architecture.
    InputError : a device this machine lacks.
    """
    return load_network(find_weights(source), choose_device(device))
