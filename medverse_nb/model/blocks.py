"""The leaves of both U-Nets: residual unit, down, up.

Source: Neuroverse3D section 4.2; one residual unit of two convolutions a stage, as in
the released weights (the papers' text says two units, which gives other parameter counts).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import Norm


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation layer called `norm`; groups are of eight `channels` each."""
    return nn.GroupNorm(max(1, channels // 8), channels) if norm == "group" else nn.Identity()


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


class Mix(nn.Conv3d):
    """A 1x1x1 convolution of two maps laid one after the other, without laying them.

    The same weights as `conv(cat([first, second]))`; each half is applied where it is
    cheapest, since a pointwise map commutes with upsampling and with moving blocks.
    """

    def __init__(self, channels_first: int, channels_second: int, channels_out: int) -> None:
        super().__init__(channels_first + channels_second, channels_out, 1)
        self.split = channels_first

    def first(self, x: Tensor) -> Tensor:
        """Return the first map's share, without the bias."""
        return F.conv3d(x, self.weight[:, : self.split])

    def second(self, x: Tensor) -> Tensor:
        """Return the second map's share, bias included."""
        return F.conv3d(x, self.weight[:, self.split :], self.bias)


class UpMerge(nn.Module):
    """Double the sides of `x`, join it with the skip, and mix down to the skip's width."""

    def __init__(self, channels_in: int, channels_skip: int) -> None:
        super().__init__()
        self.mix = Mix(channels_in, channels_skip, channels_skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.mix.first(x), scale_factor=2, mode="trilinear", align_corners=False)
        return x + self.mix.second(skip)
