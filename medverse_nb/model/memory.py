"""How many pairs fit in one pass: the adaptive part of APSP."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from .config import NetworkConfig, Precision

SHARE_OF_FREE_MEMORY = 0.5
LIVE_MAPS_INFERENCE = 8  # full-resolution maps of C_0 channels alive at the peak of one pair
LIVE_MAPS_TRAINING = 40
# Values of a map of several pairs on a CPU: eight pairs in 2**25 take a sixth longer than alone.
CACHED_VALUES = 2**22


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 4 * 2**30


def held_memory() -> int:
    """Return the bytes this process holds in memory; where that is not told, its most so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def release_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) keeps it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def window_memory(config: NetworkConfig, voxels: int, precision: Precision) -> int:
    """Return about how many bytes a forward pass of so many voxels takes with a single pair."""
    size = 4 if precision == "float32" else 2
    return 2 * LIVE_MAPS_INFERENCE * config.channels[0] * size * voxels  # target and pair


def choose_mini_context_size(config: NetworkConfig, target: Tensor, context_size: int) -> int:
    """Return the mini-context size l in [1, L] that fits half of the free memory.

    On a CPU, without a gradient, no more than `CACHED_VALUES` in a map.

    Source: Neuroverse3D section 3.1, which leaves the rule open.
    """
    live = LIVE_MAPS_TRAINING if torch.is_grad_enabled() else LIVE_MAPS_INFERENCE
    one_pair = target.numel() * config.channels[0] * live * 4
    fitting = int(SHARE_OF_FREE_MEMORY * free_memory(target.device) / one_pair)
    if target.device.type == "cpu" and not torch.is_grad_enabled():
        fitting = min(fitting, CACHED_VALUES // (target.numel() * config.channels[0]))
    return max(1, min(fitting, context_size))
