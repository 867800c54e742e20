import pickle

import dask.array as da
import numpy as np
import pytest

from medverse_nb import regions
from medverse_nb.geometry import Reorientation
from medverse_nb.intensity import IntensityScale
from medverse_nb.regions import read
from medverse_nb.resampling import resample_affine, resize
from medverse_nb.views import (
    Lazy,
    Mapped,
    Padded,
    Part,
    Placed,
    Resized,
    Turned,
    as_dask,
    clipped,
    crop,
    mapped,
    members,
)

VOLUME = np.random.default_rng(0).random((9, 7, 11), dtype=np.float32)
LABELS = np.random.default_rng(1).integers(0, 5, (9, 7, 11)).astype(np.uint8)
TILTED = np.array([[0.9, -0.3, 0, 2], [0.3, 0.9, 0, -1], [0, 0, 1.4, 0], [0, 0, 0, 1]])
SQUEEZED = np.diag([1.3, 0.5, 2.5, 1.0])
REGIONS = [
    (slice(0, 3), slice(2, 5), slice(0, 1)),
    (slice(2, 5), slice(0, 6), slice(3, 8)),
    (slice(None), slice(None), slice(None)),
]
every_region = pytest.mark.parametrize("region", REGIONS)


def turn_of(codes: str, shape=VOLUME.shape) -> Reorientation:
    import nibabel.orientations as nio

    return Reorientation(nio.axcodes2ornt(codes), shape)


VIEWS = {
    "turned": (Turned(VOLUME, turn_of("PIR")), turn_of("PIR").apply(VOLUME)),
    "scaled": (
        Mapped(VOLUME, IntensityScale(0.2, 0.7).apply),
        IntensityScale(0.2, 0.7).apply(VOLUME),
    ),
    "members": (members(LABELS, (1, 3)), np.isin(LABELS, (1, 3)).astype(np.float32)),
    "clipped": (clipped(3 * VOLUME - 1), np.clip(3 * VOLUME - 1, 0, 1)),
    "smaller": (Resized(VOLUME, (5, 6, 4)), resize(VOLUME, (5, 6, 4))),
    "larger": (Resized(VOLUME, (12, 7, 30)), resize(VOLUME, (12, 7, 30))),
    "corners": (
        Resized(VOLUME, (12, 7, 5), align_corners=True, antialias=False),
        resize(VOLUME, (12, 7, 5), align_corners=True, antialias=False),
    ),
    "placed": (
        Placed(VOLUME, SQUEEZED, (8, 9, 8), edge=True),
        resample_affine(VOLUME, SQUEEZED, (8, 9, 8), edge=True),
    ),
    "tilted": (
        Placed(VOLUME, TILTED, (8, 9, 8), edge=False),
        resample_affine(VOLUME, TILTED, (8, 9, 8), edge=False),
    ),
    "padded": (Padded(VOLUME, (12, 7, 13)), np.pad(VOLUME, ((0, 3), (0, 0), (0, 2)))),
    "part": (Part(np.stack([VOLUME, VOLUME + 1]), 1), VOLUME + 1),
    "lazy": (Lazy(da.from_array(VOLUME, chunks=4)), VOLUME),
    "stacked": (
        Resized(Mapped(Turned(VOLUME, turn_of("ALS")), IntensityScale(0, 2).apply), (5, 5, 5)),
        resize(IntensityScale(0, 2).apply(turn_of("ALS").apply(VOLUME)), (5, 5, 5)),
    ),
}


@every_region
@pytest.mark.parametrize("name", VIEWS)
def test_a_region_is_the_region_of_the_whole(name, region):
    view, whole = VIEWS[name]
    assert tuple(view.shape) == whole.shape
    assert np.allclose(read(view, region), whole[region], atol=1e-5)
    assert np.allclose(read(view), whole, atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_views_can_be_sent_to_another_process(name):
    view, whole = VIEWS[name]
    assert np.allclose(read(pickle.loads(pickle.dumps(view))), whole, atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR", "IAL", "ASL", "LIA"])
def test_a_turned_view_is_the_turned_array(codes):
    turn = turn_of(codes)
    whole = turn.apply(VOLUME)
    for region in REGIONS:
        assert np.array_equal(read(Turned(VOLUME, turn), region), whole[region])
    assert np.array_equal(turn.undo(whole), VOLUME)


class Counting:
    """An array that notes the largest piece read from it."""

    def __init__(self, array) -> None:
        self.array, self.shape, self.largest = array, array.shape, 0

    def __getitem__(self, region):
        piece = self.array[region]
        self.largest = max(self.largest, piece.size)
        return piece


@pytest.mark.parametrize("make", [lambda v: Turned(v, turn_of("PIR")), lambda v: v])
def test_only_the_voxels_behind_a_region_are_read(make):
    source = Counting(VOLUME)
    view = Resized(Mapped(make(source), IntensityScale(0, 1).apply), (18, 14, 22))
    read(view, (slice(0, 2), slice(0, 2), slice(0, 2)))
    assert source.largest <= 4**3


@pytest.mark.parametrize("matrix", [SQUEEZED, TILTED], ids=["straight", "tilted"])
def test_large_sources_are_read_in_slabs(monkeypatch, matrix):
    volume = np.random.default_rng(0).random((30, 28, 26), dtype=np.float32)
    whole = resample_affine(volume, matrix, (20, 20, 10), edge=True)
    monkeypatch.setattr(regions, "SLAB_VOXELS", 3000)
    source = Counting(volume)
    assert np.allclose(read(Placed(source, matrix, (20, 20, 10), edge=True)), whole, atol=1e-5)
    assert source.largest < volume.size / 4


def test_other_arrays_are_views():
    lazy = da.from_array(VOLUME, chunks=4)
    assert np.allclose(read(Resized(lazy, (5, 6, 4))), resize(VOLUME, (5, 6, 4)))
    assert np.array_equal(read(VOLUME, REGIONS[0]), VOLUME[REGIONS[0]])


def test_a_crop_is_zero_beyond_the_end():
    box = crop(VOLUME, (7, 5, 9), (4, 4, 4))
    assert np.array_equal(box[:2, :2, :2], VOLUME[7:, 5:, 9:])
    assert box.sum() == pytest.approx(VOLUME[7:, 5:, 9:].sum())
    assert not crop(VOLUME, (9, 7, 11), (2, 2, 2)).any()


def test_a_dask_array_of_a_view_is_read_without_a_graph(monkeypatch):
    source = Counting(VOLUME)
    lazy = as_dask(Resized(source, (18, 7, 11)), (8, 8, 8))
    assert lazy.dtype == np.float32
    assert np.allclose(lazy.compute(), resize(VOLUME, (18, 7, 11)))
    monkeypatch.setattr(da.Array, "compute", None)
    assert np.allclose(read(Lazy(lazy)), resize(VOLUME, (18, 7, 11)))
    source.largest = 0
    read(Lazy(lazy), (slice(0, 2), slice(0, 1), slice(0, 1)))
    assert source.largest <= 4 * 3 * 3


def test_a_function_of_an_array_is_applied_at_once():
    assert isinstance(mapped(VOLUME, np.negative), np.ndarray)
    view = mapped(Turned(VOLUME, turn_of("RAS")), np.negative)
    assert isinstance(view, Mapped)
    assert np.array_equal(read(view), -VOLUME)


def test_a_lazy_volume_is_sent_as_the_view_behind_it():
    view = Turned(VOLUME, Reorientation(np.array([[2, -1], [0, 1], [1, 1.0]]), VOLUME.shape))
    lazy = Lazy(as_dask(view, (4, 4, 4)))
    sent = pickle.loads(pickle.dumps(lazy))
    assert isinstance(sent, Turned)
    assert np.array_equal(read(sent), read(lazy))
    other = pickle.loads(pickle.dumps(Lazy(lazy.array + 1)))
    assert np.array_equal(read(other), read(lazy) + 1)
