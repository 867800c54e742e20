"""How context and target features meet: by concatenation (Neuroverse3D) or by BAM (Medverse).

Both kinds offer the same two modules with the same calls, so that the network does not
know which it holds:
`target_to_context(context, target, autoregressive)` and `context_to_target(target, means)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from .attention import BlockwiseCrossAttention, sincos_positions
from .blocks import Mix, gelu
from .config import NetworkConfig


@dataclass
class ContextMeans:
    """Mean features of one decoder stage, (B, C, X, Y, Z): semantic, and autoregressive if any."""

    semantic: Tensor
    autoregressive: Tensor | None = None


class PositionCodes(nn.Module):
    """Positions of the blocks and the codes that tell whose blocks they are.

    Shared by every BAM of a network. Source: Medverse Eqs. 7-8 (P and R).
    """

    positions: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.attention_dim
        self.register_buffer("positions", sincos_positions(config.blocks_per_axis, dim))
        self.target_code = nn.Parameter(torch.randn(dim) * 0.02)
        self.autoregressive_code = nn.Parameter(torch.randn(dim) * 0.02)

    def target(self) -> Tensor:
        return self.positions + self.target_code

    def context(self, autoregressive: bool) -> Tensor:
        return self.positions + self.autoregressive_code if autoregressive else self.positions


def make_attention(channels: int, config: NetworkConfig) -> BlockwiseCrossAttention:
    """Return the BAM of one stage."""
    return BlockwiseCrossAttention(
        channels,
        config.attention_dim,
        config.blocks_per_axis,
        config.partition,
        config.position_bias,
    )


class ConcatTargetToContext(nn.Module):
    """Show every context pair the target's features. Source: Neuroverse3D Eqs. 3-4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = Mix(channels, channels, channels)

    def forward(self, context: Tensor, target: Tensor, autoregressive: bool) -> Tensor:
        """Fuse (B * K, C, X, Y, Z) with (B, C, X, Y, Z); this kind has no second context."""
        assert not autoregressive
        shown = repeat(target, "b ... -> (b k) ...", k=context.shape[0] // target.shape[0])
        return gelu(self.mix.add_second(self.mix.first(context), shown).add_(context))


class ConcatContextToTarget(nn.Module):
    """Give the target the mean context features. Source: Neuroverse3D Eqs. 3, 5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = Mix(channels, channels, channels)

    def forward(self, target: Tensor, means: ContextMeans) -> Tensor:
        return gelu(self.mix.add_second(self.mix.first(means.semantic), target).add_(target))


class AttentionTargetToContext(nn.Module):
    """Show every context pair the target's features through BAM (context is the query)."""

    def __init__(self, channels: int, config: NetworkConfig, codes: PositionCodes) -> None:
        super().__init__()
        self.attention = make_attention(channels, config)
        self.mix = Mix(channels, channels, channels)
        self.codes = [codes]  # in a list: shared, so not a submodule of every fusion

    def forward(self, context: Tensor, target: Tensor, autoregressive: bool) -> Tensor:
        """Fuse (B * K, C, X, Y, Z) with (B, C, X, Y, Z)."""
        codes = self.codes[0]
        shown, _ = self.attention(
            context,
            [target],
            [self.mix.second(target)],  # rows of the attention sum to one: the bias comes through
            codes.context(autoregressive),
            [codes.target()],
        )
        return gelu(self.mix.add_first(shown, context).add_(context))


class AttentionContextToTarget(nn.Module):
    """Give the target the mean context features through BAM (target is the query)."""

    def __init__(self, channels: int, config: NetworkConfig, codes: PositionCodes) -> None:
        super().__init__()
        self.attention = make_attention(channels, config)
        self.mix = Mix(channels, channels, channels)
        self.codes = [codes]

    def forward(self, target: Tensor, means: ContextMeans) -> Tensor:
        codes = self.codes[0]
        sources, source_codes = [means.semantic], [codes.context(False)]
        if means.autoregressive is not None:
            sources.append(means.autoregressive)
            source_codes.append(codes.context(True))
        given, _ = self.attention(
            target,
            sources,
            [self.mix.first(source) for source in sources],
            codes.target(),
            source_codes,
        )
        return gelu(self.mix.add_second(given, target).add_(target))
