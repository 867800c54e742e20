"""Adaptive parallel-sequential processing: any number of pairs in fixed memory.

Source: Neuroverse3D Algorithm 1; training: its section 3.1, Eqs. 2 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .blocks import is_channels_last


def merge_context_mean(mean: Tensor, seen: int, mini: Tensor) -> Tensor:
    """Fold one mini-context into the running mean of the context.

    Any split of the pairs gives the same mean, up to rounding.

    Parameters
    ----------
    mean : (B, C, X, Y, Z)  mean over the pairs seen so far; not modified.
    seen : pairs behind `mean`, at least 1.
    mini : (B, K, C, X, Y, Z)  features of the next K >= 1 pairs.

    Source: Neuroverse3D Algorithm 1.
    """
    size = mini.shape[1]
    return mean.lerp(pair_mean(mini), size / (seen + size))


def pair_mean(maps: Tensor) -> Tensor:
    """Average (B, K, C, X, Y, Z) over the K pairs; a single pair is returned itself.

    As a product in the order of the memory: with channels last, `Tensor.mean` takes several
    times longer, and twenty times in bfloat16.
    """
    batch, pairs = maps.shape[:2]
    if pairs == 1:
        return maps[:, 0]
    if not is_channels_last(maps.flatten(0, 1)):
        return maps.mean(dim=1)
    rows = maps.permute(0, 1, 3, 4, 5, 2).reshape(batch, pairs, -1)
    mean = (maps.new_ones(1, pairs) @ rows).div_(pairs)
    return mean.view(batch, *maps.shape[3:], -1).permute(0, 4, 1, 2, 3)


def context_mean(
    features: Callable[[slice], Sequence[Tensor]],
    context_size: int,
    mini_context_size: int,
    generator: Generator | None = None,
) -> list[Tensor]:
    """Average the context features of all pairs, at most `mini_context_size` at a time.

    Parameters
    ----------
    features : maps a slice of pairs to one (B, K, C, X, Y, Z) tensor for each stage.
    context_size : L, at least 1.
    generator : for training in fixed memory. The n mini-contexts come in a drawn order, only
        the last keeps its graph, and its gradient is multiplied by n: over all orders that is
        the gradient of the whole context (Eq. 2). The mean itself is the same. None keeps
        every graph.

    Returns
    -------
    One (B, C, X, Y, Z) mean for each stage.

    Source: Neuroverse3D Eq. 1 and Algorithm 1.
    """
    starts = list(range(0, context_size, mini_context_size))
    if generator is not None:
        starts = [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]
    means: list[Tensor] = []
    seen = 0
    for number, start in enumerate(starts, 1):
        part = slice(start, min(start + mini_context_size, context_size))
        forgets = generator is not None and number < len(starts)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not forgets):
            minis = features(part)
        if generator is not None and number == len(starts):
            minis = [scale_gradient(mini, len(starts)) for mini in minis]
        if seen:
            means = [
                merge_context_mean(m, seen, mini) for m, mini in zip(means, minis, strict=True)
            ]
        else:
            means = [pair_mean(mini) for mini in minis]
        seen += part.stop - part.start
    return means


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x`, whose gradient will arrive multiplied by `factor`."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled
