import numpy as np
import pytest
import xarray as xr

from medverse_nb.errors import GeometryError
from medverse_nb.volume import affine_of, grid_of, make_volume, values_of

ANGLE = np.radians(17)
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.array(
    [[-np.cos(ANGLE), np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, -1]]
) @ np.diag([0.8, 1.25, 3])
AFFINE[:3, 3] = 55.5, -12, 900
SHAPE = (5, 6, 7)


@pytest.fixture
def volume() -> xr.DataArray:
    """Each voxel holds its own number."""
    return make_volume(np.arange(np.prod(SHAPE)).reshape(SHAPE), AFFINE, name="scan")


def assert_in_place(changed: xr.DataArray, number_of=lambda value: value) -> None:
    """Every voxel left lies where it lay in the file."""
    affine = affine_of(changed)
    for place in np.ndindex(changed.shape):
        original = np.unravel_index(int(number_of(changed.values[place])), SHAPE)
        there = AFFINE @ [*original, 1]
        assert np.allclose(affine @ [*place, 1], there, atol=1e-9)


def test_the_affine_goes_in_and_comes_out(volume):
    assert np.allclose(affine_of(volume), AFFINE, atol=1e-12)
    assert volume.dims == ("x", "y", "z")
    assert volume.coords["y"].values == pytest.approx(1.25 * np.arange(6))
    assert volume.coords["y"].attrs["units"] == "mm"
    assert grid_of(volume).shape == SHAPE
    assert np.array_equal(values_of(volume), np.arange(210).reshape(SHAPE))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v[1:4, :, 2:],
        lambda v: v[::2, 1::3, ::-1],
        lambda v: v[::-1, ::-2],
        lambda v: v.isel(x=[4, 2, 0]),
        lambda v: v.sel(y=slice(1, 5)),
        lambda v: v[2:3],
        lambda v: v[2:3, :, ::-1].transpose("z", "x", "y"),
        lambda v: v.transpose("z", "x", "y"),
        lambda v: v.transpose()[::-1, 1:],
        lambda v: v.isel(z=slice(None, None, -1)).isel(z=slice(1, None, 2)),
        lambda v: v.copy(deep=True),
        lambda v: v.astype(np.float32),
        lambda v: v.rename("other"),
    ],
    ids=[
        "crop", "stride", "flip", "pick", "millimetres", "single", "single-turned", "transpose",
        "transpose-flip", "flip-stride", "copy", "astype", "rename",
    ],
)  # fmt: skip
def test_the_affine_survives(volume, change):
    assert_in_place(change(volume))


@pytest.mark.parametrize(
    ("change", "number_of"),
    [
        (lambda v: v * 2 + 1, lambda value: (value - 1) / 2),
        (lambda v: -v, lambda value: -value),
        (lambda v: v + v, lambda value: value / 2),
        (lambda v: v[::-1] + v[::-1] * 1.0, lambda value: value / 2),
        (np.sqrt, lambda value: round(value**2)),
        (lambda v: v.where(v > -1), lambda value: value),
    ],
    ids=["affine", "negative", "sum", "flipped-sum", "ufunc", "where"],
)
def test_the_affine_survives_arithmetic(volume, change, number_of):
    assert_in_place(change(volume), number_of)


def test_numbers_line_up_by_place_not_by_index(volume):
    difference = volume[1:] - volume[:-1]  # xarray joins by millimetres: 4 shared planes - 1
    assert difference.shape == (3, 6, 7)
    assert not difference.values.any()
    assert np.allclose(affine_of(difference)[:3, 3], affine_of(volume[1:])[:3, 3])


def test_leading_dims_are_kept_apart():
    stack = make_volume(np.zeros((2, *SHAPE)), AFFINE, leading={"class": ["left", "right"]})
    assert stack.dims == ("class", "x", "y", "z")
    assert np.allclose(affine_of(stack.sel({"class": "right"})), AFFINE)
    assert grid_of(stack).shape == SHAPE


def test_mixing_two_grids_is_our_error(volume):
    moved = AFFINE.copy()
    moved[0, 3] += 2
    other = make_volume(np.ones(SHAPE), moved)
    with pytest.raises(GeometryError, match="different grids"):
        affine_of(volume + other)


def test_mixing_two_spacings_is_our_error(volume):
    other = make_volume(np.ones(SHAPE), AFFINE @ np.diag([2, 2, 2, 1]))
    with pytest.raises(GeometryError, match="different grids"):
        affine_of(volume + other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.isel(x=[0, 1, 3]), "evenly"),
        (lambda v: v.isel(x=[0, 0]), "evenly"),
        (lambda v: v.isel(x=0), "dims"),
        (lambda v: v[:0], "empty"),
        (lambda v: v.drop_vars("geometry"), "geometry"),
        (lambda v: xr.DataArray(v.values), "geometry"),
    ],
    ids=["uneven", "repeated", "2D", "empty", "dropped", "foreign"],
)
def test_what_has_no_affine_any_more_says_so(volume, change, message):
    with pytest.raises(GeometryError, match=message):
        affine_of(change(volume))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.diag([1, 1, np.nan, 1])])
def test_a_volume_needs_a_sound_affine(bad):
    with pytest.raises(GeometryError):
        make_volume(np.zeros(SHAPE), bad)
