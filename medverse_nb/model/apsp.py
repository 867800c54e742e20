"""Adaptive parallel-sequential processing: any number of pairs in fixed memory.

Source: Neuroverse3D Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


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
    return mean + (mini.mean(dim=1) - mean) * (size / (seen + size))


def context_mean(
    features: Callable[[slice], Sequence[Tensor]], context_size: int, mini_context_size: int
) -> list[Tensor]:
    """Average the context features of all pairs, at most `mini_context_size` at a time.

    Parameters
    ----------
    features : maps a slice of pairs to one (B, K, C, X, Y, Z) tensor for each stage.
    context_size : L, at least 1.

    Returns
    -------
    One (B, C, X, Y, Z) mean for each stage.

    Source: Neuroverse3D Eq. 1 and Algorithm 1.
    """
    means: list[Tensor] = []
    for start in range(0, context_size, mini_context_size):
        minis = features(slice(start, min(start + mini_context_size, context_size)))
        if start == 0:
            means = [mini.mean(dim=1) for mini in minis]
        else:
            means = [
                merge_context_mean(m, start, mini) for m, mini in zip(means, minis, strict=True)
            ]
    return means
