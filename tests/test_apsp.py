"""Adaptive parallel-sequential processing, in inference and in training."""

import pytest
import torch
from torch import Generator

from medverse_nb.model.apsp import context_mean, merge_context_mean, pair_mean, scale_gradient
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_the_running_mean_by_hand():
    mean = torch.full((1, 1, 1, 1, 1), 2.0)  # of three pairs
    mini = torch.tensor([5.0, 11.0]).view(1, 2, 1, 1, 1, 1)
    assert merge_context_mean(mean, 3, mini).item() == pytest.approx((3 * 2 + 5 + 11) / 5)
    assert mean.item() == 2.0  # not modified


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_mean_of_pairs_in_any_memory_format(layout):
    maps = draw(2 * 3, 4, 2, 3, 2).to(memory_format=layout).unflatten(0, (2, 3))
    mean = pair_mean(maps)
    assert torch.allclose(mean, maps.mean(1), atol=1e-12)
    assert mean.is_contiguous(memory_format=layout)
    assert torch.equal(pair_mean(maps[:, :1]), maps[:, 0])


@pytest.mark.parametrize("generator", [None, Generator().manual_seed(3)])
@pytest.mark.parametrize("mini_context_size", [1, 2, 3, 7, 9])
def test_context_mean_sees_every_pair_once(mini_context_size, generator):
    pairs = draw(1, 7, 2, 2, 2, 2)
    seen = []

    def features(part):
        chosen = pairs[:, part]
        assert 1 <= chosen.shape[1] <= mini_context_size
        seen.append(chosen.shape[1])
        return [chosen, 2 * chosen]

    once, twice = context_mean(features, 7, mini_context_size, generator)
    assert sum(seen) == 7
    assert torch.allclose(once, pairs.mean(1), atol=1e-12)
    assert torch.allclose(twice, 2 * pairs.mean(1), atol=1e-12)


def test_only_the_last_mini_context_keeps_its_graph():
    pairs = draw(1, 5, 1, 1, 1, 1)
    kept = []

    def features(part):
        kept.append((part, torch.is_grad_enabled()))
        return [pairs[:, part]]

    context_mean(features, 5, 2, Generator().manual_seed(0))
    assert [enabled for _, enabled in kept] == [False, False, True]
    assert {part.start for part, _ in kept} == {0, 2, 4}
    with torch.no_grad():  # and inference stays inference
        kept.clear()
        context_mean(features, 5, 2, Generator().manual_seed(0))
    assert not any(enabled for _, enabled in kept)


def test_a_scaled_gradient_by_hand():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scale_gradient(x, 3.0)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    assert x.grad.tolist() == [6.0, 12.0]


@pytest.fixture(scope="module")
def network() -> ICLNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(
        channels=(3, 4), window=8, attention_dim=6, blocks_per_axis=2, position_bias="relative"
    )
    return ICLNetwork(config).double()


def gradients(
    network: ICLNetwork, mini_context_size: int, generator: Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prediction and all gradients, one after the other, on five pairs."""
    network.zero_grad(set_to_none=False)
    image, label = draw(1, 5, 1, 4, 4, 4, seed=2), draw(1, 5, 1, 4, 4, 4, seed=3)
    prediction = network(
        draw(1, 1, 4, 4, 4), image, label, mini_context_size=mini_context_size, generator=generator
    )
    (prediction - draw(1, 1, 4, 4, 4, seed=4)).square().mean().backward()
    flat = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().clone()
        for p in network.parameters()
    ]
    return prediction.detach(), torch.cat(flat)


@pytest.mark.parametrize("mini_context_size", [1, 2, 3])
def test_over_all_mini_contexts_the_gradient_is_that_of_the_whole_context(
    network, mini_context_size
):
    """Neuroverse3D Eq. 10 by exact enumeration: which mini-context comes last is all that counts."""
    count = -(-5 // mini_context_size)
    whole, full = gradients(network, 5, None)
    by_last: dict[int, torch.Tensor] = {}
    for seed in range(200):
        order = torch.randperm(count, generator=Generator().manual_seed(seed)).tolist()
        prediction, gradient = gradients(network, mini_context_size, Generator().manual_seed(seed))
        assert (prediction - whole).abs().max() < 1e-12  # the forward value never changes
        if order[-1] in by_last:
            assert (gradient - by_last[order[-1]]).abs().max() < 1e-12
        by_last[order[-1]] = gradient
        if len(by_last) == count and seed >= 2 * count:
            break
    assert set(by_last) == set(range(count))
    mean = torch.stack(list(by_last.values())).mean(0)
    scale = full.abs().max()
    assert scale > 1e-3
    assert (mean - full).abs().max() < 1e-10 * scale
    assert (by_last[0] - full).abs().max() > 1e-5  # one alone is only an estimate


def test_without_a_generator_every_graph_is_kept(network):
    _, full = gradients(network, 5, None)
    _, split = gradients(network, 2, None)
    assert (split - full).abs().max() < 1e-10 * full.abs().max()


def test_the_generator_decides_the_order(network):
    same = [gradients(network, 1, Generator().manual_seed(5))[1] for _ in range(2)]
    assert torch.equal(*same)
    others = [gradients(network, 1, Generator().manual_seed(seed))[1] for seed in range(6)]
    assert any(not torch.allclose(other, same[0]) for other in others)
