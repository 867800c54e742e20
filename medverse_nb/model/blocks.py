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
    """Return the normalisation layer called `norm`; groups are of eight `channels` each."""
    return nn.GroupNorm(max(1, channels // 8), channels) if norm == "group" else nn.Identity()


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a voxel of (N, C, X, Y, Z) lie side by side in memory."""
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def gelu(x: Tensor) -> Tensor:
    """Return GELU(x); `x` itself is overwritten unless a gradient is wanted.

    Seen in the order of the memory: with channels last PyTorch misses the fast kernel on a CPU,
    and takes twice the time, and ten times as long where values are large.
    """
    last = is_channels_last(x)
    y = x.permute(0, 2, 3, 4, 1) if last else x
    y = F.gelu(y) if y.requires_grad else torch.ops.aten.gelu_(y)
    return y.permute(0, 4, 1, 2, 3) if last else y


def laid_out_for(x: Tensor, unit: nn.Module) -> Tensor:
    """Return `x` in the memory format of a residual unit; one channel alone shows none."""
    last = is_channels_last(next(unit.parameters()))
    return x.to(memory_format=torch.channels_last_3d) if last else x


class ResidualUnit(nn.Module):
    """Compute `GELU(x + conv(GELU(conv(x))))` on (N, C, X, Y, Z), shape kept."""

    def __init__(self, channels: int, norm: Norm = "none") -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = make_norm(norm, channels)
        self.norm2 = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = gelu(self.norm1(self.conv1(x)))
        return gelu(self.norm2(self.conv2(y)).add_(x))


def make_down(channels_in: int, channels_out: int) -> nn.Module:
    """Halve every side; max-pooling where the width stays, else a strided convolution."""
    if channels_in == channels_out:
        return nn.MaxPool3d(2)
    return nn.Conv3d(channels_in, channels_out, 4, stride=2, padding=1)


def add_pointwise(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `total` plus the 1x1x1 convolution of `x`; `total` is overwritten without a gradient.

    Then it is one product that adds up in place: a quarter of the time of a convolution and an
    addition, which are short of memory, not of arithmetic.
    """
    if torch.is_grad_enabled():
        return total + F.conv3d(x, weight)
    x, matrix = x.to(total.dtype), weight.flatten(1).to(total.dtype)
    if is_channels_last(total):
        rows = total.permute(0, 2, 3, 4, 1).view(-1, len(matrix))
        rows.addmm_(x.permute(0, 2, 3, 4, 1).reshape(len(rows), -1), matrix.T)
    else:
        columns = total.view(*total.shape[:2], -1)
        columns.baddbmm_(matrix.expand(len(x), -1, -1), x.flatten(2))
    return total


class Mix(nn.Conv3d):
    """A 1x1x1 convolution of two maps laid one after the other, without laying them.

    The same weights as `conv(cat([first, second]))`: begin with the share of one map and add
    the other's. The first share can be taken where it is cheapest, since a pointwise map
    commutes with upsampling and with moving blocks.
    """

    def __init__(self, channels_first: int, channels_second: int, channels_out: int) -> None:
        super().__init__(channels_first + channels_second, channels_out, 1)
        self.split = channels_first

    def first(self, x: Tensor) -> Tensor:
        """Return the first map's share, bias included."""
        return F.conv3d(x, self.weight[:, : self.split], self.bias)

    def second(self, x: Tensor) -> Tensor:
        """Return the second map's share, bias included."""
        return F.conv3d(x, self.weight[:, self.split :], self.bias)

    def add_first(self, total: Tensor, x: Tensor) -> Tensor:
        """Return `total` plus the first map's share; see `add_pointwise`."""
        return add_pointwise(total, x, self.weight[:, : self.split])

    def add_second(self, total: Tensor, x: Tensor) -> Tensor:
        """Return `total` plus the second map's share; see `add_pointwise`."""
        return add_pointwise(total, x, self.weight[:, self.split :])


class UpMerge(nn.Module):
    """Double the sides of `x`, join it with the skip, and mix down to the skip's width."""

    def __init__(self, channels_in: int, channels_skip: int) -> None:
        super().__init__()
        self.mix = Mix(channels_in, channels_skip, channels_skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.mix.first(x), scale_factor=2, mode="trilinear", align_corners=False)
        return self.mix.add_second(x, skip)
