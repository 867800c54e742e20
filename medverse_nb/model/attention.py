"""Blockwise cross-attention (BAM): blocks, positions, attention.

Source: Medverse Eqs. 5-9. Deviations, as in the released weights: projections have a
bias, and the target's blocks carry a learned code of their own. Our own models can add a
relative position bias: over 4 x 4 x 4 blocks the sin-cos codes hardly differ, so without it
attention starts uniform, averages far-apart blocks, and mostly stays so.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import is_channels_last
from .config import Partition, PositionBias

# Added to a block's score for the block at its own place, before training: that block then
# gets 0.8 of the attention among 64 alike ones, and the fusion starts voxel by voxel.
SAME_BLOCK_BIAS = 5.5

# Axis order of a block's token is x, y, z row-major: token = (i * p + j) * p + k.
BLOCKS: dict[Partition, str] = {
    "contiguous": "(p1 x) (p2 y) (p3 z)",  # a block is a box of neighbouring voxels
    "interleaved": "(x p1) (y p2) (z p3)",  # a block is every p-th voxel of each axis
}


def to_blocks(x: Tensor, p: int, partition: Partition, channels_last: bool = False) -> Tensor:
    """Cut (N, C, X, Y, Z) into blocks (N, p**3, C * voxels); sides must divide by `p`.

    channels_last : blocks of (voxels * C) instead, a plain copy where the map is laid out so.
    """
    if channels_last:
        pattern = f"n {BLOCKS[partition]} c -> n (p1 p2 p3) (x y z c)"
        return rearrange(x.permute(0, 2, 3, 4, 1), pattern, p1=p, p2=p, p3=p)
    pattern = f"n c {BLOCKS[partition]} -> n (p1 p2 p3) (c x y z)"
    return rearrange(x, pattern, p1=p, p2=p, p3=p)


def from_blocks(
    blocks: Tensor,
    sides: tuple[int, int, int],
    p: int,
    partition: Partition,
    channels_last: bool = False,
) -> Tensor:
    """Undo `to_blocks`: (N, p**3, C * voxels) to (N, C, X, Y, Z) with these `sides`."""
    x, y, z = (side // p for side in sides)
    if channels_last:
        pattern = f"n (p1 p2 p3) (x y z c) -> n {BLOCKS[partition]} c"
        whole = rearrange(blocks, pattern, p1=p, p2=p, p3=p, x=x, y=y, z=z)
        return whole.permute(0, 4, 1, 2, 3)
    pattern = f"n (p1 p2 p3) (c x y z) -> n c {BLOCKS[partition]}"
    return rearrange(blocks, pattern, p1=p, p2=p, p3=p, x=x, y=y, z=z)


def pool_blocks(x: Tensor, p: int, partition: Partition) -> Tensor:
    """Average each block of (N, C, X, Y, Z): (N, p**3, C). Source: Medverse Eqs. 5-6.

    One small product an axis, in the order of the memory: ten times faster than a reduction
    over the blocks, which reads across it.
    """
    n, c = x.shape[:2]
    shares = [block_shares(side, p, partition).to(x) for side in x.shape[2:]]
    if is_channels_last(x):
        y = x.permute(0, 2, 3, 4, 1)
        for axis, share in enumerate(shares):
            y = share @ y.reshape(n * p**axis, share.shape[1], -1)
        return y.reshape(n, p**3, c)
    y = x.reshape(n * c, x.shape[2], -1)
    y = (shares[0] @ y).reshape(n * c * p, x.shape[3], -1)
    y = shares[1] @ y @ shares[2].T
    return y.reshape(n, c, p**3).transpose(1, 2)


@lru_cache(maxsize=64)
def block_shares(side: int, p: int, partition: Partition) -> Tensor:
    """Return the weight of each of `side` voxels in the mean of each of `p` blocks, (p, side)."""
    if side % p:
        raise ValueError(f"a side of {side} does not divide into {p} blocks")
    with torch.inference_mode(False):  # kept, and may be asked for by a training next
        voxel = torch.arange(side)
        block = voxel // (side // p) if partition == "contiguous" else voxel % p
        return (torch.arange(p)[:, None] == block).double() * (p / side)


def sincos_positions(p: int, dim: int, temperature: float = 10000.0) -> Tensor:
    """Return the fixed 3D position codes (1, p**3, dim), dim a multiple of 6."""
    frequencies = temperature ** -(torch.arange(dim // 6, dtype=torch.float64) / (dim // 6))
    axis = torch.arange(p, dtype=torch.float64)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    parts = []
    for position in (y, x, z):  # the order of the released weights
        angle = position.reshape(-1, 1) * frequencies
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)[None].float()


class RelativePositionBias(nn.Module):
    """Learn one number for each offset between two of `p`**3 blocks, shared by all sources."""

    offsets: Tensor

    def __init__(self, p: int) -> None:
        super().__init__()
        sides = (2 * p - 1,) * 3
        table = torch.zeros(sides)
        table[p - 1, p - 1, p - 1] = SAME_BLOCK_BIAS
        self.table = nn.Parameter(table.flatten())
        place = torch.cartesian_prod(*[torch.arange(p)] * 3).view(-1, 3)
        x, y, z = (place[:, None] - place[None] + p - 1).unbind(-1)
        self.register_buffer("offsets", (x * sides[1] + y) * sides[2] + z, persistent=False)

    def forward(self, queries: int, sources: int) -> Tensor:
        """Return what to add to the scores: (queries * p**3, sources * p**3)."""
        return self.table[self.offsets].repeat(queries, sources)


class BlockwiseCrossAttention(nn.Module):
    """Let every block of the query look at every block of the sources.

    Values are not projected: attention moves whole blocks, at full resolution.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        p: int,
        partition: Partition,
        position_bias: PositionBias = "none",
    ) -> None:
        super().__init__()
        self.query = nn.Linear(channels, dim)
        self.key = nn.Linear(channels, dim)
        self.bias = RelativePositionBias(p) if position_bias == "relative" else None
        self.p, self.partition, self.scale = p, partition, dim**-0.5

    def weights(
        self, query: Tensor, sources: list[Tensor], query_code: Tensor, source_codes: list[Tensor]
    ) -> Tensor:
        """Return the attention (B, K * p**3, S * p**3), rows summing to one.

        Parameters
        ----------
        query : (B * K, C, X, Y, Z), K maps for each of the B sources' batch.
        sources : S maps (B, C, X, Y, Z).
        query_code, source_codes : (1, p**3, dim) positions plus learned codes.

        Source: Medverse Eqs. 5-9.
        """
        batch = sources[0].shape[0]
        q = self.query(pool_blocks(query, self.p, self.partition)) + query_code
        k = [
            self.key(pool_blocks(source, self.p, self.partition)) + code
            for source, code in zip(sources, source_codes, strict=True)
        ]
        q = rearrange(q, "(b k) t m -> b (k t) m", b=batch)
        scores = q @ torch.cat(k, dim=1).transpose(1, 2)
        wide = torch.promote_types(scores.dtype, torch.float32)  # float64 stays, bfloat16 does not
        scores = scores.to(wide) * self.scale
        if self.bias is not None:
            scores = scores + self.bias(query.shape[0] // batch, len(sources))
        return scores.softmax(dim=-1)

    def forward(
        self,
        query: Tensor,
        sources: list[Tensor],
        values: list[Tensor],
        query_code: Tensor,
        source_codes: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the attended map (B * K, C, X, Y, Z) and the attention of `weights`.

        `values` are the maps to move, one for each source: the sources themselves in
        Medverse, or any pointwise map of them.
        """
        weights = self.weights(query, sources, query_code, source_codes)
        last = is_channels_last(values[0])
        blocks = [to_blocks(value, self.p, self.partition, last) for value in values]
        moved = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        mixed = weights.to(moved.dtype) @ moved  # (B, K * p**3, C * voxels)
        mixed = rearrange(mixed, "b (k t) v -> (b k) t v", t=self.p**3)
        sides = (query.shape[2], query.shape[3], query.shape[4])
        return from_blocks(mixed, sides, self.p, self.partition, last), weights
