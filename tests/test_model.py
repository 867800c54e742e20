import hashlib
import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medverse_nb.errors import InputError, WeightsError
from medverse_nb.model.attention import (
    BlockwiseCrossAttention,
    block_shares,
    from_blocks,
    pool_blocks,
    sincos_positions,
    to_blocks,
)
from medverse_nb.model.blocks import (
    Mix,
    ResidualUnit,
    UpMerge,
    add_pointwise,
    gelu,
    is_channels_last,
    laid_out_for,
    make_down,
)
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.fusion import ContextMeans
from medverse_nb.model.memory import choose_mini_context_size
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.weights import load_network, read_notes, save_network, weights_hash

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = (8, 16, 8)
PARTITIONS = ("contiguous", "interleaved")
KINDS = [("medverse", "contiguous"), ("medverse", "interleaved"), ("neuroverse3d", "interleaved")]
both_partitions = pytest.mark.parametrize("partition", PARTITIONS)
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
all_kinds = pytest.mark.parametrize(("architecture", "partition"), KINDS)


def make_config(architecture="medverse", partition="interleaved", **settings) -> NetworkConfig:
    settings = {"channels": (4, 6), "window": 8, "attention_dim": 12, **settings}
    return NetworkConfig(architecture=architecture, partition=partition, **settings)


def make_network(*kind, dtype=torch.float64, seed=0, **settings) -> ICLNetwork:
    torch.manual_seed(seed)
    return ICLNetwork(make_config(*kind, **settings)).to(dtype).eval()


def draw(*shape, seed=1, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_inputs(batch=1, pairs=5, sides=SIDES, dtype=torch.float64) -> dict[str, torch.Tensor]:
    return {
        "target": draw(batch, 1, *sides, seed=1, dtype=dtype),
        "context_image": draw(batch, pairs, 1, *sides, seed=2, dtype=dtype),
        "context_label": draw(batch, pairs, 1, *sides, seed=3, dtype=dtype).round(),
    }


def draw_feedback(network: ICLNetwork, batch=1, sides=SIDES, dtype=torch.float64):
    if not network.config.autoregressive:
        return {}
    return {
        "ar_image": draw(batch, 1, 1, *sides, seed=4, dtype=dtype),
        "ar_label": draw(batch, 1, 1, *sides, seed=5, dtype=dtype).round(),
    }


# --- the whole network ---------------------------------------------------------------------


@all_kinds
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@torch.inference_mode()
def test_pair_order_and_mini_context_size_change_nothing(architecture, partition, dtype, tolerance):
    network = make_network(architecture, partition, dtype=dtype)
    inputs = draw_inputs(dtype=dtype) | draw_feedback(network, dtype=dtype)
    expected = network(**inputs, mini_context_size=5)
    assert expected.dtype == dtype
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = inputs | {k: inputs[k][:, order] for k in ("context_image", "context_label")}
    for size in (None, 1, 2, 3, 4, 5, 99):
        for given in (inputs, turned):
            got = network(**given, mini_context_size=size)
            assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@all_kinds
@torch.inference_mode()
def test_every_input_changes_the_output(architecture, partition):
    network = make_network(architecture, partition)
    inputs = draw_inputs(pairs=2) | draw_feedback(network)
    expected = network(**inputs)
    for name, value in inputs.items():
        changed = value.clone()
        changed[:, -1] = 1 - changed[:, -1]
        got = network(**inputs | {name: changed})
        assert (got - expected).abs().max() > 1e-6, name


@all_kinds
@torch.inference_mode()
def test_pairs_are_pairs(architecture, partition):
    """Labels dealt to the wrong images give another answer."""
    network = make_network(architecture, partition)
    inputs = draw_inputs(pairs=2)
    swapped = inputs | {"context_label": inputs["context_label"].flip(1)}
    assert (network(**inputs) - network(**swapped)).abs().max() > 1e-6


@all_kinds
@torch.inference_mode()
def test_a_batch_equals_its_parts(architecture, partition):
    network = make_network(architecture, partition)
    inputs = draw_inputs(batch=2, pairs=3) | draw_feedback(network, batch=2)
    whole = network(**inputs, mini_context_size=2)
    for one in range(2):
        alone = network(**{k: v[one : one + 1] for k, v in inputs.items()}, mini_context_size=2)
        assert (whole[one : one + 1] - alone).abs().max() < 1e-9
    assert (whole[0] - whole[1]).abs().max() > 1e-6


@all_kinds
@torch.inference_mode()
def test_nothing_is_random(architecture, partition):
    network = make_network(architecture, partition)
    inputs = draw_inputs() | draw_feedback(network)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = network(**inputs)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(network(**inputs), first)


@all_kinds
@both_layouts
@pytest.mark.parametrize("mini_context_size", [1, 2, 3])
def test_memory_format_and_gradients_change_nothing(
    architecture, partition, layout, mini_context_size
):
    network = make_network(architecture, partition)
    inputs = draw_inputs(batch=2, pairs=3) | draw_feedback(network, batch=2)
    given = {name: value.clone() for name, value in inputs.items()}
    expected = network(**inputs, mini_context_size=3)
    network.to(memory_format=layout)
    learning = network(**inputs, mini_context_size=mini_context_size)
    with torch.inference_mode():  # where maps are overwritten
        features = network.target_encoder(inputs["target"])
        kept = [feature.clone() for feature in features]
        for _ in range(2):
            got = network(**inputs, mini_context_size=mini_context_size, target_features=features)
            assert torch.allclose(got, expected, atol=1e-12)
        assert all(map(torch.equal, features, kept))
    assert torch.allclose(learning, expected, atol=1e-12)
    assert all(torch.equal(inputs[name], given[name]) for name in inputs)


@both_partitions
@torch.inference_mode()
def test_the_autoregressive_pair_is_not_one_more_pair(partition):
    network = make_network("medverse", partition)
    inputs, pair = draw_inputs(pairs=2), draw_feedback(network)
    fed_back = network(**inputs, **pair)
    one_more = inputs | {
        "context_image": torch.cat([inputs["context_image"], pair["ar_image"]], 1),
        "context_label": torch.cat([inputs["context_label"], pair["ar_label"]], 1),
    }
    assert (fed_back - network(**inputs)).abs().max() > 1e-6
    assert (fed_back - network(**one_more)).abs().max() > 1e-6


@torch.inference_mode()
def test_partitions_differ():
    contiguous = make_network("medverse", "contiguous")
    interleaved = make_network("medverse", "interleaved")
    interleaved.load_state_dict(contiguous.state_dict())
    inputs = draw_inputs()
    assert (contiguous(**inputs) - interleaved(**inputs)).abs().max() > 1e-6


@torch.inference_mode()
def test_sigmoid_is_inside_the_network():
    plain, squashed = make_network(output="identity"), make_network(output="sigmoid")
    squashed.load_state_dict(plain.state_dict())
    inputs = draw_inputs()
    assert torch.equal(squashed(**inputs), plain(**inputs).sigmoid())


def test_every_parameter_learns():
    """A parameter without a gradient is wired to nothing."""
    for kind in KINDS:
        network = make_network(*kind)
        network(**draw_inputs(pairs=2), **draw_feedback(network)).square().sum().backward()
        dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead, kind


@torch.inference_mode()
def test_neuroverse3d_refuses_feedback():
    network = make_network("neuroverse3d")
    pair = draw(1, 1, 1, *SIDES)
    with pytest.raises(InputError, match="neuroverse3d has no autoregressive branch"):
        network(**draw_inputs(), ar_image=pair, ar_label=pair)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": draw(1, *SIDES)}, r"target must be \(B, 1, X, Y, Z\), got \(1, 8, 16, 8\)"),
        ({"target": draw(1, 2, *SIDES)}, r"target must be .* got \(1, 2, 8, 16, 8\)"),
        ({"target": draw(1, 1, 8, 16, 12)}, r"divide by 8, got \(8, 16, 12\)"),
        ({"context_image": draw(1, 2, *SIDES)}, r"context must be .* got \(1, 2, 8, 16, 8\)"),
        ({"context_image": draw(1, 0, 1, *SIDES)}, r"L >= 1, got \(1, 0, 1"),
        ({"context_image": draw(2, 2, 1, *SIDES)}, r"context_image must be \(1, 2, 1"),
        ({"context_image": draw(1, 2, 2, *SIDES)}, r"context_image must be \(1, 2, 1"),
        ({"context_image": draw(1, 2, 1, 8, 8, 8)}, r"context_image must be \(1, 2, 1, 8, 16"),
        ({"context_label": draw(1, 3, 1, *SIDES)}, r"context_label must be \(1, 2, 1"),
        ({"context_label": draw(1, 2, 1, 16, 16, 8)}, "context_label must be"),
        ({"context_label": draw(1, 2, *SIDES)}, "context_label must be"),
        ({"ar_image": draw(1, 1, 1, *SIDES)}, "give both or neither"),
        ({"ar_label": draw(1, 1, 1, *SIDES)}, "give both or neither"),
        (
            {"ar_image": draw(1, 2, 1, *SIDES), "ar_label": draw(1, 1, 1, *SIDES)},
            r"ar_image must be \(1, 1, 1",
        ),
        (
            {"ar_image": draw(1, 1, 1, *SIDES), "ar_label": draw(1, 1, 1, 8, 8, 8)},
            r"ar_label must be \(1, 1, 1",
        ),
        ({"mini_context_size": 0}, "mini_context_size must be at least 1, got 0"),
    ],
)
@torch.inference_mode()
def test_wrong_shapes_are_named(changes, message):
    network = make_network()
    inputs = draw_inputs(pairs=2)
    network(**inputs)  # right as they are
    with pytest.raises(InputError, match=message):
        network(**inputs | changes)


@pytest.mark.parametrize(
    ("architecture", "millions"), [("medverse", 71.05), ("neuroverse3d", 70.85)]
)
def test_full_size_parameter_counts(architecture, millions):
    with torch.device("meta"):
        network = ICLNetwork(NetworkConfig(architecture=architecture))
    count = sum(p.numel() for p in network.parameters())
    assert f"{count / 1e6:.2f}" == f"{millions:.2f}"


# --- memory ------------------------------------------------------------------------------------


def test_mini_context_size_follows_free_memory(monkeypatch):
    target = torch.zeros(1, 1, 8, 8, 8)
    one_pair = 512 * 4 * 8 * 4  # voxels, channels, live maps, bytes
    config = make_config()
    for free, expected in [(0, 1), (2 * 3 * one_pair, 3), (10**12, 6)]:
        monkeypatch.setattr("medverse_nb.model.memory.free_memory", lambda _device, f=free: f)
        with torch.no_grad():
            assert choose_mini_context_size(config, target, 6) == expected


def test_a_cpu_takes_few_large_pairs_at_a_time():
    config = make_config()  # of four channels
    for side, expected in [(8, 6), (64, 4), (128, 1)]:
        target = torch.empty(1, 1, side, side, side)
        with torch.no_grad():
            assert choose_mini_context_size(config, target, 6) == expected


# --- blocks ------------------------------------------------------------------------------------


@both_layouts
def test_gelu_overwrites_only_without_a_gradient(layout):
    x = (4 * draw(2, 3, 4, 4, 4) - 2).to(memory_format=layout)
    expected = nn.functional.gelu(x)
    learning = x.clone().requires_grad_()
    got = gelu(learning)
    assert torch.equal(learning, x)
    got.sum().backward()
    assert learning.grad.any()
    with torch.no_grad():
        assert torch.allclose(gelu(x), expected, atol=1e-12)
        assert torch.allclose(x, expected, atol=1e-12)
    assert got.stride() == x.stride()


@both_layouts
def test_one_channel_is_laid_out_as_the_weights_are(layout):
    unit = ResidualUnit(3).to(memory_format=layout)
    x = draw(2, 1, 4, 4, 4)
    laid = laid_out_for(x, unit)
    assert torch.equal(laid, x)
    assert (laid.stride(1) == 1) == (layout is torch.channels_last_3d)


@both_layouts
def test_adding_a_pointwise_convolution(layout):
    total, x = (draw(2, c, 2, 4, 2, seed=c).to(memory_format=layout) for c in (4, 3))
    weight = draw(4, 5, 1, 1, 1, seed=9)[:, 1:4]
    expected = total + nn.functional.conv3d(x, weight)
    before = total.clone()
    assert torch.allclose(add_pointwise(total, x, weight), expected, atol=1e-12)
    assert torch.equal(total, before)
    with torch.no_grad():
        assert torch.allclose(add_pointwise(total, x, weight), expected, atol=1e-12)
    assert torch.allclose(total, expected, atol=1e-12)


@torch.inference_mode()
def test_residual_unit_by_hand():
    unit = ResidualUnit(1).double()
    for conv, weight, bias in ((unit.conv1, 2.0, 0.5), (unit.conv2, -1.0, 0.25)):
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1, 1] = weight
        conv.bias.fill_(bias)

    def gelu(v):
        return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))

    x = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64).view(1, 1, 3, 1, 1)
    expected = [gelu(v + 0.25 - gelu(2 * v + 0.5)) for v in (-1.0, 0.3, 2.0)]
    assert unit(x).flatten().tolist() == pytest.approx(expected, abs=1e-12)


@torch.inference_mode()
def test_down_and_up_change_sides_and_width():
    x = draw(2, 3, 4, 6, 8)
    down = make_down(3, 5).double()(x)
    assert down.shape == (2, 5, 2, 3, 4)
    pool = make_down(3, 3)
    assert isinstance(pool, nn.MaxPool3d)
    assert pool(x)[0, 0, 0, 0, 0] == x[0, 0, :2, :2, :2].max()
    up = UpMerge(5, 3).double()
    assert up(down, x).shape == x.shape
    up.mix.weight.zero_()
    up.mix.bias.zero_()
    up.mix.weight[0, 0] = 1.0  # the first of the enlarged maps comes first: [up, skip]
    constant = up(torch.ones(1, 5, 1, 1, 1).double(), torch.zeros(1, 3, 2, 2, 2).double())
    assert torch.equal(constant[0, 0], torch.ones(2, 2, 2).double())
    assert not constant[0, 1:].any()


@torch.inference_mode()
def test_mixing_apart_is_convolving_what_is_laid_together():
    torch.manual_seed(0)
    mix = Mix(3, 5, 4).double()
    a, b = draw(2, 3, 2, 4, 2, seed=1), draw(2, 5, 2, 4, 2, seed=2)
    expected = mix(torch.cat([a, b], dim=1))  # the bias comes once, with the first share taken
    assert torch.allclose(mix.add_second(mix.first(a), b), expected, atol=1e-12)
    assert torch.allclose(mix.add_first(mix.second(b), a), expected, atol=1e-12)


@torch.inference_mode()
def test_up_merge_is_upsampling_then_convolving():
    torch.manual_seed(0)
    up = UpMerge(5, 3).double()
    x, skip = draw(2, 5, 2, 3, 4, seed=1), draw(2, 3, 4, 6, 8, seed=2)
    enlarged = nn.functional.interpolate(x, scale_factor=2, mode="trilinear")
    expected = up.mix(torch.cat([enlarged, skip], dim=1))
    assert torch.allclose(up(x, skip), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autoregressive", [False, True])
@torch.inference_mode()
def test_fusions_are_the_released_ones(kind, autoregressive):
    """GELU(x + conv1([...])): which half comes first differs between the two directions."""
    network = make_network(*kind)
    autoregressive &= network.config.autoregressive
    into_context = network.context_branch.fusions[0]
    into_target = network.target_decoder.fusions[-1]
    context, target = draw(3, 4, *SIDES, seed=1), draw(1, 4, *SIDES, seed=2)
    semantic, fed_back = draw(1, 4, *SIDES, seed=3), draw(1, 4, *SIDES, seed=4)
    means = ContextMeans(semantic, fed_back if autoregressive else None)
    shown, given = target.expand_as(context), semantic
    if network.codes is not None:
        codes = network.codes
        shown, _ = into_context.attention(
            context, [target], [target], codes.context(autoregressive), [codes.target()]
        )
        sources = [semantic, fed_back][: 1 + autoregressive]
        source_codes = [codes.context(False), codes.context(True)][: 1 + autoregressive]
        given, _ = into_target.attention(target, sources, sources, codes.target(), source_codes)
    gelu = nn.functional.gelu
    expected = gelu(context + into_context.mix(torch.cat([context, shown], dim=1)))
    assert torch.allclose(into_context(context, target, autoregressive), expected, atol=1e-12)
    expected = gelu(target + into_target.mix(torch.cat([given, target], dim=1)))
    assert torch.allclose(into_target(target, means), expected, atol=1e-12)


# --- blockwise cross-attention -----------------------------------------------------------------


def block_members(blocks: torch.Tensor, token: int) -> set[int]:
    return {int(v) for v in blocks[0, token]}


def counted(side: int) -> torch.Tensor:
    return torch.arange(side**3).view(1, 1, side, side, side)


def test_which_voxels_share_a_block_in_4x4x4():
    x = counted(4)  # voxel (i, j, k) holds 16 i + 4 j + k
    contiguous = to_blocks(x, 2, "contiguous")
    assert contiguous.shape == (1, 8, 8)
    assert block_members(contiguous, 0) == {0, 1, 4, 5, 16, 17, 20, 21}
    assert block_members(contiguous, 1) == {2, 3, 6, 7, 18, 19, 22, 23}  # next along z
    assert block_members(contiguous, 2) == {8, 9, 12, 13, 24, 25, 28, 29}  # next along y
    assert block_members(contiguous, 4) == {32, 33, 36, 37, 48, 49, 52, 53}  # next along x
    interleaved = to_blocks(x, 2, "interleaved")
    assert block_members(interleaved, 0) == {0, 2, 8, 10, 32, 34, 40, 42}
    assert block_members(interleaved, 1) == {1, 3, 9, 11, 33, 35, 41, 43}
    assert block_members(interleaved, 2) == {4, 6, 12, 14, 36, 38, 44, 46}
    assert block_members(interleaved, 4) == {16, 18, 24, 26, 48, 50, 56, 58}


def test_which_voxels_share_a_block_in_8x8x8():
    x = counted(8)  # voxel (i, j, k) holds 64 i + 8 j + k; p = 4, token (1, 2, 3) is 27

    def voxels(i, j, k):
        return {64 * a + 8 * b + c for a, b, c in itertools.product(i, j, k)}

    assert block_members(to_blocks(x, 4, "contiguous"), 27) == voxels((2, 3), (4, 5), (6, 7))
    assert block_members(to_blocks(x, 4, "interleaved"), 27) == voxels((1, 5), (2, 6), (3, 7))


@both_partitions
def test_blocks_round_trip(partition):
    x = draw(2, 3, 4, 8, 12)
    blocks = to_blocks(x, 4, partition)
    assert blocks.shape == (2, 64, 3 * 1 * 2 * 3)
    assert torch.equal(from_blocks(blocks, (4, 8, 12), 4, partition), x)
    turned = to_blocks(x, 4, partition, channels_last=True)
    assert torch.equal(turned.view(2, 64, 6, 3).mT.reshape(2, 64, 18), blocks)
    back = from_blocks(turned, (4, 8, 12), 4, partition, channels_last=True)
    assert torch.equal(back, x)
    assert is_channels_last(back)


@both_partitions
def test_pooling_is_the_mean_of_each_block(partition):
    x = draw(2, 3, 4, 8, 12)
    blocks = to_blocks(x, 4, partition).view(2, 64, 3, 6)  # (c x y z): channels outermost
    assert torch.allclose(pool_blocks(x, 4, partition), blocks.mean(-1), atol=1e-12)
    flat = x.to(memory_format=torch.channels_last_3d)
    assert torch.allclose(pool_blocks(flat, 4, partition), blocks.mean(-1), atol=1e-12)


@both_partitions
@both_layouts
@torch.inference_mode()
def test_attention_keeps_the_memory_format_of_what_it_moves(partition, layout):
    attention = make_network("medverse", partition).target_decoder.fusions[-1].attention
    query = draw(3, 4, *SIDES, seed=1)
    sources = [draw(1, 4, *SIDES, seed=seed) for seed in (2, 3)]
    codes = [draw(1, 64, 12, seed=4)] * 2
    expected, _ = attention(query, sources, sources, codes[0], codes)
    sources = [source.to(memory_format=layout) for source in sources]
    moved, _ = attention(query, sources, sources, codes[0], codes)
    assert torch.allclose(moved, expected, atol=1e-12)
    assert moved.is_contiguous(memory_format=layout)


def test_pooling_in_inference_does_not_spoil_training():
    block_shares.cache_clear()
    x = torch.rand(1, 2, 8, 8, 8)
    with torch.inference_mode():
        pool_blocks(x, 4, "contiguous")
    x.requires_grad_()
    pool_blocks(x, 4, "contiguous").sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 1 / 8))


def test_positions_by_hand():
    codes = sincos_positions(2, 12)[0]  # two frequencies an axis: 1 and 1/100
    x, y, z = 1, 0, 1  # token 5

    def waves(v):
        return [math.sin(v), math.sin(v / 100), math.cos(v), math.cos(v / 100)]

    assert codes[5].tolist() == pytest.approx(waves(y) + waves(x) + waves(z), abs=1e-6)
    assert len({tuple(row.tolist()) for row in codes}) == 8  # no two blocks share a code


class NaiveAttention:
    """Medverse Eqs. 5-9 voxel by voxel, for one query map (C, X, Y, Z) and one batch entry."""

    def __init__(self, module: BlockwiseCrossAttention, sides: tuple[int, int, int]) -> None:
        self.module, self.p = module, module.p
        self.voxels = list(itertools.product(*(range(side) for side in sides)))
        self.size = [side // module.p for side in sides]  # of a contiguous block

    def address(self, voxel) -> tuple[int, tuple[int, ...]]:
        """Return a voxel's block, and its place inside the block."""
        quotients = [divmod(v, n) for v, n in zip(voxel, self.size, strict=True)]
        if self.module.partition == "interleaved":
            quotients = [divmod(v, self.p)[::-1] for v in voxel]
        (i, j, k), place = zip(*quotients, strict=True)
        return (i * self.p + j) * self.p + k, place

    def pooled(self, volume):
        """Eqs. 5-6."""
        means = torch.zeros(self.p**3, len(volume), dtype=volume.dtype)
        for voxel in self.voxels:
            block, _ = self.address(voxel)
            means[block] += volume[(slice(None), *voxel)] / math.prod(self.size)
        return means

    def projected(self, volume, linear, code) -> list[list[float]]:
        """Eqs. 7-8."""
        rows = []
        for t, row in enumerate(self.pooled(volume)):
            rows.append([])
            for m in range(len(linear.bias)):
                product = sum(
                    float(w) * float(v) for w, v in zip(linear.weight[m], row, strict=True)
                )
                rows[t].append(product + float(linear.bias[m]) + float(code[0, t, m]))
        return rows

    def bias(self, query: int, key: int) -> float:
        if self.module.bias is None:
            return 0.0
        places = [(t // self.p**2, t // self.p % self.p, t % self.p) for t in (query, key)]
        i, j, k = (a - b + self.p - 1 for a, b in zip(*places, strict=True))
        side = 2 * self.p - 1
        return float(self.module.bias.table[(i * side + j) * side + k])

    def weights(self, query, sources, query_code, source_codes) -> list[list[float]]:
        """Eq. 9, and the relative position bias of our own models."""
        keys = []
        for source, code in zip(sources, source_codes, strict=True):
            keys += self.projected(source, self.module.key, code)
        rows = []
        for t, q in enumerate(self.projected(query, self.module.query, query_code)):
            scores = [
                sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))
                + self.bias(t, number % self.p**3)
                for number, k in enumerate(keys)
            ]
            exponents = [math.exp(score) for score in scores]
            rows.append([e / sum(exponents) for e in exponents])
        return rows

    def attend(self, weights, sources):
        """Y = A V, and back to the volume: a voxel mixes the same place in every block."""
        voxel_at = {self.address(voxel): voxel for voxel in self.voxels}
        answer = torch.zeros_like(sources[0])
        for voxel in self.voxels:
            block, place = self.address(voxel)
            for number, source in enumerate(sources):
                for other in range(self.p**3):
                    there = (slice(None), *voxel_at[other, place])
                    weight = weights[block][number * self.p**3 + other]
                    answer[(slice(None), *voxel)] += weight * source[there]
        return answer


@both_partitions
@pytest.mark.parametrize("position_bias", ["none", "relative"])
@torch.inference_mode()
def test_attention_is_the_papers_equations(partition, position_bias):
    torch.manual_seed(0)
    channels, dim, p = 2, 6, 2
    module = BlockwiseCrossAttention(channels, dim, p, partition, position_bias).double()
    if module.bias is not None:
        module.bias.table += draw(27, seed=9).float()
    batch, queries = 2, 2
    query = draw(batch * queries, channels, 4, 2, 6, seed=1) - 0.5
    sources = [3 * draw(batch, channels, 4, 2, 6, seed=s) - 1 for s in (2, 3)]
    positions = sincos_positions(p, dim).double()
    codes = [positions + draw(dim, seed=s) for s in (4, 5, 6)]
    answer, weights = module(query, sources, sources, codes[0], codes[1:])
    assert weights.shape == (batch, queries * 8, 2 * 8)
    naive = NaiveAttention(module, (4, 2, 6))
    for b, k in itertools.product(range(batch), range(queries)):
        number, here = b * queries + k, [s[b] for s in sources]
        attention = naive.weights(query[number], here, codes[0], codes[1:])
        expected = torch.tensor(attention, dtype=torch.float64)
        assert (weights[b, k * 8 : (k + 1) * 8] - expected).abs().max() < 1e-12
        assert (answer[number] - naive.attend(attention, here)).abs().max() < 1e-12
    assert weights.std() > 1e-3  # not uniform, where every block mistake would hide


@both_partitions
@torch.inference_mode()
def test_attention_rows_sum_to_one(partition):
    torch.manual_seed(0)
    module = BlockwiseCrossAttention(3, 12, 4, partition).double()
    codes = sincos_positions(4, 12).double()
    query, source = 5 * draw(4, 3, 8, 8, 4, seed=1), 5 * draw(2, 3, 8, 8, 4, seed=2)
    weights = module.weights(query, [source, 1 - source], codes, [codes, codes])
    assert weights.shape == (2, 2 * 64, 2 * 64)
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    assert weights.min() >= 0


@both_partitions
@torch.inference_mode()
def test_with_a_position_bias_blocks_start_by_looking_at_their_own_place(partition):
    torch.manual_seed(0)
    codes = sincos_positions(4, 66).double()
    query, source = draw(1, 3, 8, 8, 8, seed=1), draw(1, 3, 8, 8, 8, seed=2)
    shares = {}
    for position_bias in ("none", "relative"):
        module = BlockwiseCrossAttention(3, 66, 4, partition, position_bias).double()
        weights = module.weights(query, [source], codes, [codes])[0]
        shares[position_bias] = float(weights.diagonal().mean())
    assert shares["none"] < 0.03
    assert 0.7 < shares["relative"] < 0.9


@both_partitions
@torch.inference_mode()
def test_constant_sources_stay_constant_under_attention(partition):
    """Attention moves values and never projects them."""
    torch.manual_seed(0)
    module = BlockwiseCrossAttention(3, 12, 4, partition).double()
    codes = sincos_positions(4, 12).double()
    source = torch.full((1, 3, 4, 4, 4), 0.7, dtype=torch.float64)
    attended, _ = module(draw(1, 3, 4, 4, 4), [source], [source], codes, [codes])
    assert (attended - 0.7).abs().max() < 1e-12


# --- config and files ----------------------------------------------------------------------------


def test_config_round_trip():
    config = make_config("neuroverse3d", "contiguous", norm="group", output="sigmoid")
    values = config.to_dict()
    assert values["channels"] == [4, 6]
    assert NetworkConfig.from_dict(values) == config
    assert NetworkConfig.from_dict({}) == NetworkConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": [4, 6]}, r"unknown keys \['chanels'\]"),
        ({"architecture": "unet"}, "architecture='unet' is not one of"),
        ({"partition": "random"}, "partition='random'"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"output": "softmax"}, "output='softmax'"),
        ({"channels": [4]}, "two stages or more"),
        ({"channels": [4, 0]}, "two stages or more"),
        ({"channels": [4, 2.5]}, "two stages or more"),
        ({"channels": 4}, "network config"),
        ({"attention_dim": 64}, "multiple of 6"),
        ({"window": 100}, "multiple of 64"),
        ({"window": 0}, "multiple of 64"),
        ({"window": "big"}, "network config"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(WeightsError, match=message):
        NetworkConfig.from_dict(values)


@pytest.mark.parametrize(
    ("architecture", "stages", "multiple"),
    [("medverse", 5, 64), ("medverse", 4, 32), ("medverse", 3, 16), ("neuroverse3d", 5, 16)],
)
def test_what_sides_must_divide_by(architecture, stages, multiple):
    config = NetworkConfig(architecture=architecture, channels=(4,) * stages, window=64)
    assert config.multiple == multiple


@all_kinds
@torch.inference_mode()
def test_weights_round_trip_bit_for_bit(tmp_path, architecture, partition):
    network = make_network(architecture, partition, dtype=torch.float32)
    path = tmp_path / "net.safetensors"
    save_network(network, path, licence="Apache-2.0")
    again = load_network(path)
    assert again.config == network.config
    assert not again.training
    state = network.state_dict()
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    inputs = draw_inputs(dtype=torch.float32)
    assert torch.equal(again(**inputs), network(**inputs))
    assert read_notes(path)["licence"] == "Apache-2.0"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_half_precision_files_load_as_float32(tmp_path):
    network = make_network(dtype=torch.float32)
    save_network(network, tmp_path / "half.safetensors", dtype=torch.float16)
    state = load_network(tmp_path / "half.safetensors").state_dict()
    for key, value in network.state_dict().items():
        assert state[key].dtype == torch.float32
        assert torch.equal(state[key], value.half().float())


def test_weights_hash_follows_the_content(tmp_path):
    one, copy, other = (tmp_path / f"{n}.safetensors" for n in "abc")
    save_network(make_network(dtype=torch.float32), one)
    copy.write_bytes(one.read_bytes())
    save_network(make_network(dtype=torch.float32, seed=1), other)
    assert weights_hash(one) == hashlib.sha256(one.read_bytes()).hexdigest()
    assert weights_hash(one) == weights_hash(copy) != weights_hash(other)


def rewrite(path, change) -> None:
    state, notes = load_file(path), read_notes(path)
    change(state)
    save_file(state, path, metadata=notes)


def test_missing_and_extra_keys_are_named(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(make_network(dtype=torch.float32), path)
    rewrite(path, lambda s: s.update(surprise=s.pop("target_decoder.head.bias")))
    with pytest.raises(WeightsError) as caught:
        load_network(path)
    assert "missing keys ['target_decoder.head.bias'] (1)" in str(caught.value)
    assert "extra keys ['surprise'] (1)" in str(caught.value)


def test_a_parameter_of_another_shape_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(make_network(dtype=torch.float32), path)
    rewrite(path, lambda s: s.update({"target_decoder.head.bias": torch.zeros(3)}))
    with pytest.raises(WeightsError, match=r"target_decoder\.head\.bias is \(3,\), needed \(1,\)"):
        load_network(path)


def test_released_names_are_translated_and_missing_ones_named(tmp_path, shared):
    checkpoint = torch.load(shared / "parity" / "medverse.ckpt", weights_only=True)
    del checkpoint["state_dict"]["net.target_decoder.output_block.block.1.bias"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(WeightsError, match=r"missing keys \['target_decoder.head.bias'\] \(1\)"):
        load_network(tmp_path / "cut.ckpt")


def test_saved_twice_gives_one_hash(tmp_path):
    network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8))
    for name in ("a", "b"):
        save_network(network, tmp_path / f"{name}.safetensors", one="1", two="2", three="3")
    assert weights_hash(tmp_path / "a.safetensors") == weights_hash(tmp_path / "b.safetensors")
