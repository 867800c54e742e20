"""The learning rate's course: warm-up by steps, then a cosine of the time used."""

from __future__ import annotations

import math


def warm_up(step: int, steps: int) -> float:
    """Return the share of the peak at `step`, 0 being the first, of a linear warm-up."""
    return min(1.0, (step + 1) / steps)


def cosine(share: float, lowest: float = 0.0) -> float:
    """Return the share of the peak after `share`, 0 to 1, of the time; `lowest` at its end."""
    half_wave = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return lowest + (1 - lowest) * half_wave
