"""The only place that reads or writes network weights.

Three formats: our own `.safetensors` (config in the metadata), the released Lightning `.ckpt`,
and UniverSeg's plain `.pt`. None can run code: the last two load with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import WeightsError
from .config import NetworkConfig
from .network import ICLNetwork
from .universeg import UniverSegNetwork

FORMAT = "medverse_nb.1"
RELEASED_ARCHITECTURES = ("medverse", "neuroverse3d")

# Names in the released checkpoints -> ours; applied in order to the start of each key.
RELEASED_KEYS: tuple[tuple[str, str], ...] = (
    (r"^net\.", ""),
    (r"\.module\.", "."),
    (r"^sincos_pos_embed$", "codes.positions"),
    (r"^target_code$", "codes.target_code"),
    (r"^image_context_code$", "codes.autoregressive_code"),
    (r"^image_context_embedding$", "autoregressive_embedding"),
    (r"^context_unet\.", "context_branch."),
    (r"^context_branch\.context_embedding\.", "context_branch.embedding."),
    (r"^context_branch\.enc_blocks\.(\d+)\.context_conv\.", r"context_branch.units.\1."),
    (r"^context_branch\.enc_blocks\.(\d+)\.", r"context_branch.fusions.\1."),
    (r"^context_branch\.dec_blocks\.(\d+)\.context_conv\.", r"context_branch.up_units.\1."),
    (r"^target_encoder\.target_embedding\.", "target_encoder.embedding."),
    (r"^target_encoder\.enc_blocks\.(\d+)\.target_conv\.", r"target_encoder.units.\1."),
    (r"\.downsample_blocks\.(\d+)\.(?:context|target)_linear_layer\.", r".downs.\1."),
    (r"\.upsample_blocks\.(\d+)\.(?:context|target)_conv_layer\.", r".ups.\1.mix."),
    (r"^target_decoder\.output_block\.block\.0\.", "target_decoder.last_unit."),
    (r"^target_decoder\.output_block\.block\.1\.", "target_decoder.head."),
    (r"^target_decoder\.enc_blocks\.0\.target_conv\.", "target_decoder.units.0."),
    (r"^target_decoder\.enc_blocks\.0\.", "target_decoder.fusions.0."),
    (r"\.cross_attention\.q_proj\.", ".attention.query."),
    (r"\.cross_attention\.k_proj\.", ".attention.key."),
    (r"\.(?:final_conv|combine_conv_context|combine_conv_target)\.", ".mix."),
    (r"\.layers\.0\.", ".conv1."),
    (r"\.layers\.2\.", ".conv2."),
)

# The same for UniverSeg, of whose files the layout is known from the code that reads them.
UNIVERSEG_KEYS: tuple[tuple[str, str], ...] = (
    (r"^enc_blocks\.", "down."),
    (r"^dec_blocks\.", "up."),
    (r"\.cross\.cross_conv\.", ".cross."),
    (r"\.target\.vmapped\.conv\.", ".target."),
    (r"\.support\.vmapped\.conv\.", ".context."),
    (r"^out_conv\.conv\.", "head."),
)


def translate_released_key(key: str) -> str:
    """Return our name of a parameter of a released checkpoint."""
    for pattern, replacement in RELEASED_KEYS:
        key = re.sub(pattern, replacement, key)
    decoder = re.match(r"^target_decoder\.dec_blocks\.(\d+)\.(target_conv\.)?", key)
    if decoder:  # decoder stage i is our stage i + 1, the bottleneck being stage 0
        kind = "units" if decoder[2] else "fusions"
        key = f"target_decoder.{kind}.{int(decoder[1]) + 1}." + key[decoder.end() :]
    return key


def load_network(path: str | Path, device: str | torch.device = "cpu") -> ICLNetwork:
    """Load a network from our `.safetensors` or a released Lightning `.ckpt`.

    Returns the network in eval mode and float32 on `device`.

    Raises
    ------
    WeightsError : missing, damaged, unsafe, or of another architecture; the message names
        the missing and extra keys.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    config, state = (
        _read_safetensors(path) if path.suffix == ".safetensors" else _read_released(path)
    )
    network = ICLNetwork(config)
    _load_strictly(network, state, path, f"{config.architecture} with channels {config.channels}")
    return network.to(device).eval()


def load_universeg(path: str | Path, device: str | torch.device = "cpu") -> UniverSegNetwork:
    """Load UniverSeg's published weights, a plain state dict, from a local file.

    Key names follow its public code (`enc_blocks.0.cross.cross_conv.weight` and so on); the
    published file itself was not at hand to be tried.

    Raises
    ------
    WeightsError : missing, damaged, unsafe, or of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    stored = _read_tensors(path)
    if not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored):
        raise WeightsError(f"{path}: not a state dict with text keys")
    state = {}
    for key, value in stored.items():
        name = key
        for pattern, replacement in UNIVERSEG_KEYS:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    network = UniverSegNetwork()
    _load_strictly(network, state, path, "UniverSeg")
    return network.to(device).eval()


def save_network(
    network: ICLNetwork, path: str | Path, *, dtype: torch.dtype = torch.float32, **notes: str
) -> None:
    """Write weights and config to `path`; `notes` are strings kept in the file's metadata.

    Writes in place: for a file that is there whole or not at all, call it in `write_atomically`.
    """
    state = {
        key: value.detach().cpu().to(dtype).contiguous()
        for key, value in network.state_dict().items()
    }
    metadata = {"format": FORMAT, "config": json.dumps(network.config.to_dict()), **notes}
    Path(path).write_bytes(_with_sorted_header(save(state, metadata=metadata)))


def _with_sorted_header(file: bytes) -> bytes:
    """Sort a safetensors header, which is written in random order, so that hashes repeat."""
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + size :]


def read_notes(path: str | Path) -> dict[str, str]:
    """Return the metadata strings of one of our weight files."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def weights_hash(path: str | Path) -> str:
    """Return the SHA-256 of a weights file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def network_hash(network: ICLNetwork) -> str:
    """Return a SHA-256 of a network in memory: configuration, weights and their layout."""
    digest = hashlib.sha256(repr(network.config).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.stride())}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    if "config" not in metadata:
        raise WeightsError(
            f"{path}: has no network config inside; it was not written by medverse_nb"
        )
    try:
        return NetworkConfig.from_dict(json.loads(metadata["config"])), state
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: the config inside is not JSON ({error})") from error


def _read_tensors(path: Path) -> Any:
    """Return what `torch.save` wrote, if it is plain tensors and nothing that runs."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, the file asks to run code or is not a checkpoint; "
            "only plain tensors are loaded from untrusted files"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: not a readable checkpoint ({error})") from error


def _read_released(path: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    checkpoint = _read_tensors(path)
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= set(
        checkpoint
    ):
        raise WeightsError(
            f"{path}: not a Lightning checkpoint (no state_dict and hyper_parameters)"
        )
    settings, stored = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    named = isinstance(stored, dict) and all(isinstance(key, str) for key in stored)
    if not named or not isinstance(settings, dict):
        raise WeightsError(f"{path}: state_dict and hyper_parameters must be dicts with text keys")
    name = str(settings.get("model_name", "")).lower()
    state = {translate_released_key(key): value for key, value in stored.items()}
    if name not in RELEASED_ARCHITECTURES:
        name = "medverse" if "codes.positions" in state else "neuroverse3d"
    try:
        channels = tuple(int(width) for width in settings["nb_inner_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: hyper_parameters have no usable nb_inner_channels") from error
    return NetworkConfig.from_dict({"architecture": name, "channels": channels}), state


def _load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    wanted = network.state_dict()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise WeightsError(
            f"{path}: of another architecture than {what}; missing keys {missing[:5]} ({len(missing)}), "
            f"extra keys {extra[:5]} ({len(extra)})"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.shape != wanted[key].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise WeightsError(f"{path}: {key} is {shape}, needed {tuple(wanted[key].shape)}")
    network.load_state_dict(state)
