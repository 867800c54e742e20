import numpy as np
import pytest

from medverse_nb import regions
from medverse_nb.intensity import IntensityScale, quantile_scale


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int16, np.uint16, np.uint8, np.dtype(">i2")]
)
@pytest.mark.parametrize("shape", ["uniform", "normal", "lognormal"])
def test_the_quantiles_are_numpys(shape, dtype):
    rng = np.random.default_rng(0)
    values = {
        "uniform": rng.uniform(0, 250, 30000),
        "normal": rng.normal(120, 20, 30000),
        "lognormal": np.minimum(rng.lognormal(3, 0.6, 30000), 250),
    }[shape].astype(dtype)
    scale = quantile_scale(values.reshape(30, 40, 25))
    low, high = np.quantile(values, [0.02, 0.98])
    step = 1 if np.dtype(dtype).kind in "iu" else 0.05
    assert scale.low == pytest.approx(low, abs=step)
    assert scale.high == pytest.approx(high, abs=step)


def test_other_quantiles_can_be_asked_for():
    scale = quantile_scale(np.linspace(0, 100, 10001).reshape(73, 137, 1), 0.1, 0.75)
    assert (scale.low, scale.high) == (pytest.approx(10, abs=0.1), pytest.approx(75, abs=0.1))


def test_apply_and_invert_worked_out_by_hand():
    scale = IntensityScale(-100, 300)
    volume = np.array([[[-500, -100, 0, 100, 300, 999]]])
    assert scale.apply(volume).ravel().tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert scale.invert(np.array([0, 0.25, 1])).tolist() == [-100, 0, 300]
    assert scale.apply(volume).dtype == np.float32


def test_invert_undoes_apply_between_the_quantiles():
    volume = np.random.default_rng(0).normal(1000, 50, (12, 12, 12))
    scale = quantile_scale(volume)
    inside = (volume > scale.low) & (volume < scale.high)
    assert inside.mean() == pytest.approx(0.96, abs=0.01)
    assert np.allclose(scale.invert(scale.apply(volume))[inside], volume[inside], atol=0.01)


@pytest.mark.parametrize("value", [0, -7, 1e6])
def test_a_constant_volume_becomes_zero_and_comes_back(value):
    volume = np.full((3, 3, 3), value, np.float64)
    scale = quantile_scale(volume)
    assert (scale.low, scale.high) == (value, value)
    assert np.array_equal(scale.apply(volume), np.zeros((3, 3, 3)))
    assert np.array_equal(scale.invert(scale.apply(volume)), volume)


def test_more_than_98_percent_background_falls_back_on_the_extremes():
    volume = np.zeros((10, 10, 100))
    volume[0, 0, :50] = np.linspace(1, 200, 50)  # half a percent
    scale = quantile_scale(volume)
    assert (scale.low, scale.high) == (0, 200)


def test_much_background_keeps_the_contrast_of_the_rest():
    rng = np.random.default_rng(0)
    volume = np.where(rng.random((20, 20, 20)) < 0.9, 0, rng.normal(500, 50, (20, 20, 20)))
    scale = quantile_scale(volume)
    assert scale.low == pytest.approx(0, abs=0.01)
    assert scale.high == pytest.approx(np.quantile(volume, 0.98), rel=0.01)


@pytest.mark.parametrize("outlier", [1e4, 1e6, 1e9, -1e9, 1e20])
def test_one_wild_voxel_does_not_flatten_the_scan(outlier):
    volume = np.random.default_rng(0).uniform(0, 1000, (20, 20, 20))
    volume[3, 4, 5] = outlier
    scale = quantile_scale(volume)
    low, high = np.quantile(volume, [0.02, 0.98])
    assert scale.low == pytest.approx(low, abs=5)
    assert scale.high == pytest.approx(high, abs=5)


def test_wild_voxels_at_both_ends():
    volume = np.random.default_rng(0).uniform(0, 1000, (20, 20, 20)).astype(np.float32)
    volume[0, 0, 0], volume[1, 1, 1] = -3e38, 3e38
    scale = quantile_scale(volume)
    assert scale.low == pytest.approx(20, abs=10)
    assert scale.high == pytest.approx(980, abs=10)


def test_the_input_is_not_changed():
    volume = np.random.default_rng(0).normal(size=(4, 4, 4))
    before = volume.copy()
    quantile_scale(volume).apply(volume)
    assert np.array_equal(volume, before)


@pytest.mark.parametrize("outlier", [None, 1e9])
def test_a_volume_read_in_slabs_has_the_same_scale(monkeypatch, outlier):
    volume = np.random.default_rng(0).gamma(2, 100, (40, 30, 20)).astype(np.float32)
    if outlier:
        volume[3, 4, 5] = outlier
    whole = quantile_scale(volume)
    monkeypatch.setattr(regions, "SLAB_VOXELS", 1500)
    assert quantile_scale(volume) == whole
