"""Reading recorded attention: blocks, windows over a voxel, entropy and diagonal share."""

import numpy as np
import pytest
import torch
import xarray as xr

from medverse_nb.errors import InputError
from medverse_nb.evaluation.attention import (
    block_numbers,
    diagonal_share,
    entropy,
    spread,
    windows_over,
)
from medverse_nb.model.attention import to_blocks

P, STAGES = 2, 3


def record(partition: str = "contiguous") -> xr.Dataset:
    return xr.Dataset(
        coords={
            "window": [3, 5, 8],
            "stage": np.arange(STAGES),
            "scale": ("window", [1, 2, 2]),
            "start": (("window", "axis"), [[0, 0, 0], [0, 0, 0], [6, 0, 0]]),
            "sides": (("window", "axis"), [[8, 8, 8]] * 3),
        },
        attrs={"blocks_per_axis": P, "partition": partition},
    )


@pytest.mark.parametrize("partition", ["contiguous", "interleaved"])
@pytest.mark.parametrize("stage", range(STAGES))
def test_blocks_are_those_the_network_cuts(partition, stage):
    """Cut a map of voxel numbers as the model does; each voxel has to be found in its block."""
    sides = (8, 16, 24)
    blocks = block_numbers(record(partition), sides, stage)
    coarse = tuple(side >> stage for side in sides)
    numbers = torch.arange(np.prod(coarse)).view(1, 1, *coarse)
    cut = to_blocks(numbers, P, partition)[0].numpy()
    owner = np.empty(np.prod(coarse), int)
    for block, members in enumerate(cut):
        owner[members] = block
    expected = owner.reshape(coarse)
    for axis in range(3):
        expected = expected.repeat(1 << stage, axis)
    assert np.array_equal(blocks, expected)


def test_interleaved_blocks_are_scattered_and_contiguous_ones_are_boxes():
    boxes, scattered = (
        block_numbers(record(partition), (8, 8, 8), 0) == 0
        for partition in ("contiguous", "interleaved")
    )
    assert boxes[:4, :4, :4].all()
    assert boxes.sum() == scattered.sum() == 64
    assert scattered[::2, ::2, ::2].all()


@pytest.mark.parametrize(("sides", "stage"), [((8, 8, 8), 7), ((8, 8, 12), 2)])
def test_what_has_no_blocks_is_told(sides, stage):
    with pytest.raises(InputError, match="stage"):
        block_numbers(record(), sides, stage)


def test_windows_over_a_voxel_come_the_most_central_first():
    assert windows_over(record(), 1, (3, 3, 3)) == [3]
    assert windows_over(record(), 2, (6, 4, 4)) == [5, 8]
    assert windows_over(record(), 2, (7, 4, 4)) == [8, 5]
    assert windows_over(record(), 2, (10, 4, 4)) == [8]
    assert windows_over(record(), 2, (14, 0, 0)) == []
    assert windows_over(record(), 4, (0, 0, 0)) == []


def test_spreading_paints_blocks_up_to_one():
    blocks = block_numbers(record(), (8, 8, 8), 0)
    weights = np.zeros(8)
    weights[[0, 7]] = 0.2, 0.4
    painted = spread(weights, blocks)
    assert painted.dtype == np.float32
    assert (painted[:4, :4, :4] == 0.5).all()
    assert (painted[4:, 4:, 4:] == 1).all()
    assert painted.sum() == 64 * 1.5
    assert spread(np.full(8, np.nan), blocks).max() == 0


def attention(values, dims=("query", "key")) -> xr.DataArray:
    values = np.asarray(values, np.float16)
    return xr.DataArray(values, dims=dims, coords={d: range(values.shape[-1]) for d in dims[-2:]})


def test_entropy_goes_from_one_key_to_all_alike():
    assert float(entropy(attention(np.eye(4)))) == 0
    assert float(entropy(attention(np.full((4, 4), 0.25)))) == pytest.approx(1)
    half = np.zeros((4, 4))
    half[:, :2] = 0.5
    assert float(entropy(attention(half))) == pytest.approx(0.5)


def test_two_sources_share_one_attention_and_an_absent_one_does_not_count():
    both = attention(np.full((2, 4, 4), 0.125), ("source", "query", "key"))
    assert float(entropy(both)) == pytest.approx(1)
    alone = both.astype(float) * 2
    alone[1] = np.nan
    assert float(entropy(alone)) == pytest.approx(1)
    assert np.isnan(entropy(both * np.nan))


def test_the_diagonal_is_what_stays_at_its_place():
    assert float(diagonal_share(attention(np.eye(4)))) == 1
    assert float(diagonal_share(attention(np.full((4, 4), 0.25)))) == 0.25
    assert float(diagonal_share(attention(np.roll(np.eye(4), 1, 0)))) == 0
    assert np.isnan(diagonal_share(attention(np.full((4, 4), np.nan))))
