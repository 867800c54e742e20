import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

from medverse_nb import predict_array
from medverse_nb.errors import InputError
from medverse_nb.inference.autoregressive import run, take_arrays
from medverse_nb.inference.blending import SMALLEST_WEIGHT, Tile, blend, window_weights
from medverse_nb.inference.crops import Crops
from medverse_nb.inference.plan import plan_chunks, stored_sides
from medverse_nb.inference.recipe import Settings
from medverse_nb.inference.runner import WindowRunner
from medverse_nb.inference.schedule import scale_count, scale_shape
from medverse_nb.inference.windows import Window, axis_starts, plan_windows
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork
from medverse_nb.regions import read, touch
from medverse_nb.resampling import resize
from medverse_nb.views import crop

SHAPES = [(8, 8, 8), (9, 21, 13), (3, 30, 17), (17, 1, 5), (1, 1, 1)]
OVERLAPS = [0, 0.1, 0.25, 0.5]
thin_and_odd = pytest.mark.parametrize("shape", SHAPES)
every_overlap = pytest.mark.parametrize("overlap", OVERLAPS)


class Stub(nn.Module):
    """A network's interface around a plain function of (target, image, label, ar pair)."""

    def __init__(self, answer, architecture="medverse", side=8) -> None:
        super().__init__()
        self.config = NetworkConfig(architecture=architecture, channels=(4, 4), window=8)
        self.side = side  # of the windows it expects
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answer = answer
        self.calls: list[SimpleNamespace] = []

    def forward(
        self, target, context_image, context_label, ar_image=None, ar_label=None, **settings
    ):
        assert target.dtype == context_image.dtype == context_label.dtype == torch.float32
        assert target.shape[1:] == (1, self.side, self.side, self.side)
        assert context_image.shape == context_label.shape
        assert context_image.shape[2:] == target.shape[1:]
        assert (ar_image is None) == (ar_label is None)
        if ar_image is not None:
            assert ar_image.shape == ar_label.shape == (len(target), 1, *target.shape[1:])
        self.calls.append(
            SimpleNamespace(sides=tuple(target.shape), fed=ar_image is not None, **settings)
        )
        return self.answer(
            SimpleNamespace(
                target=target,
                image=context_image,
                label=context_label,
                ar_image=None if ar_image is None else ar_image[:, 0],
                ar_label=None if ar_label is None else ar_label[:, 0],
            )
        )


def draw(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def draw_arrays(shape, pairs=3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(*shape, seed=1), draw(pairs, *shape, seed=2), draw(pairs, *shape, seed=3)


def resize_all(array, shape) -> np.ndarray:
    """Resize a volume, or each of a stack."""
    return resize(array, shape) if array.ndim == 3 else np.stack([resize(a, shape) for a in array])


def run_arrays(stub, target, image, label, settings, **options) -> list[SimpleNamespace]:
    """Run arrays and return every step with its voxels read."""
    steps = run(stub, take_arrays(stub, target, image, label, settings), settings, **options)
    return [
        SimpleNamespace(
            scale=step.scale,
            image=read(step.image),
            prediction=read(step.predictions[0]),
            windows=step.windows,
        )
        for step in steps
    ]


# --- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "window", "scales"),
    [
        ((128, 128, 128), 128, 1),
        ((129, 20, 20), 128, 2),
        ((256, 256, 256), 128, 2),
        ((257, 3, 3), 128, 3),
        ((512, 512, 60), 128, 3),
        ((64, 64, 64), 128, 1),  # the released code makes 0 of this, and never runs
        ((40, 50, 60), 128, 1),
        ((1, 1, 1), 128, 1),
        ((100, 80, 60), 32, 3),
    ],
)
def test_scale_count_by_hand(shape, window, scales):
    assert scale_count(shape, window) == scales


def test_scale_shapes_by_hand():
    assert [scale_shape((100, 51, 7), t, 3) for t in (1, 2, 3)] == [
        (25, 13, 2),
        (50, 26, 4),
        (100, 51, 7),
    ]
    assert scale_shape((5, 1, 2), 1, 5) == (1, 1, 1)  # never empty
    for scale in (0, 4):
        with pytest.raises(InputError, match=rf"scale must be in 1\.\.3, got {scale}"):
            scale_shape((8, 8, 8), scale, 3)


def test_our_first_scale_fills_its_window():
    assert [scale_shape((50, 36, 25), t, 2, 32) for t in (1, 2)] == [(32, 24, 16), (50, 36, 25)]
    steps = [scale_shape((200, 100, 9), t, 4, 32)[0] for t in (1, 2, 3, 4)]
    assert steps[0] == 32
    assert steps[-1] == 200
    assert all(1 < b / a <= 2 for a, b in itertools.pairwise(steps))
    for shape in [(64, 64, 64), (128, 50, 3), (256, 256, 60), (20, 10, 5)]:  # nothing to fill
        scales = scale_count(shape, 32)
        for scale in range(1, scales + 1):
            assert scale_shape(shape, scale, scales, 32) == scale_shape(shape, scale, scales)
    assert scale_shape((50, 50, 50), 1, 1, 32) == (50, 50, 50)
    # fewer scales than it takes never go below half the next one
    assert scale_shape((256, 256, 256), 1, 2, 32) == (128, 128, 128)


@pytest.mark.parametrize("side", [1, 7, 31, 32, 33, 64, 65, 200])
def test_the_first_scale_fits_one_window(side):
    scales = scale_count((side, 1, 1), 32)
    assert scale_shape((side, 1, 1), 1, scales)[0] <= 32
    if scales > 1:  # and one scale fewer would not do
        assert scale_shape((side, 1, 1), 1, scales - 1)[0] > 32


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "overlap", "starts"),
    [
        (4, 0, [0]),
        (4, 0.9, [0]),
        (5, 0, [0, 1]),
        (8, 0, [0, 4]),
        (10, 0, [0, 4, 6]),
        (10, 0.5, [0, 2, 4, 6]),
        (9, 0.1, [0, 3, 5]),  # stride int(3.6)
        (6, 0.99, [0, 1, 2]),  # stride int(0.04), at least 1
    ],
)
def test_axis_starts_by_hand(size, overlap, starts):
    assert axis_starts(size, 4, overlap) == starts


@thin_and_odd
@every_overlap
def test_windows_cover_every_voxel_and_stay_inside(shape, overlap):
    padded = tuple(max(side, 8) for side in shape)
    seen = np.zeros(padded, int)
    windows = plan_windows(shape, 8, overlap)
    assert len(set(windows)) == len(windows)
    for window in windows:
        assert window.sides == (8, 8, 8)
        assert all(0 <= a <= n - 8 for a, n in zip(window.start, padded, strict=True))
        seen[window.region] += 1
    assert seen.min() >= 1


@pytest.mark.parametrize("overlap", [1, 1.5, -0.1, math.nan])
def test_overlap_out_of_range(overlap):
    with pytest.raises(InputError, match=r"overlap must be in \[0, 1\)"):
        plan_windows((8, 8, 8), 4, overlap)


def test_what_lies_beyond_the_end_is_zero():
    volume = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    cut = crop(volume, (1, 0, 2), (4, 2, 2))
    assert cut.shape == (4, 2, 2)
    assert np.array_equal(cut[:2, :, :1], volume[1:, :2, 2:])
    assert not cut[2:].any()
    assert not cut[..., 1:].any()


def test_regions_touch_where_they_share_a_voxel():
    window = Window((4, 0, 2), (8, 8, 8)).region
    assert touch(window, (slice(0, 5), slice(7, 9), slice(9, 20)))
    assert not touch(window, (slice(0, 4), slice(0, 8), slice(2, 10)))
    assert not touch(window, (slice(12, 16), slice(0, 8), slice(2, 10)))


# --- blending ------------------------------------------------------------------------------------


def test_window_weights_by_hand():
    weights = window_weights((8, 8, 4))
    assert np.array_equal(weights, weights[::-1])
    assert np.array_equal(weights, weights[..., ::-1])
    near = math.exp(-0.5 * (0.5 / 1.0) ** 2)  # half a voxel off the centre, sigma 1 of 8 voxels
    near_z = math.exp(-0.5 * (0.5 / 0.5) ** 2)
    assert weights[4, 4, 2] == pytest.approx(near * near * near_z, rel=1e-6)
    assert weights[4, 5, 2] == pytest.approx(near * math.exp(-0.5 * 1.5**2) * near_z, rel=1e-6)
    assert weights[0, 0, 0] == np.float32(SMALLEST_WEIGHT)
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0, 0] = 1


@thin_and_odd
@every_overlap
def test_blending_weights_sum_to_one(shape, overlap):
    windows = plan_windows(shape, 8, overlap)
    tiles = [Tile(w, w.region, np.full((2, *w.sides), 0.7, np.float32)) for w in windows]
    for region in plan_chunks(shape, windows):
        blended = blend(region, tiles)
        assert blended.shape == (2, *(s.stop - s.start for s in region))
        assert np.abs(blended - 0.7).max() < 1e-6


@thin_and_odd
@every_overlap
def test_what_is_kept_of_a_tile_is_enough_and_no_more(shape, overlap):
    windows = plan_windows(shape, 8, overlap)
    tiles = [
        Tile(window, window.region, draw(2, *window.sides, seed=number))
        for number, window in enumerate(windows)
    ]
    regions = [*plan_chunks(shape, windows)]
    kept = tiles
    for number, region in enumerate(regions):
        assert np.array_equal(blend(region, kept), blend(region, tiles))
        parts = (tile.needed_for(regions[number + 1 :]) for tile in kept)
        kept = [part for part in parts if part]
        for part in kept:
            assert all(
                own.start <= s.start < s.stop <= own.stop
                for s, own in zip(part.region, part.window.region, strict=True)
            )
            assert part.voxels.shape[1:] == tuple(s.stop - s.start for s in part.region)
            assert any(touch(part.region, later) for later in regions[number + 1 :])
    assert kept == []


@every_overlap
def test_only_the_overlap_waits_for_a_later_chunk(overlap):
    windows = plan_windows((61, 8, 8), 8, overlap)
    tiles = [Tile(w, w.region, np.zeros((1, *w.sides), np.float32)) for w in windows]
    first, *later = plan_chunks((61, 8, 8), windows)
    done = [tile for tile in tiles if touch(tile.region, first)]
    waiting = [tile.needed_for(later) for tile in done]
    sizes = [part.voxels.size for part in waiting if part]
    assert later
    assert max(sizes, default=0) <= math.ceil(8 * overlap) * 8 * 8


def test_blending_two_windows_by_hand():
    first, second = (Window((start, 0, 0), (8, 8, 8)) for start in (0, 4))
    tiles = [
        Tile(first, first.region, np.zeros((1, 8, 8, 8), np.float32)),
        Tile(second, second.region, np.ones((1, 8, 8, 8), np.float32)),
    ]
    result = blend((slice(0, 12), slice(0, 1), slice(0, 1)), tiles)[0, :, 0, 0]
    assert np.array_equal(result[:4], np.zeros(4))
    assert np.array_equal(result[8:], np.ones(4))
    weights = window_weights((8, 8, 8))[:, 0, 0].astype(float)
    expected = weights[:4] / (weights[:4] + weights[4:])
    assert result[4:8] == pytest.approx(expected, rel=1e-5)
    part = blend((slice(5, 7), slice(0, 1), slice(0, 1)), tiles)[0, :, 0, 0]
    assert np.array_equal(part, result[5:7])


@thin_and_odd
@every_overlap
def test_chunks_are_the_volume_once_and_whole_stored_ones(shape, overlap):
    windows = plan_windows(shape, 8, overlap)
    sides, seen = stored_sides(windows), np.zeros(shape)
    for region in plan_chunks(shape, windows):
        seen[region] += 1
        for part, size, side in zip(region, shape, sides, strict=True):
            assert part.start % side == 0
            assert part.stop == size or part.stop % side == 0
    assert (seen == 1).all()


# --- tiled equals whole --------------------------------------------------------------------------


def pointwise(given):
    return 2 * given.target - given.image.mean(1) * given.label.amax(1)


@thin_and_odd
@every_overlap
@pytest.mark.parametrize("scales", [None, 1, 3])
def test_tiled_equals_whole_for_a_pointwise_function(shape, overlap, scales):
    target, image, label = draw_arrays(shape)
    got = predict_array(Stub(pointwise), target, image, label, overlap=overlap, scales=scales)
    assert got.shape == shape
    assert got.dtype == np.float32
    assert np.abs(got - (2 * target - image.mean(0) * label.max(0))).max() < 1e-5


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_batches_of_windows_change_nothing(batch):
    arrays = draw_arrays((9, 21, 13))
    stub, counted = Stub(pointwise), []
    steps = run_arrays(
        stub,
        *arrays,
        Settings(batch=batch, scales=1),
        on_progress=lambda *state: counted.append(state),
    )
    expected = 2 * arrays[0] - arrays[1].mean(0) * arrays[2].max(0)
    assert np.abs(steps[-1].prediction - expected).max() < 1e-5
    windows = len(steps[-1].windows)
    assert sum(call.sides[0] for call in stub.calls) == windows
    assert counted[-1] == (1, 1, windows, windows)
    assert [c[2] for c in counted] == sorted({c[2] for c in counted})


def test_a_window_wider_than_the_networks_own():
    arrays = draw_arrays((20, 20, 20))
    steps = run_arrays(Stub(pointwise, side=16), *arrays, Settings(window=16))
    assert len(steps) == 2
    assert {window.sides for step in steps for window in step.windows} == {(16, 16, 16)}
    expected = 2 * arrays[0] - arrays[1].mean(0) * arrays[2].max(0)
    assert np.abs(steps[-1].prediction - expected).max() < 1e-5


def test_thin_volumes_keep_their_resolution_and_the_released_recipe_loses_it():
    """A checkerboard, 4 x 24 x 24: squeezing 24 into a window of 8 cannot bring it back."""
    target = (np.indices((4, 24, 24)).sum(0) % 2).astype(np.float32)
    image, label = target[None], target[None]
    stub = Stub(lambda given: given.target)
    ours = predict_array(stub, target, image, label)
    assert np.abs(ours - target).max() < 1e-6
    released = predict_array(stub, target, image, label, compat="released")
    assert released.shape == target.shape
    assert np.abs(released - target).max() > 0.3


@pytest.mark.parametrize("shape", [(9, 21, 13), (17, 10, 8)])
def test_the_released_recipe_pads_and_crops_back(shape):
    target, image, label = draw_arrays(shape)
    got = predict_array(Stub(pointwise), target, image, label, scales=2, compat="released")
    assert got.shape == shape
    assert np.abs(got - (2 * target - image.mean(0) * label.max(0))).max() < 1e-5


@torch.inference_mode()
def test_one_window_is_one_forward():
    torch.manual_seed(0)
    network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8)).eval()
    target, image, label = draw_arrays((8, 8, 8))
    got = predict_array(network, target, image, label)
    tensors = [
        torch.from_numpy(a)
        for a in (target[None, None], image[None, :, None], label[None, :, None])
    ]
    assert np.abs(got - network(*tensors)[0, 0].numpy()).max() < 1e-6
    with_pad = predict_array(network, *(a[..., :6, :] for a in (target, image, label)))
    padded = [torch.nn.functional.pad(t[..., :6, :], (0, 0, 0, 2)) for t in tensors]
    assert np.abs(with_pad - network(*padded)[0, 0, :, :6].numpy()).max() < 1e-6


# --- feedback ------------------------------------------------------------------------------------


def test_feedback_is_the_coarser_prediction_clipped():
    """0.25, then the fed-back label plus 0.5 at each scale; what is fed back is clipped to 1."""
    stub = Stub(
        lambda given: (
            torch.full_like(given.target, 0.25) if given.ar_label is None else given.ar_label + 0.5
        )
    )
    steps = run_arrays(stub, *draw_arrays((40, 12, 9)), Settings(scales=4))
    for step, expected in zip(steps, (0.25, 0.75, 1.25, 1.5), strict=True):
        inside = step.prediction[:, :8, :8]  # windows that reach into padding see zeros there
        assert np.abs(inside - expected).max() < 1e-5
        assert np.abs(step.prediction - expected).max() < 1e-5


def test_negative_predictions_are_fed_back_as_zero():
    stub = Stub(lambda g: torch.full_like(g.target, -3.0) if g.ar_label is None else g.ar_label)
    steps = run_arrays(stub, *draw_arrays((16, 16, 16)), Settings())
    assert len(steps) == 2
    assert (steps[0].prediction == -3).all()
    assert not steps[1].prediction.any()


@pytest.mark.parametrize("what", ["ar_image", "ar_label"])
def test_feedback_lies_in_place(what):
    """The coarser image or prediction, enlarged: voxel for voxel what resizing twice gives."""
    shape = (20, 13, 9)
    target, image, label = draw_arrays(shape)
    stub = Stub(lambda g: 0.9 * g.target if g.ar_label is None else getattr(g, what))
    steps = run_arrays(stub, target, image, label, Settings(scales=2))
    coarse = resize(target, (10, 7, 5))
    assert np.abs(steps[0].image - coarse).max() < 1e-6
    assert np.abs(steps[0].prediction - 0.9 * coarse).max() < 1e-6
    expected = resize(coarse, shape) * (0.9 if what == "ar_label" else 1)
    assert np.abs(steps[1].prediction - expected).max() < 1e-5


@torch.inference_mode()
def test_two_scales_by_hand_on_a_real_network():
    torch.manual_seed(0)
    network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8, output="sigmoid")).eval()
    target, image, label = draw_arrays((16, 16, 16), pairs=2)
    coarse = [torch.from_numpy(resize_all(a, (8, 8, 8))) for a in (target, image, label)]
    first = network(coarse[0][None, None], coarse[1][None, :, None], coarse[2][None, :, None])
    fed = [
        torch.from_numpy(resize(a, (16, 16, 16))) for a in (coarse[0].numpy(), first[0, 0].numpy())
    ]
    expected = np.zeros((16, 16, 16), np.float32)
    for start in itertools.product((0, 8), repeat=3):
        box = tuple(slice(a, a + 8) for a in start)
        expected[box] = network(
            torch.from_numpy(target[box])[None, None],
            torch.from_numpy(image[(slice(None), *box)])[None, :, None],
            torch.from_numpy(label[(slice(None), *box)])[None, :, None],
            *(f[box][None, None, None] for f in fed),
        )[0, 0].numpy()
    got = predict_array(network, target, image, label, overlap=0)
    assert np.abs(got - expected).max() < 1e-5


@pytest.mark.parametrize("scales", [None, 1, 3])
def test_one_step_a_scale(scales):
    shape = (30, 11, 5)
    stub = Stub(lambda given: given.target)
    steps = run_arrays(stub, *draw_arrays(shape), Settings(scales=scales))
    count = scales or scale_count(shape, 8)
    assert [step.scale for step in steps] == list(range(1, count + 1))
    for step in steps:
        expected = scale_shape(shape, step.scale, count, 8)
        assert step.image.shape == step.prediction.shape == expected
        assert step.windows == tuple(plan_windows(step.image.shape, 8, 0.1))
    fed = [call.fed for call in stub.calls]
    assert fed == sorted(fed)
    assert fed.count(False) == len(steps[0].windows)
    assert sum(len(step.windows) for step in steps) == len(fed)
    assert np.array_equal(steps[-1].image, draw_arrays(shape)[0])


def test_coarse_scales_are_smoothed_not_sampled():
    """A checkerboard at half resolution is grey."""
    target = (np.indices((16, 16, 16)).sum(0) % 2).astype(np.float32)
    first, _ = run_arrays(Stub(pointwise), target, target[None], target[None], Settings())
    assert np.abs(first.image[1:-1, 1:-1, 1:-1] - 0.5).max() < 1e-5


# --- settings and refusals -------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 2, 7])
def test_mini_context_size_is_passed_through(size):
    stub = Stub(pointwise)
    predict_array(stub, *draw_arrays((9, 9, 9)), mini_context_size=size)
    assert {call.mini_context_size for call in stub.calls} == {size}


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
def test_dask_arrays_are_taken(which):
    arrays = list(draw_arrays((9, 10, 11)))
    expected = predict_array(Stub(pointwise), *arrays)
    for i in which:
        arrays[i] = da.from_array(arrays[i], chunks=4)
    got = predict_array(Stub(pointwise), *arrays)
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, expected)


def test_inputs_are_not_modified():
    arrays = draw_arrays((9, 10, 11))
    copies = [a.copy() for a in arrays]
    predict_array(Stub(pointwise), *arrays, compat="released")
    predict_array(Stub(pointwise), *arrays)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8])
def test_other_number_types_are_taken(dtype):
    arrays = [a.round().astype(dtype) for a in draw_arrays((9, 8, 8))]
    got = predict_array(Stub(lambda given: given.target), *arrays)
    assert np.array_equal(got, arrays[0].astype(np.float32))


NAN = np.where(np.arange(512).reshape(8, 8, 8) == 77, np.nan, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": np.zeros((8, 8))}, r"target must be \(X, Y, Z\) and not empty, got \(8, 8\)"),
        ({"target": np.zeros((0, 8, 8))}, "not empty"),
        ({"target": np.zeros((1, 8, 8, 8))}, "target must be"),
        ({"context_image": np.zeros((8, 8, 8))}, r"context_image must be \(L, X, Y, Z\)"),
        (
            {"context_image": np.zeros((3, 8, 8, 9))},
            r"target's grid \(8, 8, 8\), got \(3, 8, 8, 9\)",
        ),
        ({"context_label": np.zeros((3, 9, 8, 8))}, "context_label must be"),
        ({"context_label": np.zeros((2, 8, 8, 8))}, "got 3 images and 2 labels"),
        (
            {"context_image": np.zeros((0, 8, 8, 8)), "context_label": np.zeros((0, 8, 8, 8))},
            "needs L >= 1 pairs",
        ),
        ({"target": NAN}, "target has non-finite values"),
        ({"target": np.where(np.isnan(NAN), np.inf, NAN)}, "target has non-finite values"),
        ({"context_image": np.stack([NAN] * 3)}, "context_image has non-finite values"),
        ({"context_label": np.stack([NAN] * 3)}, "context_label has non-finite values"),
        ({"window": 12}, "window=12 must be an integer multiple of 8"),
        ({"window": 0}, "window=0 must be"),
        ({"window": -8}, "window=-8 must be"),
        ({"window": 8.5}, "window=8.5 must be"),
        ({"window": 16.0}, "window=16.0 must be"),
        ({"overlap": 1.0}, "overlap must be in"),
        ({"overlap": -0.2}, "overlap must be in"),
        ({"overlap": math.nan}, "overlap must be in"),
        ({"scales": 0}, "scales must be an integer in 1..12, got 0"),
        ({"scales": -1}, "scales must be an integer"),
        ({"scales": 13}, "scales must be an integer"),
        ({"scales": 2.0}, "scales must be an integer"),
        ({"compat": "monai"}, "compat='monai'"),
    ],
)
def test_bad_arrays_and_settings_are_refused(changes, message):
    target, image, label = draw_arrays((8, 8, 8))
    given = {"target": target, "context_image": image, "context_label": label} | changes
    stub = Stub(pointwise)
    with pytest.raises(InputError, match=message):
        predict_array(stub, **given)
    assert not stub.calls


def test_numpy_integers_are_integers():
    arrays = draw_arrays((20, 9, 9))
    plain = predict_array(Stub(pointwise), *arrays, window=8, scales=2)
    got = predict_array(Stub(pointwise), *arrays, window=np.int64(8), scales=np.int64(2))
    assert np.array_equal(got, plain)


def test_neuroverse3d_has_one_scale_over_the_whole_volume():
    target, image, label = draw_arrays((20, 12, 9))
    stub = Stub(pointwise, "neuroverse3d")
    steps = run_arrays(stub, target, image, label, Settings())
    assert [call.sides for call in stub.calls] == [(1, 1, 8, 8, 8)]
    assert not stub.calls[0].fed
    assert len(steps) == 1
    small = [resize_all(a, (8, 8, 8)) for a in (target, image, label)]
    expected = resize(2 * small[0] - small[1].mean(0) * small[2].max(0), target.shape)
    assert np.abs(steps[0].prediction - expected).max() < 1e-5
    assert np.array_equal(steps[0].image, target)
    for scales in (2, 0):
        with pytest.raises(InputError, match="neuroverse3d has no autoregressive branch"):
            predict_array(stub, target, image, label, scales=scales)


def test_one_scale_is_a_direct_sliding_window_for_every_network():
    target, image, label = draw_arrays((20, 12, 9))
    expected = 2 * target - image.mean(0) * label.max(0)
    for architecture in ("medverse", "neuroverse3d"):
        stub = Stub(pointwise, architecture)
        prediction = predict_array(stub, target, image, label, scales=1)
        assert np.abs(prediction - expected).max() < 1e-5, architecture
        assert len(stub.calls) > 1
        assert not any(call.fed for call in stub.calls)


def test_the_runner_answers_in_float32_under_autocast():
    torch.manual_seed(0)
    network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8, output="sigmoid")).eval()
    target, image, label = draw_arrays((8, 8, 8), pairs=2)
    crops = Crops(target[None], [(image[None], label[None])], None)
    exact = WindowRunner(network, "float32", None)(crops)
    rounded = WindowRunner(network, "bfloat16", 1)(crops)
    assert exact.dtype == rounded.dtype == np.float32
    assert exact.shape == (1, 1, 8, 8, 8)
    assert 0 < np.abs(exact - rounded).max() < 0.02


def test_the_network_runs_on_as_many_threads_whoever_calls(one_thread):
    """PyTorch's number is of the thread that sets it: one that has run before keeps its own."""
    seen = []
    network = Stub(lambda a: seen.append(torch.get_num_threads()) or a.target)
    target, image, label = draw_arrays((8, 8, 8), pairs=2)
    crops = Crops(target[None], [(image[None], label[None])], None)
    with ThreadPoolExecutor(1) as pool:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            pool.submit(WindowRunner(network, "float32", None), crops).result()
    assert seen == [2, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_an_error_with_a_remedy(value):
    torch.manual_seed(0)
    network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8, output="sigmoid")).eval()
    answer = torch.zeros(1, 1, 8, 8, 8)
    answer[..., 3] = value
    network.forward = lambda *_inputs, **_options: answer
    target, image, label = draw_arrays((8, 8, 8), pairs=2)
    crops = Crops(target[None], [(image[None], label[None])], None)
    with pytest.raises(InputError, match=r'64 voxels .* not finite; try precision="float32"$'):
        WindowRunner(network, "bfloat16", None)(crops)
    with pytest.raises(InputError, match=r"64 voxels .* not finite$"):
        WindowRunner(network, "float32", None)(crops)
