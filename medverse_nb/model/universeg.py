"""UniverSeg: a 2D U-Net whose target and context branches meet at every stage.

Only what its published weights need. It is a baseline: nothing else of the package uses it.

Source: Butoi et al. 2023, "UniverSeg: Universal Medical Image Segmentation".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FEATURES = (64, 64, 64, 64)  # of the published weights, from the finest stage to the coarsest
SIDE = 128  # pixels of a slice they were trained on


class CrossBlock(nn.Module):
    """Each pair meets the target; the target goes on with the mean over the pairs."""

    def __init__(self, target_channels: int, context_channels: int, features: int) -> None:
        super().__init__()
        self.cross = nn.Conv2d(target_channels + context_channels, features, 3, padding=1)
        self.target = nn.Conv2d(features, features, 3, padding=1)
        self.context = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, target: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        # A convolution of two stacked maps is the sum of one on each, so the target's part is
        # computed once and not once a pair.
        of_target, of_context = self.cross.weight.split([target.shape[1], context.shape[2]], dim=1)
        ours = F.conv2d(target, of_target, self.cross.bias, padding=1)
        theirs = F.conv2d(rearrange(context, "b l c h w -> (b l) c h w"), of_context, padding=1)
        theirs = rearrange(theirs, "(b l) c h w -> b l c h w", b=len(target))
        both = ours[:, None] + theirs
        met = self.context(rearrange(both, "b l c h w -> (b l) c h w"))
        target = F.leaky_relu(self.target(both.mean(dim=1)))
        return target, F.leaky_relu(rearrange(met, "(b l) c h w -> b l c h w", b=len(target)))


class UniverSegNetwork(nn.Module):
    """Target (B, 1, H, W), context (B, L, 1, H, W) twice, in [0, 1], to logits (B, 1, H, W).

    H and W are multiples of 2 ** (stages - 1); the published weights expect 128.
    """

    def __init__(self, features: Sequence[int] = FEATURES) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        widths = [(1, 2), *((width, width) for width in features[:-1])]
        for (target, context), width in zip(widths, features, strict=True):
            self.down.append(CrossBlock(target, context, width))
        self.up = nn.ModuleList()
        coarse = features[-1]
        for width in reversed(features[:-1]):
            self.up.append(CrossBlock(coarse + width, coarse + width, width))
            coarse = width
        self.head = nn.Conv2d(coarse, 1, 1)

    def forward(self, target: Tensor, context_image: Tensor, context_label: Tensor) -> Tensor:
        context = torch.cat([context_image, context_label], dim=2)
        skipped = []
        for number, block in enumerate(self.down):
            if number:
                target, context = _halve(target), _each(_halve, context)
            target, context = block(target, context)
            skipped.append((target, context))
        skipped.pop()
        for block in self.up:
            skip, context_skip = skipped.pop()
            target = torch.cat([_double(target), skip], dim=1)
            context = torch.cat([_each(_double, context), context_skip], dim=2)
            target, context = block(target, context)
        return self.head(target)


def _halve(maps: Tensor) -> Tensor:
    return F.max_pool2d(maps, 2)


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def _each(function: Callable[[Tensor], Tensor], context: Tensor) -> Tensor:
    """Apply a function of (N, C, H, W) to every pair."""
    flat = function(rearrange(context, "b l c h w -> (b l) c h w"))
    return rearrange(flat, "(b l) c h w -> b l c h w", b=len(context))
