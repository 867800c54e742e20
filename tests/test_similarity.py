import itertools

import numpy as np
import pytest

from medverse_nb import regions
from medverse_nb.errors import ContextError, InputError
from medverse_nb.evaluation.similarity import (
    DESCRIPTORS,
    Descriptor,
    choose,
    cosine,
    feature_descriptor,
    similarity,
)
from medverse_nb.geometry import Grid, Reorientation
from medverse_nb.io import read_volume
from medverse_nb.model.registry import load_model
from medverse_nb.pair import ContextPair, make_pair
from medverse_nb.resampling import resize
from medverse_nb.views import as_dask
from medverse_nb.volume import make_volume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (14, 16, 12)
AFFINE = np.array([[1.5, 0, 0, -10], [0, 1, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
NAMES = [*DESCRIPTORS, "features"]
LEAST = {"histogram": 0, "image": -1, "edges": -0.5, "features": -1}


@pytest.fixture(scope="module")
def descriptors(tiny_weights):
    return {**DESCRIPTORS, "features": feature_descriptor(load_model(tiny_weights, "cpu"))}


def draw(seed, shape=SHAPE, block=None):
    """Draw a bright block, its place and size by the seed, in dim noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(20, 4, shape)
    start = rng.integers(1, 6, 3) if block is None else block
    x, y, z = (slice(a, a + n) for a, n in zip(start, rng.integers(4, 7, 3), strict=True))
    image[x, y, z] += 60
    return image.astype(np.float32)


def pair(name, image, affine=AFFINE):
    return make_pair(image, np.ones(image.shape, np.uint8), name=name, affine=affine)


def pairs_of(*seeds):
    return [pair(f"pair-{seed}", draw(seed)) for seed in seeds]


def target(seed=0):
    return read_volume(draw(seed), AFFINE)


def values(table):
    return dict(zip(table["pair"], table["similarity"], strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("align", ["box", "center", "world"])
def test_the_target_itself_is_the_most_alike(descriptors, name, align):
    pairs = [*pairs_of(1, 2, 3), pair("itself", draw(0))]
    found = values(similarity(target(), pairs, descriptors[name], align=align))
    assert found["itself"] == pytest.approx(1, abs=1e-6)
    assert all(LEAST[name] <= found[p.name] < 0.999 for p in pairs[:-1])
    (first,) = choose(target(), pairs, 1, descriptors[name], align=align)
    assert first.name == "itself"


@pytest.mark.parametrize("name", NAMES)
def test_how_the_files_lie_changes_nothing(descriptors, name):
    plain = values(similarity(target(), pairs_of(1, 2), descriptors[name]))
    for axes, flips in [((2, 0, 1), (1, -1, 1)), ((1, 0, 2), (-1, -1, -1))]:
        turn = Reorientation(np.array(list(zip(axes, flips, strict=True)), float), SHAPE)
        turned = [pair(f"pair-{s}", turn.apply(draw(s)), turn.affine(AFFINE)) for s in (1, 2)]
        assert values(similarity(target(), turned, descriptors[name])) == plain
        scan = read_volume(np.ascontiguousarray(turn.apply(draw(0))), turn.affine(AFFINE))
        assert values(similarity(scan, pairs_of(1, 2), descriptors[name])) == plain


@pytest.mark.parametrize("name", NAMES)
def test_intensity_units_change_nothing(descriptors, name):
    plain = values(similarity(target(), pairs_of(1, 2), descriptors[name]))
    other = [pair(f"pair-{seed}", 1000 + 7 * draw(seed)) for seed in (1, 2)]
    assert values(similarity(target(), other, descriptors[name])) == pytest.approx(plain, abs=1e-3)


def test_only_edges_pass_over_an_inverted_contrast(descriptors):
    inverted = [pair("inverted", 100 - draw(0))]
    table = similarity(target(), inverted, list(descriptors.values()))
    found = dict(zip(table["descriptor"], table["similarity"], strict=True))
    assert found.pop("edges") == pytest.approx(1, abs=1e-4)
    assert found.pop("image") == pytest.approx(-1, abs=1e-4)
    assert max(found.values()) < 0.9


def test_a_histogram_does_not_know_where_and_an_image_does():
    moved = [pair("same place", draw(1, block=(2, 3, 2))), pair("moved", draw(1, block=(8, 9, 6)))]
    scan = read_volume(draw(1, block=(2, 3, 2)), AFFINE)
    table = similarity(scan, moved, ["histogram", "image"])
    histogram, image = (
        values(table[table["descriptor"] == name]) for name in ("histogram", "image")
    )
    assert histogram["moved"] > 0.99
    assert image["moved"] < 0.5


def test_a_histogram_has_the_distance_of_its_bins():
    describe, compare = DESCRIPTORS["histogram"].describe, DESCRIPTORS["histogram"].compare
    dark, bright = describe(np.zeros((2, 2, 2))), describe(np.ones((2, 2, 2)))
    assert compare(dark, bright) == pytest.approx(1 / 32)  # the first bin and the last
    assert compare(dark, describe(np.full((2, 2, 2), 0.5))) == pytest.approx(0.5)


def test_random_edges_have_nothing_in_common():
    one, other = (np.random.default_rng(seed).uniform(size=(24, 24, 24)) for seed in (1, 2))
    edges = DESCRIPTORS["edges"]
    assert abs(edges.compare(edges.describe(one), edges.describe(other))) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_volume_is_unlike_every_scan(descriptors, name):
    flat = read_volume(np.full(SHAPE, 3.0, np.float32), AFFINE)
    pairs = [pair("flat", np.full(SHAPE, 7.0, np.float32)), *pairs_of(1)]
    found = values(similarity(flat, pairs, descriptors[name]))
    assert found["flat"] == pytest.approx(1)
    assert found["pair-1"] < 0.9


def test_volumes_of_other_shapes_are_laid_on_the_box():
    coarse = Grid(SHAPE, AFFINE).resized((7, 10, 6))
    rough = pair("rough", resize(draw(0), coarse.shape), coarse.affine)
    found = values(similarity(target(), [*pairs_of(1), rough]))
    assert found["rough"] > 0.8 > found["pair-1"]


def test_a_row_a_pair_and_descriptor_in_their_order():
    table = similarity(target(), pairs_of(2, 1), ["image", "edges"])
    assert list(table.columns) == ["pair", "descriptor", "similarity"]
    assert list(zip(table["pair"], table["descriptor"], strict=True)) == [
        *itertools.product(["pair-2", "pair-1"], ["image", "edges"])
    ]
    alone = similarity(target(), pairs_of(2, 1), "edges")
    assert values(table[table["descriptor"] == "edges"]) == values(alone)


def test_a_descriptor_of_ones_own():
    brightness = Descriptor("brightness", lambda image: image.mean(keepdims=True).ravel(), cosine)
    table = similarity(target(), pairs_of(1), brightness)
    assert table["similarity"].tolist() == [1.0]
    assert table["descriptor"].tolist() == ["brightness"]


@pytest.mark.parametrize("name", [*NAMES, "random"])
def test_a_choice_does_not_depend_on_order_and_grows(descriptors, name):
    pairs = pairs_of(1, 2, 3, 4, 5)
    method = descriptors.get(name, name)
    choices = [
        [p.name for p in choose(target(), given, size, method)]
        for given in (pairs, pairs[::-1], pairs[2:] + pairs[:2])
        for size in (2, 5)
    ]
    small, large = choices[:2]
    assert choices == [small, large] * 3
    assert large[:2] == small
    assert sorted(large) == [p.name for p in pairs]


def test_pairs_equally_alike_come_by_name():
    twins = [pair(name, draw(1)) for name in "cab"]
    assert [p.name for p in choose(target(), twins, 3)] == ["a", "b", "c"]


def test_random_choices_differ_by_seed():
    pairs = pairs_of(*range(1, 7))
    drawn = {tuple(p.name for p in choose(target(), pairs, 3, "random", seed=s)) for s in range(10)}
    assert len(drawn) > 5


class Watched:
    """A volume that keeps the size of the largest region read from it."""

    def __init__(self, array):
        self.array, self.shape, self.largest = array, array.shape, 0

    def __getitem__(self, region):
        found = self.array[region]
        self.largest = max(self.largest, found.size)
        return found


@pytest.mark.parametrize("name", NAMES)
def test_a_large_volume_is_never_held_whole(descriptors, name, monkeypatch):
    monkeypatch.setattr(regions, "SLAB_VOXELS", 4000)
    image = draw(1, shape=(70, 30, 20))
    watched = Watched(image)
    lazy = make_volume(as_dask(watched, (16, 16, 16)), AFFINE)
    label = make_volume(np.ones(image.shape, np.uint8), AFFINE)
    scan = read_volume(draw(2, shape=image.shape), AFFINE)
    pairs = [ContextPair("large", lazy, label, "segmentation")]
    found = values(similarity(scan, pairs, descriptors[name]))
    assert 0 < watched.largest <= 4000 < image.size / 10
    assert found == pytest.approx(
        values(similarity(scan, [pair("large", image)], descriptors[name])), abs=1e-6
    )
    assert values(similarity(lazy, [pair("large", image)], descriptors[name]))["large"] > 0.9999


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: similarity(target(), []), ContextError, "no context pairs"),
        (lambda: similarity(target(), pairs_of(1, 1)), ContextError, "taken twice"),
        (lambda: similarity(target(), pairs_of(1), "colour"), InputError, "'colour'"),
        (lambda: similarity(target(), pairs_of(1), "features"), InputError, "feature_descriptor"),
        (lambda: similarity(target(), pairs_of(1), ["image"] * 2), InputError, "names of their"),
        (lambda: choose(target(), [], 1), ContextError, "no context pairs"),
        (lambda: choose(target(), pairs_of(1, 2), 3), ContextError, r"size=3 must lie in 1\.\.2"),
        (lambda: choose(target(), pairs_of(1, 2), 0), ContextError, "size=0"),
    ],
)
def test_what_cannot_be_asked_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()
