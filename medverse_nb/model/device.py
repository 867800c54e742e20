"""Where a network runs, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from ..errors import InputError
from .config import PRECISIONS, Precision


def choose_device(device: str) -> torch.device:
    """Return a usable device; "auto" takes the best there is.

    MPS is taken for "auto" only where a small convolution agrees with the CPU.
    """
    if device == "auto":
        return next(_usable_devices())
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f'device={device!r} is not "auto", "cpu", "cuda", "cuda:N" or "mps"'
        ) from error
    missing = (chosen.type == "cuda" and not torch.cuda.is_available()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise InputError(f'device={device!r} is not there on this machine; use device="auto"')
    return chosen


def _usable_devices() -> Iterator[torch.device]:
    if torch.cuda.is_available():
        yield torch.device("cuda")
    if torch.backends.mps.is_available() and _agrees_with_cpu(torch.device("mps")):
        yield torch.device("mps")
    yield torch.device("cpu")


def _agrees_with_cpu(device: torch.device) -> bool:
    probe = torch.linspace(-1, 1, 2 * 16**3).view(1, 2, 16, 16, 16)
    kernel = torch.linspace(-1, 1, 2 * 2 * 27).view(2, 2, 3, 3, 3)
    expected = torch.nn.functional.conv3d(probe, kernel)
    try:
        got = torch.nn.functional.conv3d(probe.to(device), kernel.to(device)).cpu()
    except (RuntimeError, NotImplementedError):
        return False
    return torch.allclose(expected, got, atol=1e-3)


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return the precision to run in; "auto" is bfloat16 where the hardware has it.

    Raises
    ------
    InputError : float16 on a CPU, which has no fast path for it.
    """
    if precision == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision == "float16" and device.type == "cpu":
        raise InputError('precision="float16" needs a GPU; use "bfloat16" or "float32"')
    if precision not in PRECISIONS:
        raise InputError(f'precision={precision!r} is not "auto" or one of {PRECISIONS}')
    return precision


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 runs in hardware on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context to run a network in; float32 changes nothing."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
