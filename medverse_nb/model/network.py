"""The two in-context networks: three U-shaped branches and their U-shape fusion.

Sources: Medverse Figure 2, Eqs. 1-2; Neuroverse3D Figure 2, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from ..errors import InputError
from .apsp import context_mean
from .blocks import ResidualUnit, UpMerge, laid_out_for, make_down
from .config import NetworkConfig
from .fusion import (
    AttentionContextToTarget,
    AttentionTargetToContext,
    ConcatContextToTarget,
    ConcatTargetToContext,
    ContextMeans,
    PositionCodes,
)
from .memory import choose_mini_context_size


class Pairs(Protocol):
    """Images or labels of pairs (B, L, 1, X, Y, Z): a tensor, or what yields tensors of a few pairs.

    The network takes each pair once and in order, `[:, a:b]` for a mini-context.
    """

    @property
    def shape(self) -> Sequence[int]:
        """(B, L, 1, X, Y, Z)."""
        ...

    def __getitem__(self, index: tuple[slice, slice], /) -> Tensor:
        """Return some pairs."""
        ...


class TargetEncoder(nn.Module):
    """Encode the target (B, 1, X, Y, Z) into one feature map for each stage.

    The last map is only downsampled: the decoder opens with the bottleneck's unit.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.channels
        self.embedding = nn.Conv3d(1, widths[0], 1)
        self.units = nn.ModuleList([ResidualUnit(c, config.norm) for c in widths[:-1]])
        self.downs = nn.ModuleList([make_down(a, b) for a, b in pairwise(widths)])

    def forward(self, target: Tensor) -> list[Tensor]:
        features = []
        x = self.embedding(laid_out_for(target, self.units[0]))
        for unit, down in zip(self.units, self.downs, strict=True):
            features.append(unit(x))
            x = down(features[-1])
        return [*features, x]


class ContextBranch(nn.Module):
    """Encode and decode context pairs while they look at the target.

    The semantic and the autoregressive context share these weights.
    """

    def __init__(self, config: NetworkConfig, codes: PositionCodes | None) -> None:
        super().__init__()
        widths = config.channels
        self.embedding = nn.Conv3d(2, widths[0], 1)
        self.units = nn.ModuleList([ResidualUnit(c, config.norm) for c in widths])
        self.fusions = nn.ModuleList(
            [
                ConcatTargetToContext(c)
                if codes is None
                else AttentionTargetToContext(c, config, codes)
                for c in widths[:-1]
            ]
        )
        self.downs = nn.ModuleList([make_down(a, b) for a, b in pairwise(widths)])
        self.ups = nn.ModuleList([UpMerge(a, b) for a, b in pairwise(widths[::-1])])
        self.up_units = nn.ModuleList([ResidualUnit(c, config.norm) for c in widths[-2::-1]])

    def forward(
        self, pairs: Tensor, target_features: list[Tensor], embedding: Tensor | None = None
    ) -> list[Tensor]:
        """Return the bottleneck map and every decoder map, coarsest first.

        Parameters
        ----------
        pairs : (B, K, 2, X, Y, Z)  image and label of K pairs.
        target_features : one (B, C, X, Y, Z) for each stage.
        embedding : (C_0,) for the autoregressive context, added after the first stage (Eq. 1).

        Returns
        -------
        n maps (B, K, C, X, Y, Z) for n stages.
        """
        batch = pairs.shape[0]
        x = rearrange(pairs, "b k c x y z -> (b k) c x y z")
        x = self.embedding(laid_out_for(x, self.units[0]))
        skips = []
        for stage, unit in enumerate(self.units):
            x = unit(x if stage == 0 else self.downs[stage - 1](x))
            if stage < len(self.fusions):
                x = self.fusions[stage](x, target_features[stage], embedding is not None)
            if stage == 0 and embedding is not None:
                x = x.add_(embedding.view(1, -1, 1, 1, 1).to(x.dtype))
            skips.append(x)
        outputs = [skips.pop()]
        for up, unit in zip(self.ups, self.up_units, strict=True):
            outputs.append(unit(up(outputs[-1], skips.pop())))
        return [rearrange(o, "(b k) c x y z -> b k c x y z", b=batch) for o in outputs]


class TargetDecoder(nn.Module):
    """Decode the target's features with the context's help into (B, 1, X, Y, Z)."""

    def __init__(self, config: NetworkConfig, codes: PositionCodes | None) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.units = nn.ModuleList([ResidualUnit(c, config.norm) for c in widths])
        self.fusions = nn.ModuleList(
            [
                ConcatContextToTarget(c)
                if codes is None
                else AttentionContextToTarget(c, config, codes)
                for c in widths
            ]
        )
        self.ups = nn.ModuleList([UpMerge(a, b) for a, b in pairwise(widths)])
        self.last_unit = ResidualUnit(widths[-1], config.norm)
        self.head = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, target_features: list[Tensor], means: list[ContextMeans]) -> Tensor:
        skips = list(target_features)
        x = skips.pop()
        for stage, (unit, fusion) in enumerate(zip(self.units, self.fusions, strict=True)):
            x = x if stage == 0 else self.ups[stage - 1](x, skips.pop())
            x = fusion(unit(x), means[stage])
        return self.head(self.last_unit(x))


class ICLNetwork(nn.Module):
    """Predict the target's label from image-label pairs of other subjects.

    One class for Medverse and Neuroverse3D; `config.architecture` chooses the fusion and
    whether there is an autoregressive branch.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.codes = PositionCodes(config) if config.autoregressive else None
        self.target_encoder = TargetEncoder(config)
        self.context_branch = ContextBranch(config, self.codes)
        self.target_decoder = TargetDecoder(config, self.codes)
        if config.autoregressive:
            self.autoregressive_embedding = nn.Parameter(torch.randn(config.channels[0]) * 0.02)

    def forward(
        self,
        target: Tensor,
        context_image: Pairs,
        context_label: Pairs,
        ar_image: Tensor | None = None,
        ar_label: Tensor | None = None,
        *,
        mini_context_size: int | None = None,
        target_features: list[Tensor] | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Predict (B, 1, X, Y, Z) in label units; a mask is the prediction above 0.5.

        Parameters
        ----------
        target : (B, 1, X, Y, Z), intensities in [0, 1], sides divisible by `config.multiple`.
        context_image, context_label : (B, L, 1, X, Y, Z), L >= 1; tensors, or read when taken.
        ar_image, ar_label : (B, 1, 1, X, Y, Z), both or neither; the coarser scale's target
            and prediction. Only with an autoregressive branch.
        mini_context_size : pairs in one pass; None chooses by free memory. Any size gives
            the same answer up to rounding.
        target_features : `target_encoder(target)`, where several questions are asked of one
            target; None computes them.
        generator : training only: draws which mini-context keeps its graph (`context_mean`).

        Raises
        ------
        InputError : shapes that do not fit each other or the network.

        Source: Medverse Eq. 2, Neuroverse3D Algorithm 1.
        """
        self._check(target, context_image, context_label, ar_image, ar_label)
        size = context_image.shape[1]
        if mini_context_size is None:
            mini_context_size = choose_mini_context_size(self.config, target, size)
        if mini_context_size < 1:
            raise InputError(f"mini_context_size must be at least 1, got {mini_context_size}")

        features = target_features or self.target_encoder(target)

        def context_features(part: slice) -> list[Tensor]:
            pairs = torch.cat([context_image[:, part], context_label[:, part]], dim=2)
            return self.context_branch(pairs, features)

        semantic = context_mean(context_features, size, mini_context_size, generator)
        means = [ContextMeans(mean) for mean in semantic]
        if ar_image is not None and ar_label is not None:
            ar_pair = torch.cat([ar_image, ar_label], dim=2)
            maps = self.context_branch(ar_pair, features, self.autoregressive_embedding)
            means = [ContextMeans(s, a[:, 0]) for s, a in zip(semantic, maps, strict=True)]
        prediction = self.target_decoder(features, means)
        return prediction.sigmoid() if self.config.output == "sigmoid" else prediction

    def _check(
        self,
        target: Tensor,
        image: Pairs,
        label: Pairs,
        ar_image: Tensor | None,
        ar_label: Tensor | None,
    ) -> None:
        if target.ndim != 5 or target.shape[1] != 1:
            raise InputError(f"target must be (B, 1, X, Y, Z), got {tuple(target.shape)}")
        batch, sides = target.shape[0], tuple(target.shape[2:])
        if any(side % self.config.multiple for side in sides):
            raise InputError(
                f"every side must divide by {self.config.multiple}, got {sides}; "
                "pad the volumes or use predict_array, which pads for you"
            )
        if len(image.shape) != 6 or image.shape[1] < 1:
            raise InputError(
                f"context must be (B, L, 1, X, Y, Z) with L >= 1, got {tuple(image.shape)}"
            )
        wanted: dict[str, tuple[Pairs, int]] = {
            "context_image": (image, image.shape[1]),
            "context_label": (label, image.shape[1]),
        }
        if (ar_image is None) != (ar_label is None):
            raise InputError("ar_image and ar_label go together: give both or neither")
        if ar_image is not None and ar_label is not None:
            if not self.config.autoregressive:
                raise InputError(f"{self.config.architecture} has no autoregressive branch")
            wanted |= {"ar_image": (ar_image, 1), "ar_label": (ar_label, 1)}
        for name, (tensor, pairs) in wanted.items():
            if tuple(tensor.shape) != (batch, pairs, 1, *sides):
                raise InputError(
                    f"{name} must be {(batch, pairs, 1, *sides)}, got {tuple(tensor.shape)}"
                )
