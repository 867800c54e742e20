"""What is shown: layers, their colours, and the pictures made of them."""

import io

import dask.array as da
import matplotlib.image
import numpy as np
import pytest

from medverse_nb.classes import PALETTE, ClassSpec
from medverse_nb.errors import GeometryError, InputError
from medverse_nb.ui.display import Display
from medverse_nb.ui.layers import grey_layer, heat_layer, label_layer, recoded, signed_layer
from medverse_nb.ui.scene import Box, Key, Layer, Panel, Scene, blend, busiest, plane_of
from medverse_nb.ui.static import draw_scene, three_planes, to_png
from medverse_nb.volume import grid_of, make_volume

SHAPE = (8, 9, 10)
ONE, TWO = ClassSpec(3, "one", (3,), (230, 159, 0)), ClassSpec(7, "two", (7, 8), (0, 0, 200))
RAMP = make_volume(np.arange(720.0).reshape(SHAPE), np.eye(4), name="ramp")
DISPLAY = Display.of(grid_of(RAMP))


def labels(dtype=np.uint8):
    mask = np.zeros(SHAPE, dtype)
    mask[1:4, 2:5, 3], mask[5, 5, 5], mask[6, 6, 6] = 3, 7, 9
    return make_volume(mask, np.eye(4), name="mask")


# --- layers --------------------------------------------------------------------------------------


def test_grey_goes_from_black_to_white_over_its_window():
    layer = grey_layer(DISPLAY, RAMP, window=(100, 355))
    assert layer.codes.dtype == np.uint8
    assert np.array_equal(layer.codes, np.clip(RAMP.values - 100, 0, 255))
    assert layer.table[[0, 9, 255]].tolist() == [[0, 0, 0, 255], [9, 9, 9, 255], [255] * 4]
    assert layer.limits == (100, 355)
    assert layer.value_at((2, 3, 4)) == RAMP.values[2, 3, 4]


def test_the_window_leaves_the_extremes_out():
    volume = RAMP.copy()
    volume.values[0, 0, 0] = 1e9
    codes = grey_layer(DISPLAY, volume).codes
    assert codes[0, 0, 0] == 255
    assert np.ptp(codes[1:].astype(int)) > 200


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, bool])
def test_grey_of_any_number_type(dtype):
    volume = make_volume((np.indices(SHAPE)[0] > 3).astype(dtype), np.eye(4))
    codes = grey_layer(DISPLAY, volume).codes
    assert (codes[:4] == 0).all()
    assert (codes[4:] == 255).all()


def test_what_is_unknown_is_black_and_what_is_flat_too():
    volume = RAMP.copy()
    volume.values[0, 0, :3] = np.nan, np.inf, -np.inf
    assert grey_layer(DISPLAY, volume).codes[0, 0, :3].tolist() == [0, 255, 0]
    for flat in (5.0, np.nan):
        volume = make_volume(np.full(SHAPE, flat), np.eye(4))
        assert not grey_layer(DISPLAY, volume).codes.any()


def test_tiles_leave_no_seam():
    volume = make_volume(np.indices((130, 70, 66)).sum(axis=0).astype(np.int16)[::-1], np.eye(4))
    codes = grey_layer(Display.of(grid_of(volume)), volume, window=(0, 255)).codes
    assert np.array_equal(codes, volume.values.clip(0, 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_classes_have_their_colours_and_other_numbers_none(dtype):
    mask = labels(dtype)
    layer = label_layer(DISPLAY, mask, (ONE, TWO))
    assert np.array_equal(layer.codes == 1, mask.values == 3)
    assert np.array_equal(layer.codes == 2, mask.values == 7)
    assert (layer.codes[mask.values == 9] == 0).all()
    assert layer.table[:4].tolist() == [[0] * 4, [230, 159, 0, 255], [0, 0, 200, 255], [0] * 4]
    assert [layer.value_at(at) for at in ((1, 2, 3), (5, 5, 5), (6, 6, 6), (0, 0, 0))] == [
        "one", "two", "label 9", ""
    ]  # fmt: skip
    assert layer.keys == (Key("one", ((230, 159, 0),)), Key("two", ((0, 0, 200),)))


def test_a_class_may_join_label_values():
    mask = labels()
    mask.values[0, 0, 0] = 8
    layer = label_layer(DISPLAY, mask, (ONE, TWO), by_value=True)
    assert layer.codes[0, 0, 0] == layer.codes[5, 5, 5] == 2
    assert layer.value_at((0, 0, 0)) == "two"
    overlapping = ClassSpec(1, "all", (3, 7), PALETTE[0])
    with pytest.raises(InputError, match="label 3 belongs to two classes"):
        label_layer(DISPLAY, mask, (ONE, overlapping), by_value=True)


def test_no_more_classes_than_codes():
    many = [ClassSpec(n, str(n), (n,), PALETTE[0]) for n in range(1, 257)]
    assert label_layer(DISPLAY, labels(), many[:255]).table[255, 3] == 255
    with pytest.raises(InputError, match="256 classes"):
        label_layer(DISPLAY, labels(), many)


def test_numbers_beyond_the_type_have_no_voxel():
    assert recoded(np.array([3, 44], np.uint8), {300: 1, 3: 2}).tolist() == [2, 0]
    assert recoded(np.array([-3, 70000]), {-3: 1, 70000: 2}).tolist() == [1, 2]
    assert recoded(np.array([1, 2]), {}).tolist() == [0, 0]


def test_heat_rises_in_alpha_and_lightness():
    values = make_volume(np.linspace(-0.2, 1.2, 720).reshape(SHAPE), np.eye(4))
    layer = heat_layer(DISPLAY, values, name="attention")
    assert layer.table[:, 3].tolist() == list(range(256))
    lightness = layer.table[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > -1).all()
    assert (layer.codes[values.values <= 0] == 0).all()
    assert (layer.codes[values.values >= 1] == 255).all()
    assert layer.keys[0].ends == ("0", "1")
    values.values[0, 0, 0] = np.nan
    assert heat_layer(DISPLAY, values).codes[0, 0, 0] == 0


def test_change_shows_nothing_at_zero_and_as_much_on_either_side():
    change = make_volume(np.zeros(SHAPE), np.eye(4))
    change.values[0, 0, :5] = -4, -2, 2, 4, np.nan
    layer = signed_layer(DISPLAY, change)
    rgba = layer.table[layer.codes]
    assert layer.limits == (-4, 4)
    assert (rgba[0, 0, 4:, 3] == 0).all()
    assert rgba[0, 0, :4, 3].tolist() == [255, rgba[0, 0, 2, 3], rgba[0, 0, 1, 3], 255]
    assert rgba[0, 0, 0, 2] > rgba[0, 0, 0, 0]  # less is blue
    assert rgba[0, 0, 3, 0] > rgba[0, 0, 3, 2]
    assert signed_layer(DISPLAY, change, limit=8).codes[0, 0, 0] == 128 - 64
    assert (signed_layer(DISPLAY, make_volume(np.zeros(SHAPE), np.eye(4))).codes == 128).all()


def test_a_lazy_thinned_volume_makes_the_layers_of_its_voxels():
    shape = (20, 22, 24)
    mask = np.zeros(shape, np.uint8)
    mask[5:15, 6:16, 7:17] = 3
    affine = np.array([[0, 2.0, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    lazy = make_volume(da.from_array(mask, chunks=7), affine)
    display = Display.of(grid_of(lazy), limit=600)
    layer = label_layer(display, lazy, (ONE,))
    grey = grey_layer(display, lazy)
    assert layer.codes.shape == grey.codes.shape == display.shape
    assert layer.codes.size <= 600
    for cursor in np.ndindex(display.shape):
        assert (layer.codes[cursor] == 1) == (mask[display.voxel_of(cursor)] == 3)
    assert grey.codes[layer.codes == 1].min() > 0


def test_layers_of_another_grid_are_refused():
    other = make_volume(np.zeros((8, 9, 11)), np.eye(4), name="mask")
    with pytest.raises(GeometryError, match=r"mask has the shape \(8, 9, 11\)"):
        label_layer(DISPLAY, other, (ONE,))


# --- scenes ----------------------------------------------------------------------------------------


def test_a_scene_is_checked():
    grey = grey_layer(DISPLAY, RAMP)
    with pytest.raises(InputError, match="own title"):
        Scene(DISPLAY, ())
    with pytest.raises(InputError, match="own title"):
        Scene(DISPLAY, (Panel("a", (grey,)), Panel("a", (grey,))))
    with pytest.raises(InputError, match="layers, each named"):
        Scene(DISPLAY, (Panel("a", (grey, grey)),))
    with pytest.raises(InputError, match="layers, each named"):
        Scene(DISPLAY, (Panel("a", ()),))
    with pytest.raises(InputError, match="codes are a volume of uint8"):
        Layer(grey.codes.astype(int), grey.table, "x")
    with pytest.raises(InputError, match=r"a table is \(256, 4\) uint8"):
        Layer(grey.codes, grey.table[:, :3], "x")
    small = Layer(grey.codes[1:], grey.table, "small")
    with pytest.raises(InputError, match=r"'small' has the shape \(7, 9, 10\)"):
        Scene(DISPLAY, (Panel("a", (small,)),))


def test_each_meaning_stands_once_in_the_legend():
    grey, mask = grey_layer(DISPLAY, RAMP), label_layer(DISPLAY, labels(), (ONE, TWO))
    heat = heat_layer(DISPLAY, RAMP)
    scene = Scene(DISPLAY, (Panel("a", (grey, mask)), Panel("b", (grey, mask, heat))))
    assert [key.name for key in scene.legend] == ["one", "two", "heat"]


def test_the_first_look_is_where_most_is():
    grey, mask = grey_layer(DISPLAY, RAMP), label_layer(DISPLAY, labels(), (ONE,))
    assert Scene(DISPLAY, (Panel("a", (grey, mask)),)).focus == (1, 2, 3)
    assert Scene(DISPLAY, (Panel("a", (grey,)),)).focus == (4, 4, 5)
    assert busiest(label_layer(DISPLAY, RAMP, ())) is None
    change = make_volume(np.zeros(SHAPE), np.eye(4))
    change.values[6, 1, 8] = -1
    signed = signed_layer(DISPLAY, change)
    assert Scene(DISPLAY, (Panel("a", (grey, signed)),)).focus == (6, 1, 8)


def test_blending_by_hand():
    below = np.full((256, 4), (100, 50, 0, 255), np.uint8)
    over = np.full((256, 4), (0, 250, 200, 51), np.uint8)  # a fifth
    codes = np.zeros((2, 3), np.uint8)
    assert (blend([codes], [below], 0.0) == (100, 50, 0)).all()
    assert (blend([codes, codes], [below, over], 1.0) == (80, 90, 40)).all()
    assert (blend([codes, codes], [below, over], 0.5) == (90, 70, 20)).all()
    assert (blend([codes, codes, codes], [below, over, over], 1.0) == (64, 122, 72)).all()


# --- pictures ------------------------------------------------------------------------------------


def decode(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def test_a_picture_shows_what_is_blended():
    grey, mask = grey_layer(DISPLAY, RAMP), label_layer(DISPLAY, labels(), (ONE, TWO))
    scene = Scene(DISPLAY, (Panel("a", (grey, mask)), Panel("b", (grey,))))
    figure = draw_scene(scene, (5, 5, 5), opacity=0.7)
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert len(pictures) == 6
    for place, picture in enumerate(pictures):
        layers = scene.panels[place // 3].layers
        planes = [plane_of(layer.codes, place % 3, 5) for layer in layers]
        expected = blend(planes, [layer.table for layer in layers], 0.7)
        assert np.array_equal(picture.swapaxes(0, 1), expected)


def test_in_the_picture_right_is_right_and_front_is_up():
    """Stored as PIR: the class lies at the patient's right, front and top."""
    affine = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[2:6, 3:7, 23:27] = 3  # x: front to back, y: top to bottom, z: left to right
    scan = make_volume(np.zeros(mask.shape), affine)
    figure = three_planes(scan, make_volume(mask, affine), (ONE,))
    pixels = decode(to_png(figure))
    height = len(pixels)
    for axes in figure.axes:
        box = axes.get_window_extent()
        rows = slice(height - int(box.y1), height - int(box.y0))
        part = pixels[rows, int(box.x0) : int(box.x1)]
        found = np.argwhere(part[..., 0] - part[..., 2] > 0.2) / part.shape[:2]
        assert len(found)
        assert (found[:, 0] < 0.35).all()  # near the top: front, or top
        assert (found[:, 1] > 0.65).all()  # to the right: front, or the patient's right
    letters = [
        [tick.get_text() for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        for axes in figure.axes
    ]
    assert letters == [["P", "A", "I", "S"], ["L", "R", "I", "S"], ["L", "R", "P", "A"]]


def test_boxes_are_drawn_where_the_plane_meets_them():
    scene = Scene(DISPLAY, (Panel("a", (grey_layer(DISPLAY, RAMP),)),))
    box = Box((2, 3, 4), (5, 6, 6), colour=(255, 0, 0))

    def count(cursor):
        return [len(axes.patches) for axes in draw_scene(scene, cursor, boxes=[box]).axes]

    assert count((2, 3, 4)) == [1, 1, 1]
    assert count((4, 5, 5)) == [1, 1, 1]
    assert count((5, 5, 5)) == [0, 1, 1]
    assert count((1, 2, 3)) == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 2), (60, 2, 2), (3, 3, 90)])
def test_thin_volumes_have_pictures(shape):
    volume = make_volume(np.zeros(shape), np.diag([0.3, 5, 1, 1]))
    display = Display.of(grid_of(volume))
    grey, heat = grey_layer(display, volume), heat_layer(display, volume)
    scene = Scene(display, (Panel("a", (grey, heat)), Panel("b", (grey,))))
    pixels = decode(to_png(draw_scene(scene, crosshair=True)))
    assert min(pixels.shape[:2]) > 50


def test_a_long_legend_is_cut_aloud():
    many = [ClassSpec(n, f"class {n}", (n,), PALETTE[n % 7]) for n in range(1, 30)]
    figure = three_planes(RAMP, labels(), many)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 9
    assert names[-1] == "and 21 more"
