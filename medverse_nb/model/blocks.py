"""The leaves of both U-Nets: residual unit, down, up.

Source: Neuroverse3D section 4.2; one residual unit of two convolutions a stage, as in
the released weights (the papers' text says two units, which gives other parameter counts).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Norm


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation layer called `norm` for `channels` feature maps."""
    return nn.GroupNorm(min(8, channels), channels) if norm == "group" else nn.Identity()


class ResidualUnit(nn.Module):
    """Compute `GELU(x + conv(GELU(conv(x))))` on (N, C, X, Y, Z), shape kept."""

    def __init__(self, channels: int, norm: Norm = "none") -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = make_norm(norm, channels)
        self.norm2 = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm1(self.conv1(x)))
        return F.gelu(x + self.norm2(self.conv2(y)))


def make_down(channels_in: int, channels_out: int) -> nn.Module:
    """Halve every side; max-pooling where the width stays, else a strided convolution."""
    if channels_in == channels_out:
        return nn.MaxPool3d(2)
    return nn.Conv3d(channels_in, channels_out, 4, stride=2, padding=1)


class UpMerge(nn.Module):
    """Double the sides of `x`, join it with the skip, and mix down to the skip's width."""

    def __init__(self, channels_in: int, channels_skip: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(channels_in + channels_skip, channels_skip, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        return self.mix(torch.cat([x, skip], dim=1))
