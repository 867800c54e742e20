"""Our networks and the released recipe against outputs of the released code.

Source: shared/design/released-models.md. Images are stored as round(255 x).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from medverse_nb import predict_array
from medverse_nb.model.attention import sincos_positions
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.weights import load_network

FORWARD, AUTOREGRESSIVE = 1e-4, 1e-3  # largest absolute difference allowed


@pytest.fixture
def parity(shared) -> Path:
    return shared / "parity"


@lru_cache(maxsize=2)
def network_of(path: Path) -> ICLNetwork:
    return load_network(path)


def image(case: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(case[name].astype(np.float32) / 255)


def label(case: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(case[name].astype(np.float32))


def largest_difference(prediction, case, expected: str) -> float:
    flat = np.asarray(prediction).ravel()
    if "sample_index" in case:
        flat = flat[case["sample_index"]]
    assert flat.shape == case[expected].ravel().shape
    return float(np.abs(flat - case[expected].ravel()).max())


def test_our_positions_are_the_stored_ones(parity):
    stored = torch.load(parity / "medverse.ckpt", weights_only=True)["state_dict"]
    positions = stored["net.sincos_pos_embed"]
    ours = sincos_positions(4, 66)
    assert ours.shape == positions.shape == (1, 64, 66)
    assert (ours - positions).abs().max() < 1e-6


@pytest.mark.parametrize("mini_context_size", [1, 2, 5])
@torch.inference_mode()
def test_neuroverse3d_forward(parity, mini_context_size):
    case = dict(np.load(parity / "neuroverse3d_forward.npz"))
    network = network_of(parity / "neuroverse3d.ckpt")
    assert network.config.architecture == "neuroverse3d"
    prediction = network(
        image(case, "target_u8"),
        image(case, "context_in_u8"),
        label(case, "context_out"),
        mini_context_size=mini_context_size,
    )
    assert prediction.shape == (1, 1, 32, 32, 48)
    assert largest_difference(prediction, case, "expected") < FORWARD


@pytest.mark.parametrize("mini_context_size", [1, 3])
@pytest.mark.parametrize("autoregressive", [False, True])
@torch.inference_mode()
def test_medverse_forward(parity, mini_context_size, autoregressive):
    case = dict(np.load(parity / "medverse_forward.npz"))
    network = network_of(parity / "medverse.ckpt")
    feedback = (image(case, "ar_in_u8"), label(case, "ar_out")) if autoregressive else ()
    prediction = network(
        image(case, "target_u8"),
        image(case, "context_in_u8"),
        label(case, "context_out"),
        *feedback,
        mini_context_size=mini_context_size,
    )
    expected, other = ("expected_ar", "expected_no_ar")[:: 1 if autoregressive else -1]
    assert largest_difference(prediction, case, expected) < FORWARD
    assert largest_difference(prediction, case, other) > 10 * FORWARD  # the pair matters


@pytest.mark.parametrize(
    ("name", "shape", "scales", "mini_context_size"),
    [
        ("one_level_smaller_than_window", (40, 56, 64), 1, 1),
        ("one_level_smaller_than_window", (40, 56, 64), 1, 2),
        ("two_levels", (88, 80, 72), 2, None),
        pytest.param("three_levels", (140, 132, 100), 3, None, marks=pytest.mark.slow),
    ],
)
def test_released_autoregressive_inference(parity, name, shape, scales, mini_context_size):
    case = dict(np.load(parity / f"medverse_autoregressive_{name}.npz"))
    assert int(case["level"]) == scales
    prediction = predict_array(
        network_of(parity / "medverse.ckpt"),
        image(case, "target_u8")[0, 0].numpy(),
        image(case, "context_in_u8")[0, :, 0].numpy(),
        label(case, "context_out")[0, :, 0].numpy(),
        window=int(case["window"]),
        overlap=float(case["overlap"]),
        scales=scales,
        mini_context_size=mini_context_size,
        compat="released",
    )
    assert prediction.shape == shape
    assert prediction.dtype == np.float32
    assert largest_difference(prediction, case, "expected") < AUTOREGRESSIVE
    assert prediction.mean() == pytest.approx(float(case["mean"]), abs=1e-4)
    assert prediction.std() == pytest.approx(float(case["std"]), abs=1e-4)


def test_our_own_recipe_is_another_one_on_a_thin_volume(parity):
    """The released recipe squeezes 40 x 56 x 64 into a cube; ours must not, so they differ."""
    case = dict(np.load(parity / "medverse_autoregressive_one_level_smaller_than_window.npz"))
    prediction = predict_array(
        network_of(parity / "medverse.ckpt"),
        image(case, "target_u8")[0, 0].numpy(),
        image(case, "context_in_u8")[0, :, 0].numpy(),
        label(case, "context_out")[0, :, 0].numpy(),
        window=64,
        scales=1,
    )
    assert prediction.shape == (40, 56, 64)
    assert largest_difference(prediction, case, "expected") > 10 * AUTOREGRESSIVE
