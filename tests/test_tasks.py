import math
import random
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from medverse_nb import tasks
from medverse_nb.errors import InputError
from medverse_nb.tasks import TASKS, LabelDraw, Volumes, anatomy, gin
from medverse_nb.tasks import draw as drawing
from medverse_nb.tasks import labelmaps as maps
from medverse_nb.tasks import scenes as places
from medverse_nb.tasks.anatomy import (
    allowed_foreground,
    draw_foreground,
    shows_skull,
)
from medverse_nb.tasks.contrast import render_images
from medverse_nb.tasks.draw import TaskDraw, TaskRates, draw_task
from medverse_nb.tasks.enhancement import add_bias_field, cut_holes
from medverse_nb.tasks.fields import (
    blur,
    chance,
    coarsen,
    deformed_grid,
    double,
    integer,
    legendre_field,
    perlin_field,
    random_rotation,
    reduce_to,
    rescale_quantiles,
    smooth_field,
    uniform,
    unit_grid,
)
from medverse_nb.tasks.gin import random_contrast
from medverse_nb.tasks.labelmaps import (
    HeadMap,
    draw_head_labels,
    draw_shape_labels,
    gather_nearest,
    read_head_map,
    read_head_maps,
)
from medverse_nb.tasks.scenes import HeadSource, Mixture, Scene, ShapeSource

HIPPOCAMPUS = {17, 53}
VALUES = (0, 2, 3, 4, 17, 18, 53, 54, 500)  # a head in small; 17 and 53 are hippocampus
WINDOW = 16


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def plant_head(seed: int, side: int = 48) -> HeadMap:
    """Make a head of blocks, 6 voxels a side: every value everywhere, air around."""
    blocks = torch.randint(1, len(VALUES), (side // 6,) * 3, generator=seeded(seed))
    classes = torch.zeros((side,) * 3, dtype=torch.uint8)
    inner = blocks.repeat_interleave(6, 0).repeat_interleave(6, 1).repeat_interleave(6, 2)
    classes[6:-6, 6:-6, 6:-6] = inner[6:-6, 6:-6, 6:-6].to(torch.uint8)
    middle = torch.full((3,), side / 2)
    return HeadMap(f"head-{seed}", classes, VALUES, middle, torch.full((3,), side - 12.0))


HEADS = [plant_head(seed) for seed in (1, 2, 3)]
BRAINS, SHAPES = HeadSource(HEADS), ShapeSource()
USUAL = TaskRates()
ONE_SCALE, TWO_SCALES = (
    TaskRates(autoregressive=1.0, own_prediction=share, enhancement=0.0) for share in (0.0, 1.0)
)


def draw_brain(seed: int, rates: TaskRates = USUAL, size: int = 2) -> TaskDraw:
    return draw_task(BRAINS, seeded(seed), size, WINDOW, rates)


def tensors(task: TaskDraw) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(task).items() if isinstance(value, torch.Tensor)}


# --- tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [BRAINS, SHAPES])
@pytest.mark.parametrize("seed", range(4))
def test_the_generator_alone_decides_the_task(source, seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw_task(source, seeded(seed), 2, WINDOW)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(2)
    again = draw_task(source, seeded(seed), 2, WINDOW)
    assert first.kind == again.kind
    assert set(tensors(first)) == set(tensors(again))
    for name, value in tensors(first).items():
        assert torch.equal(value, tensors(again)[name]), name
    other = draw_task(source, seeded(seed + 100), 2, WINDOW)
    assert not torch.equal(first.target, other.target)


def assert_in_order(task: TaskDraw, size: int) -> None:
    assert task.weights == (TASKS[task.kind].weight,)
    cube = (WINDOW,) * 3
    assert task.target.shape == task.truth.shape == (1, 1, *cube)
    assert task.context_image.shape == task.context_label.shape == (1, size, 1, *cube)
    assert (task.ar_image is None) == (task.ar_label is None)
    if task.ar_image is not None:
        assert task.ar_image.shape == task.ar_label.shape == (1, 1, 1, *cube)
    for name, value in tensors(task).items():
        assert value.dtype == torch.float32, name
        assert 0 <= value.min() <= value.max() <= 1, name
        assert torch.isfinite(value).all(), name
    assert task.target.std() > 0
    assert not torch.equal(task.target[0], task.context_image[0, 0])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("source", [BRAINS, SHAPES])
def test_shapes_and_ranges(source, size):
    for seed in range(40):
        task = draw_task(source, seeded(seed), size, WINDOW, TaskRates(enhancement=0.6))
        assert_in_order(task, size)
        if task.coarse is not None:
            assert_in_order(task.coarse, size)
            assert task.coarse.kind == task.kind
            assert task.coarse.coarse is None


def test_segmentation_labels_have_a_foreground():
    for seed in range(20):
        task = draw_brain(seed, TaskRates(enhancement=0.0, padded=0.0, own_prediction=0.0))
        assert task.kind == "segmentation"
        assert task.truth.mean() > 0.0014  # the smallest share of a foreground, 0.15%


def share_within(count: int, draws: int, rate: float) -> bool:
    """Tell whether a share is what its rate makes likely, up to four deviations."""
    return abs(count / draws - rate) < 4 * math.sqrt(rate * (1 - rate) / draws)


def test_rates_are_what_comes_out():
    rates = TaskRates(enhancement=0.25, autoregressive=0.6, own_prediction=0.3)
    drawn = [draw_task(SHAPES, seeded(seed), 1, 8, rates) for seed in range(200)]
    imitated = sum(task.ar_image is not None for task in drawn)
    predicted = sum(task.coarse is not None for task in drawn)
    assert not any(task.coarse and task.ar_image is not None for task in drawn)
    assert share_within(imitated + predicted, 200, 0.6)
    assert share_within(predicted, 200, 0.6 * 0.3)
    assert share_within(sum(task.kind != "segmentation" for task in drawn), 200, 0.25)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_none_and_all(rate):
    for own in (0.0, 1.0):
        rates = TaskRates(enhancement=rate, autoregressive=rate, own_prediction=own, padded=rate)
        for seed in range(8):
            task = draw_brain(seed, rates, 1)
            assert (task.ar_image is not None) == (rate == 1 and own == 0)
            assert (task.coarse is not None) == bool(task.regions) == (rate == own == 1)
            assert (task.kind != "segmentation") == bool(rate)


def kinds_drawn(source, draws: int) -> list[str]:
    rates = TaskRates(enhancement=1.0, autoregressive=0.0)
    return [draw_task(source, seeded(seed), 1, 8, rates).kind for seed in range(draws)]


class Still:
    """A source that always shows the same, quickly."""

    shapes = draw_shape_labels(seeded(), 2, 8)

    def draw(self, *_, **__):
        return Scene(self.shapes, lambda _: torch.full((2, 8, 8, 8), 0.5))


def test_image_tasks_come_by_their_rates(monkeypatch):
    images = {name for name, task in TASKS.items() if not task.is_segmentation}
    kinds = kinds_drawn(Still(), 700)
    assert set(kinds) == images - {"skull_stripping"}  # shapes have no skull
    for kind in set(kinds):
        assert share_within(kinds.count(kind), 700, 1 / 7)
    for name in images - {"inpainting", "super_resolution"}:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], rate=0.0))
    monkeypatch.setitem(TASKS, "inpainting", replace(TASKS["inpainting"], rate=3.0))
    kinds = kinds_drawn(Still(), 400)
    assert set(kinds) == {"inpainting", "super_resolution"}
    assert share_within(kinds.count("inpainting"), 400, 0.75)


def test_a_source_of_one_contrast_is_never_asked_for_a_second(monkeypatch):
    class OneContrast(Still):
        def draw(self, *arguments, **settings):
            return replace(super().draw(*arguments, **settings), any_contrast=False)

    for name in set(TASKS) - {"segmentation", "modality_transform", "bias_field"}:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], rate=0.0))
    assert set(kinds_drawn(Still(), 30)) == {"modality_transform", "bias_field"}
    assert set(kinds_drawn(OneContrast(), 30)) == {"bias_field"}


def test_heads_bring_skull_stripping_where_it_has_work(monkeypatch):
    for name in set(TASKS) - {"segmentation", "skull_stripping"}:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], rate=1e-6))
    seen = []
    monkeypatch.setattr(
        drawing, "shows_skull", lambda draw: seen.append(shows_skull(draw)) or seen[-1]
    )
    kinds = kinds_drawn(BRAINS, 40)
    assert [kind == "skull_stripping" for kind in kinds] == seen
    assert True in seen
    assert False in seen


def test_groups_come_at_their_rate(monkeypatch):
    for group, sizes in [(0.0, {1}), (1.0, {2, 3})]:
        captured = capture_foregrounds(monkeypatch)
        rates = TaskRates(enhancement=0.0, group=group, largest_group=3)
        for seed in range(15):
            draw_task(BRAINS, seeded(seed), 1, 8, rates)
        assert {len(foreground) for _, foreground, _ in captured} == sizes


# --- sources -----------------------------------------------------------------------------------


def test_a_mixture_chooses_at_its_rates():
    mixture, generator = Mixture([BRAINS, SHAPES, Still()], [3.0, 1.0, 0.0]), seeded()
    chosen = [mixture.choose(generator) for _ in range(400)]
    assert chosen.count(mixture.sources[2]) == 0
    assert share_within(chosen.count(BRAINS), 400, 0.75)
    assert chosen.count(BRAINS) + chosen.count(SHAPES) == 400
    assert [mixture.choose(seeded(s)) for s in range(9)] == [
        mixture.choose(seeded(s)) for s in range(9)
    ]


def test_heads_are_cut_in_the_widths_that_are_promised(monkeypatch):
    asked = []

    def draw(heads, generator, count, side, width_mm):
        asked.append((side, width_mm))
        return draw_head_labels(heads, generator, count, side, width_mm)

    monkeypatch.setattr(places, "draw_head_labels", draw)
    for seed in range(200):
        BRAINS.draw(seeded(seed), 1, 32, finer=seed % 2 == 0)
    sides, widths = zip(*asked, strict=True)
    assert 0.85 <= min(widths) / 32 < 0.9  # about as fine as scans are
    assert 200 < max(widths) <= 240
    assert sum(width < 64 for width in widths) > 100
    assert set(sides[1::2]) == {32}
    partial_volume = {side for side, width in asked[::2] if width > 1.4 * 32}
    assert partial_volume == {64}
    assert {side for side, width in asked[::2] if width <= 1.4 * 32} == {32}
    asked.clear()
    for seed in range(20):
        BRAINS.draw(seeded(seed), 1, 8, finer=False)
    assert 0.85 * 8 <= min(width for _, width in asked) < 28  # small windows show small places


@pytest.mark.parametrize("source", [BRAINS, SHAPES])
def test_a_scene_paints_what_its_labels_show(source):
    scene = source.draw(seeded(3), 2, 8)
    assert scene.any_contrast
    assert scene.labels.is_brain == (source is BRAINS)
    first, second = scene.paint(seeded(1)), scene.paint(seeded(2))
    assert first.shape == second.shape == (2, 8, 8, 8)
    assert not torch.equal(first, second)


def test_shapes_are_finer_at_times_where_they_may_be():
    sides = {SHAPES.draw(seeded(seed), 1, 8).labels.classes.shape[-1] for seed in range(20)}
    assert sides == {8, 16}
    sides = {
        SHAPES.draw(seeded(seed), 1, 8, finer=False).labels.classes.shape[-1] for seed in range(20)
    }
    assert sides == {8}


def test_a_head_source_keeps_out_what_it_is_told(monkeypatch):
    captured = capture_foregrounds(monkeypatch)
    source = HeadSource(HEADS, never=frozenset({3, 54}))
    rates = TaskRates(enhancement=0.0, group=1.0, autoregressive=0.5)
    for seed in range(30):
        draw_task(source, seeded(seed), 1, 8, rates)
    asked = {draw.values[index] for draw, foreground, _ in captured for index in foreground}
    assert asked == set(VALUES) - {0, 3, 54} - HIPPOCAMPUS


# --- two scales --------------------------------------------------------------------------------


@pytest.fixture
def whole_volumes(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The volumes of each task before they are cut: images and labels, side 2 * WINDOW."""
    kept = []
    turn, pad = drawing._turn, drawing._pad

    def turned(*arguments):
        kept.append(turn(*arguments))
        return kept[-1]

    def padded(*arguments):
        images, labels, sides = pad(*arguments)
        kept[-1] = images, labels
        return images, labels, sides

    monkeypatch.setattr(drawing, "_turn", turned)
    monkeypatch.setattr(drawing, "_pad", padded)
    return kept


@pytest.mark.parametrize("source", [BRAINS, SHAPES])
def test_the_fine_task_is_a_region_of_what_the_coarse_one_shows(source, whole_volumes):
    regions = set()
    for seed in range(12):
        task = draw_task(source, seeded(seed), 2, WINDOW, replace(TWO_SCALES, enhancement=0.3))
        images, labels = whole_volumes[-1]
        assert images.shape == (3, *(2 * WINDOW,) * 3)
        (region,) = task.regions
        assert all(r.stop - r.start == WINDOW and r.start >= 0 for r in region)
        assert torch.equal(task.target[0], images[:1][(..., *region)])
        assert torch.equal(task.truth[0], labels[:1][(..., *region)])
        assert torch.equal(task.context_image[0, :, 0], images[1:][(..., *region)])
        assert torch.equal(task.context_label[0, :, 0], labels[1:][(..., *region)])
        coarse = task.coarse
        assert torch.equal(coarse.target[0], F.avg_pool3d(images[:1], 2))
        assert torch.equal(coarse.truth[0], F.avg_pool3d(labels[:1], 2))
        assert torch.equal(coarse.context_image[0, :, 0], F.avg_pool3d(images[1:], 2))
        assert torch.equal(coarse.context_label[0, :, 0], F.avg_pool3d(labels[1:], 2))
        regions.add(tuple(r.start for r in region))
    assert len(regions) > 6
    assert max(map(max, regions)) <= WINDOW


def test_feeding_back_the_truth_gives_the_coarsened_truth(whole_volumes):
    inside, compared = (..., *[slice(2, -2)] * 3), 0
    for seed in range(32):
        task = draw_brain(seed, TWO_SCALES)
        images, labels = whole_volumes[-1]
        fed = task.feed_back(task.coarse.truth)
        assert fed.coarse is None
        assert fed.regions == ()
        assert fed.ar_image.shape == fed.ar_label.shape == (1, 1, 1, *(WINDOW,) * 3)
        assert torch.allclose(fed.ar_label[0, 0], coarsen(labels[:1])[(..., *task.regions[0])])
        assert torch.allclose(fed.ar_image[0, 0], coarsen(images[:1])[(..., *task.regions[0])])
        for name in ("target", "truth", "context_image", "context_label"):
            assert getattr(fed, name) is getattr(task, name)
        assert task.coarse is not None  # the task itself is not changed
        # the same region, coarsened alone: blocks may lie a voxel apart where it starts odd
        alone = coarsen(task.truth)[inside]
        if alone.mean() > 0.05:
            off = (fed.ar_label[0][inside] - alone).abs().mean()
            assert off < 0.3 * (fed.ar_label[0].roll(6, -1)[inside] - alone).abs().mean()
            compared += 1
    assert compared > 5


def test_feeding_back_by_hand():
    """Ramps pass through halving and doubling unchanged, away from the border."""
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 16, 16) / 20
    half = F.avg_pool3d(ramp, 2)
    context = half[None]
    coarse = TaskDraw(("segmentation",), half, half, context, context)
    region = (slice(3, 11), slice(0, 8), slice(8, 16))
    crop = ramp[(..., *region)]
    task = TaskDraw(
        ("segmentation",), crop, crop, crop[None], crop[None], coarse=coarse, regions=(region,)
    )
    fed = task.feed_back(1 - half)
    assert torch.allclose(fed.ar_image[0], crop)
    assert torch.allclose(fed.ar_label[0], 1 - crop)
    assert torch.equal(task.feed_back(half + 5).ar_label, torch.ones(1, 1, 1, 8, 8, 8))
    assert torch.equal(task.feed_back(half - 5).ar_label, torch.zeros(1, 1, 1, 8, 8, 8))


@pytest.mark.parametrize("feedback", ["none", "imitated", "own"])
def test_stacked_tasks_are_the_tasks_one_after_the_other(feedback):
    tasks = [draw_task(SHAPES, seeded(s), 2, WINDOW, USUAL, feedback) for s in range(3)]
    together = drawing.stack_tasks(tasks)
    assert together.kinds == tuple(task.kind for task in tasks)
    assert together.weights == tuple(task.weights[0] for task in tasks)
    assert (together.coarse is not None) == (feedback == "own")
    assert (together.ar_image is not None) == (feedback == "imitated")
    if feedback == "own":
        answers = [1 - task.coarse.truth for task in tasks]
        together = together.feed_back(torch.cat(answers))
        tasks = [task.feed_back(answer) for task, answer in zip(tasks, answers, strict=True)]
    for place, task in enumerate(tasks):
        for name, value in tensors(task).items():
            assert torch.equal(getattr(together, name)[place : place + 1], value), name


def test_tasks_move_to_a_device_whole():
    task = draw_task(SHAPES, seeded(0), 2, WINDOW, USUAL, "own")
    moved = task.to(torch.device("meta"))
    assert {value.device.type for value in tensors(moved).values()} == {"meta"}
    assert moved.coarse.target.is_meta
    assert (moved.kinds, moved.regions) == (task.kinds, task.regions)


def test_a_region_lies_in_what_padding_kept():
    for kept in [(32, 32, 32), (20, 16, 12)]:
        starts = [
            [r.start for r in drawing._draw_region(kept, 16, seeded(seed))] for seed in range(200)
        ]
        for axis, side in enumerate(kept):
            assert {start[axis] for start in starts} == set(range(max(0, side - 16) + 1))


# --- volumes -----------------------------------------------------------------------------------


def test_padding_keeps_a_corner_box_of_every_volume():
    sides = set()
    for seed in range(30):
        images, labels, told = drawing._pad(
            torch.ones(3, 16, 16, 16), torch.full((3, 16, 16, 16), 0.5), seeded(seed)
        )
        kept = images[0] > 0
        x, y, z = (
            int(kept.amax((1, 2)).sum()),
            int(kept.amax((0, 2)).sum()),
            int(kept.amax((0, 1)).sum()),
        )
        assert told == (x, y, z)
        assert kept[:x, :y, :z].all()
        assert int(kept.sum()) == x * y * z  # nothing beyond the box
        assert torch.equal(images[1] > 0, kept)
        assert torch.equal(labels[2] > 0, kept)
        assert all(6 <= side <= 16 for side in (x, y, z))
        sides |= {x, y, z}
    assert {6, 16} <= sides


def test_the_padded_share_is_zero_at_the_end_of_every_volume():
    """In padded tasks the end of some axis is zero in target, truth and context alike."""
    padded = 0
    for seed in range(20):
        rates = TaskRates(padded=1.0, autoregressive=0.0)
        task = draw_brain(seed, rates)
        together = torch.cat(
            [task.target[0], task.truth[0], *task.context_image[0], *task.context_label[0]]
        )
        ends = [together[:, -1].any(), together[:, :, -1].any(), together[:, :, :, -1].any()]
        starts = [together[:, 0].any(), together[:, :, 0].any(), together[:, :, :, 0].any()]
        padded += not all(ends)
        assert all(starts)
    assert padded >= 18  # all three axes keep their full side once in 1331 draws


def test_turning_moves_images_and_labels_alike():
    images = torch.rand(2, 4, 4, 4, generator=seeded())
    results = []
    for seed in range(60):
        turned, labels = drawing._turn(images, 2 * images, seeded(seed))
        assert torch.equal(labels, 2 * turned)
        assert torch.equal(turned.flatten(1).sort().values, images.flatten(1).sort().values)
        results.append(turned)
    assert len({tuple(r.flatten().tolist()) for r in results}) > 20


def test_coarsen_by_hand():
    x = torch.zeros(1, 1, 4, 2, 2)
    x[:, :, 2:] = torch.tensor([[[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # halves along the first axis: 0, 2; back to four: 0, a quarter, three quarters, the last
    assert coarsen(x)[0, 0, :, 0, 0].tolist() == pytest.approx([0, 0.5, 1.5, 2])
    flat = torch.full((2, 3, 8, 8, 8), 0.3)
    assert torch.allclose(coarsen(flat), flat)


def test_double_by_hand():
    x = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    # between the centres of neighbours, a quarter and three quarters of the way
    assert double(x)[0, :, 0, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1, 1, 1])
    y = torch.rand(2, 3, 4, 5, 6, generator=seeded())
    assert double(y).shape == (2, 3, 8, 10, 12)
    assert torch.allclose(double(y)[1, 2], double(y[1, 2]))
    assert torch.allclose(double(y.movedim(2, 4)), double(y).movedim(2, 4))


@pytest.mark.parametrize("kind", ["segmentation", "inpainting"])
def test_the_imitated_prediction_looks_like_the_truth(kind):
    labels = torch.zeros(3, 1, 16, 16, 16)
    labels[:, :, 4:12, 4:12, 4:12] = 1
    differences = []
    for seed in range(20):
        coarse = drawing.imitate_coarse_prediction(labels, kind, seeded(seed))
        assert coarse.shape == (1, 1, 1, 16, 16, 16)
        assert 0 <= coarse.min() <= coarse.max() <= 1
        differences.append(float((coarse[0, 0] - labels[0]).abs().mean()))
    assert 0.01 < np.mean(differences) < 0.2  # never the truth itself, nor far from it
    assert np.std(differences) > 1e-4


# --- hippocampus stays unseen ------------------------------------------------------------------


def planted_draw(seed: int) -> LabelDraw:
    classes = torch.randint(0, len(VALUES), (2, 8, 8, 8), generator=seeded(seed))
    return LabelDraw(classes.to(torch.uint8), VALUES, is_brain=True)


def drawn_values(draws: int = 3000) -> tuple[set[int], list[int]]:
    """Draw the shipped recipe's foregrounds; return the values seen and the sizes of the groups."""
    generator, seen, sizes, rates = seeded(), set(), [], TaskRates()
    for number in range(draws):
        draw = planted_draw(number % 40)
        foreground = draw_foreground(draw, generator, rates.group, rates.largest_group)
        assert len(set(foreground)) == len(foreground)
        seen |= {VALUES[index] for index in foreground}
        sizes.append(len(foreground))
    return seen, sizes


def test_hippocampus_is_never_a_foreground_alone_or_in_a_group():
    seen, sizes = drawn_values()
    assert seen == set(VALUES) - HIPPOCAMPUS - {0}
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert abs(sizes.count(1) / 3000 - 0.6) < 4 * math.sqrt(0.24 / 3000)


def test_without_the_rule_hippocampus_would_be_drawn(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(anatomy, "NEVER_FOREGROUND", frozenset())
    assert drawn_values(200)[0] == set(VALUES) - {0}


def test_only_hippocampus_large_enough_gives_no_foreground():
    classes = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    classes[:, :4] = VALUES.index(17)
    classes[:, 4:, :4] = VALUES.index(53)
    draw = LabelDraw(classes, VALUES, is_brain=True)
    assert draw_foreground(draw, seeded()) == []
    shapes = LabelDraw(classes, tuple(range(len(VALUES))), is_brain=False)
    assert set(allowed_foreground(shapes)) == {4, 6}  # shapes are not anatomy


def test_small_classes_are_no_foreground():
    classes = torch.zeros(2, 10, 10, 10, dtype=torch.uint8)
    classes[0, 0, 0, 0], classes[0, 1, 0, :2] = 1, 2  # 0.1% and 0.2%
    classes[1, :5] = 3  # in another subject than the target
    draw = LabelDraw(classes, VALUES, is_brain=True)
    assert allowed_foreground(draw) == [2]


@pytest.mark.parametrize("is_brain", [True, False])
def test_what_is_never_to_be_asked_for_is_no_foreground(is_brain):
    classes = torch.randint(0, len(VALUES), (2, 8, 8, 8), generator=seeded()).to(torch.uint8)
    draw = LabelDraw(classes, VALUES, is_brain, never=frozenset({2, 18}))
    allowed = {VALUES[index] for index in allowed_foreground(draw)}
    assert allowed == set(VALUES) - {0, 2, 18} - (HIPPOCAMPUS if is_brain else set())
    everything = LabelDraw(classes, VALUES, is_brain=False, never=frozenset(VALUES))
    assert draw_foreground(everything, seeded()) == []


def capture_foregrounds(monkeypatch) -> list[tuple[LabelDraw, list[int], torch.Tensor]]:
    captured, masks_of = [], LabelDraw.masks

    def masks(draw, foreground, side):
        captured.append((draw, list(foreground), masks_of(draw, foreground, side)))
        return captured[-1][-1]

    monkeypatch.setattr(LabelDraw, "masks", masks)
    return captured


def assert_no_hippocampus(captured) -> int:
    """Assert on the rendered masks themselves; return the hippocampus voxels seen as anatomy."""
    anatomy = 0
    for draw, foreground, masks in captured:
        values = torch.tensor(draw.values)[draw.classes.long()]
        hippocampus = (values == 17) | (values == 53)
        assert not {draw.values[index] for index in foreground} & HIPPOCAMPUS
        share = reduce_to(hippocampus.float(), masks.shape[-1])
        assert (masks + share).max() <= 1 + 1e-6  # whatever is hippocampus is not foreground
        assert (masks[share == 1] == 0).all()
        anatomy += int(hippocampus.sum())
    return anatomy


def test_no_hippocampus_voxel_is_foreground_in_any_rendered_mask(monkeypatch):
    captured = capture_foregrounds(monkeypatch)
    for seed in range(60):
        draw_brain(seed, ONE_SCALE if seed % 2 else TWO_SCALES)
    assert len(captured) == 60
    assert {masks.shape[-1] for _, _, masks in captured} == {WINDOW, 2 * WINDOW}
    assert assert_no_hippocampus(captured) > 1000  # it may appear as anatomy, and does
    # and a mask that has it is caught
    draw, _, _ = captured[0]
    for index in (VALUES.index(17), VALUES.index(53)):
        draw.classes[:] = index
        with pytest.raises(AssertionError):
            assert_no_hippocampus([(draw, [], draw.masks([index], WINDOW))])


def test_no_task_asks_for_hippocampus(monkeypatch):
    """Segmentation, as a notebook calls it, avoids it; the other tasks ask for whole images."""
    captured = capture_foregrounds(monkeypatch)
    asking = [task.function for task in TASKS.values() if task.is_segmentation]
    for seed in range(60):
        labels = planted_draw(seed)
        volumes = Volumes(torch.full((2, 8, 8, 8), 0.5), labels)
        for function in asking:
            function(volumes, seeded(seed))
    assert len(captured) == 60 * len(asking) > 0
    assert assert_no_hippocampus(captured) > 1000


def test_hippocampus_of_a_real_head_is_never_foreground(shared, monkeypatch):
    path = shared / "data" / "brain_label_maps" / "training_seg_01.nii.gz"
    if not path.is_file():
        pytest.skip(f"no label map at {path}")
    head = read_head_map(path)
    assert set(head.values) >= HIPPOCAMPUS
    for value in HIPPOCAMPUS:
        assert (head.classes == head.values.index(value)).sum() > 1000
    captured = capture_foregrounds(monkeypatch)
    rates = TaskRates(enhancement=0.0, padded=0.0)
    for seed in range(25):
        draw_task(HeadSource([head]), seeded(seed), 1, WINDOW, rates)
    assert assert_no_hippocampus(captured) > 1000


# --- label maps ----------------------------------------------------------------------------------


def write_head(path, codes: str = "RAS") -> np.ndarray:
    labels = np.zeros((12, 10, 8), np.int16)
    labels[2:10, 3:8, 1:7] = 3
    labels[4:6, 4:6, 2:4] = 17
    labels[0, 0, 0] = 24  # fluid does not count as brain
    labels[11] = 510  # nor what lies outside it
    image = nib.Nifti1Image(labels, np.eye(4))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(turn), path)
    return labels


@pytest.mark.parametrize("codes", ["RAS", "LIA"])
def test_a_head_map_is_read_in_ras_and_renumbered(tmp_path, codes):
    labels = write_head(tmp_path / "seg.nii.gz", codes)
    head = read_head_map(tmp_path / "seg.nii.gz")
    assert head.values == (0, 3, 17, 24, 510)
    assert np.array_equal(np.array(head.values)[head.classes.numpy()], labels)
    assert head.centre.tolist() == [5.5, 5, 3.5]
    assert head.extent.tolist() == [7, 4, 5]
    assert head.name == "seg"


def test_a_cohort_shares_one_numbering(tmp_path):
    write_head(tmp_path / "training_seg_01.nii.gz")
    second = np.zeros((4, 4, 4), np.int16)
    second[1:3, 1:3, 1:3] = 53
    nib.save(nib.Nifti1Image(second, np.eye(4)), tmp_path / "training_seg_02.nii.gz")
    paths = [tmp_path / f"training_seg_0{number}.nii.gz" for number in (1, 2, 3)]
    one, two = read_head_maps(paths[:2])
    assert one.values == two.values == (0, 3, 17, 24, 53, 510)
    assert two.classes[1, 1, 1] == one.values.index(53)
    assert one.classes[4, 4, 2] == one.values.index(17)
    assert torch.isnan(two.centroids[one.values.index(17)]).all()
    assert two.centroids[one.values.index(53)].tolist() == [1.5, 1.5, 1.5]
    with pytest.raises(InputError, match="training_seg_03"):
        read_head_maps(paths)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 3, 2.5), "whole numbers"),
        ((0, 3, -1), "whole numbers"),
        ((0, 3, 70_000), "whole numbers from 0 to 65535"),
        ((0, 24, 500), "no voxel has a FreeSurfer label"),
        (range(300), "300 labels"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, values, message):
    labels = np.resize(np.array(list(values), np.float32), (8, 8, 8))
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "seg.nii.gz")
    with pytest.raises(InputError, match=message):
        read_head_map(tmp_path / "seg.nii.gz")


def test_a_cohort_with_too_many_labels_is_refused():
    heads = [replace(HEADS[0], values=tuple(range(9 * n, 9 * n + 9))) for n in range(29)]
    assert maps.share_numbering(heads[:28])[27].classes.max() == 9 * 28 - 1
    with pytest.raises(InputError, match="261 labels in 29 maps"):
        maps.share_numbering(heads)


def test_gather_nearest_by_hand():
    volume = torch.arange(8, dtype=torch.uint8).view(2, 2, 2) + 1
    places = torch.tensor(
        [[0.0, 1.0, 0.4, -0.6, 1.6], [0.0, 1.0, 0.6, 0, 0], [0.0, 0.0, 1.4, 0, 0]]
    )
    assert gather_nearest(volume, places).tolist() == [1, 7, 4, 0, 0]


def agreement(draw: LabelDraw) -> tuple[float, float]:
    """Return how often two volumes agree voxel by voxel, and how often they would by chance."""
    one, two = draw.classes[0].flatten(), draw.classes[1].flatten()
    shuffled = two[torch.randperm(len(two), generator=seeded(9))]
    return float((one == two).float().mean()), float((one == shuffled).float().mean())


def test_shapes_recur_in_every_volume_of_a_task():
    gains = []
    for seed in range(16):
        draw = draw_shape_labels(seeded(seed), 3, 16)
        assert draw.classes.shape == (3, 16, 16, 16)
        assert draw.classes.dtype == torch.uint8
        assert 3 <= len(draw.values) <= 13
        assert int(draw.classes.max()) < len(draw.values)
        assert not torch.equal(draw.classes[0], draw.classes[1])
        found, by_chance = agreement(draw)
        gains.append(found - by_chance)
    assert np.mean(gains) > 0.1


def test_head_crops_show_the_same_place():
    """One head twice: the crops agree more than by chance, and less than wholly."""
    gains = []
    for seed in range(12):
        draw = draw_head_labels([HEADS[0]], seeded(seed), 2, 24, width_mm=40.0)
        assert draw.classes.shape == (2, 24, 24, 24)
        assert draw.is_brain
        assert draw.values == VALUES
        found, by_chance = agreement(draw)
        assert found < 1
        gains.append(found - by_chance)
    assert np.mean(gains) > 0.1


def cube_head(at: tuple[int, int, int], box: tuple[int, int, int] = (32, 32, 32)) -> HeadMap:
    """Make a head whose one structure is a cube of 5 voxels around `at`."""
    classes = torch.zeros(64, 64, 64, dtype=torch.uint8)
    classes[tuple(slice(a - 2, a + 3) for a in at)] = 1
    return HeadMap("cube", classes, (0, 3), torch.tensor(box).float(), torch.full((3,), 40.0))


def centre_of(classes: torch.Tensor) -> list[float]:
    return classes.nonzero().float().mean(0).tolist()


def test_centroids_by_hand():
    assert cube_head((20, 30, 41)).centroids[1].tolist() == [20, 30, 41]
    classes = torch.zeros(2, 3, 4, dtype=torch.uint8)
    classes[0, 1, 1], classes[1, 2, 2] = 2, 2
    head = HeadMap("", classes, (0, 5, 9, 11), torch.zeros(3), torch.ones(3))
    assert head.centroids[2].tolist() == [0.5, 1.5, 1.5]
    assert torch.isnan(head.centroids[[1, 3]]).all()
    others = (classes == 0).nonzero().double().mean(0)
    assert torch.allclose(head.centroids[0].double(), others)


@pytest.fixture
def undeformed(monkeypatch):
    """Cut crops without jitter, pose or deformation."""
    monkeypatch.setattr(maps, "uniform", lambda _generator, low, _high: low)
    monkeypatch.setattr(maps, "deformed_grid", lambda _generator, side, *_: unit_grid(side))


def test_crops_around_a_structure_show_it_at_the_same_voxel(undeformed, monkeypatch):
    heads = [cube_head((24, 30, 40)), cube_head((36, 22, 31), (30, 35, 32))]
    for by_structure in (True, False):
        monkeypatch.setattr(maps, "chance", lambda *_, answer=by_structure: answer)
        apart = []
        for seed in range(10):
            one, two = draw_head_labels(heads, seeded(seed), 2, 48, width_mm=48.0).classes
            assert 0 < one.sum() <= 125
            apart.append(torch.equal(one, two))
        assert apart == [by_structure] * 10


def test_other_crops_lie_at_the_same_place_of_the_brains_box(undeformed, monkeypatch):
    monkeypatch.setattr(maps, "chance", lambda *_: False)
    # a brain twice as large: what lies 4 voxels off the centre of one lies 8 off the other's
    small = cube_head((36, 32, 32))
    large = replace(cube_head((38, 30, 30), (30, 30, 30)), extent=torch.full((3,), 80.0))
    compared = 0
    for seed in range(40):
        draw = draw_head_labels([small, large], seeded(seed), 2, 64, width_mm=64.0)
        order = torch.randperm(2, generator=seeded(seed)).tolist()
        one, two = draw.classes[order.index(0)], draw.classes[order.index(1)]
        if one.sum() == two.sum() == 125:  # whole in both crops, whose centre is at 31.5
            off = [at - 31.5 for at in centre_of(one)]
            assert [at - 31.5 for at in centre_of(two)] == pytest.approx(
                [2 * at for at in off], abs=1.6
            )
            compared += max(map(abs, off)) > 4
    assert compared > 5


def test_a_head_without_the_structure_is_laid_by_its_box(undeformed, monkeypatch):
    monkeypatch.setattr(maps, "chance", lambda *_: True)
    without = cube_head((32, 32, 32))
    without.classes[without.classes == 1] = 0
    without.classes[30:35, 30:35, 30:35] = 2
    heads = [replace(head, values=(0, 3, 9)) for head in (cube_head((32, 32, 32)), without)]
    seen = set()
    for seed in range(20):
        one, two = draw_head_labels(heads, seeded(seed), 2, 40, width_mm=40.0).classes
        assert torch.equal(one > 0, two > 0)
        seen |= {int(one.max()), int(two.max())}
    assert seen == {1, 2}


def test_half_of_the_tasks_are_cut_by_structure_or_less(monkeypatch):
    asked = []

    def noted(generator, probability):
        asked.append(probability)
        return chance(generator, probability)

    monkeypatch.setattr(maps, "chance", noted)
    for seed in range(5):
        draw_head_labels(HEADS, seeded(seed), 2, 8, width_mm=40.0)
    assert asked == [maps.BY_STRUCTURE] * 5 == [0.4] * 5


def test_heads_are_posed_each_in_its_own_way(monkeypatch):
    turns, grids = [], []

    def noted(generator, side, affine, elastic, turn):
        turns.append(turn)
        grids.append(deformed_grid(generator, side, 0.0, 0.0, turn))
        return grids[-1]

    monkeypatch.setattr(maps, "deformed_grid", noted)
    for seed in range(60):
        draw_head_labels(HEADS, seeded(seed), 2, 8, width_mm=40.0)
        assert turns[-1] == turns[-2]  # how far heads turn is the task's, where to is theirs
        assert not torch.equal(grids[-1], grids[-2])
    assert 0 <= min(turns) < 0.01
    assert 0.2 < max(turns) <= maps.LARGEST_TURN


def test_a_pose_is_a_rotation_as_large_as_it_is_asked():
    grid = unit_grid(6)
    angles = []
    for seed in range(200):
        rotation = random_rotation(seeded(seed), 0.2)
        assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
        assert torch.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
        angles.append(math.acos(min(1.0, (float(rotation.trace()) - 1) / 2)))
        if seed < 5:
            posed = deformed_grid(seeded(seed), 6, 0.0, 0.0, turn=0.2)
            after = seeded(seed)
            torch.randn(3, 3, generator=after)  # the affine noise comes first
            turn = random_rotation(after, 0.2)
            assert torch.allclose(posed, torch.einsum("ij,jxyz->ixyz", turn, grid), atol=1e-5)
    # the angle's square is the sum of three, each of variance 0.04
    mean_square = float(np.mean(np.square(angles)))
    assert mean_square == pytest.approx(3 * 0.04, rel=4 * math.sqrt(2 / 3 / 200))
    assert torch.equal(random_rotation(seeded(), 0.0), torch.eye(3))


# --- images ------------------------------------------------------------------------------------


def test_soft_labels_are_shares_of_voxels():
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    classes[0, :2, :2, :2] = 1
    classes[0, 2, 2, 2] = 2
    draw = LabelDraw(classes, (0, 5, 9), is_brain=False)
    masks = draw.masks([1, 2], 2)
    assert masks[0, 0, 0, 0] == 1
    assert masks[0, 1, 1, 1] == 1 / 8
    assert masks.sum() == 1 + 1 / 8
    assert torch.equal(draw.masks([2], 4)[0], (classes[0] == 2).float())


def edge_steps(spacing_mm: float) -> torch.Tensor:
    """The share of an edge's height that lies in its steepest step, one image a seed."""
    classes = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    classes[:, 8:] = 1
    draw = LabelDraw(classes, (0, 1), is_brain=False)
    steps = []
    for seed in range(40):
        profile = render_images(draw, seeded(seed), 16, spacing_mm)[0].mean((1, 2))
        height = (profile[12:].mean() - profile[:4].mean()).abs()
        if height > 0.3:
            steps.append((profile[8] - profile[7]).abs() / height)
    return torch.stack(steps)


def test_edges_are_as_soft_as_a_scanner_makes_them():
    fine, coarse = edge_steps(0.85), edge_steps(5.0)
    assert fine.min() < 0.35  # a smoothed scan
    assert fine.max() > 0.8  # a sharp one
    assert coarse.median() > 0.9  # the point spread lies within a voxel


def test_a_tissue_varies_slowly_within_itself():
    draw = LabelDraw(torch.ones(1, 16, 16, 16, dtype=torch.uint8), (0, 1), is_brain=False)
    correlations = []
    for seed in range(20):
        image = render_images(draw, seeded(seed), 16, 3.0)[0]
        halves = F.avg_pool3d(image[None], 4)[0]
        correlations.append(torch.corrcoef(torch.stack([halves[1:].ravel(), halves[:-1].ravel()])))
    assert torch.stack(correlations)[:, 0, 1].median() > 0.3


def test_pairs_of_a_task_share_their_contrast():
    """The order of the class means in one image is that in the others."""
    classes = (torch.arange(4).view(4, 1, 1) * torch.ones(1, 4, 4)).to(torch.uint8)
    classes = classes.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    draw = LabelDraw(classes.repeat(6, 1, 1, 1), (0, 1, 2, 3), is_brain=False)
    correlations = []
    for seed in range(10):
        images = render_images(draw, seeded(seed), 16)
        assert 0 <= images.min() <= images.max() <= 1
        means = torch.stack([images[:, classes == c].mean(1) for c in range(4)], 1)
        correlations.append(torch.corrcoef(means)[0, 1:].mean())
    assert torch.stack(correlations).median() > 0.9


# --- every task ------------------------------------------------------------------------------

SIDE = 12
DRAWS_NOTHING = {"skull_stripping", "slices_to_volume", "super_resolution", "modality_transform"}


def planted_volumes(seed: int = 0, count: int = 3) -> Volumes:
    generator = seeded(seed)
    classes = torch.randint(0, len(VALUES), (count, SIDE, SIDE, SIDE), generator=generator)
    fine = classes.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return Volumes(
        images=torch.rand(count, SIDE, SIDE, SIDE, generator=generator),
        labels=LabelDraw(fine.to(torch.uint8), VALUES, is_brain=True),
        second=torch.rand(count, SIDE, SIDE, SIDE, generator=generator),
    )


def without(volumes: Volumes, name: str) -> Volumes:
    return replace(volumes, **{name: None})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_pure_and_its_generator_alone_decides(name):
    volumes, same = planted_volumes(), planted_volumes()
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = TASKS[name].function(volumes, seeded(5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.equal(volumes.images, same.images)
    assert torch.equal(volumes.second, same.second)
    assert torch.equal(volumes.labels.classes, same.labels.classes)
    torch.manual_seed(2)
    again = TASKS[name].function(volumes, seeded(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [TASKS[name].function(volumes, seeded(seed)) for seed in range(6, 12)]
    changes = [any(not torch.equal(a, b) for a, b in zip(first, o, strict=True)) for o in others]
    assert any(changes) == (name not in DRAWS_NOTHING)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_gives_one_pair_a_volume_in_range(name):
    volumes = planted_volumes(1)
    for seed in range(4):
        inputs, outputs = TASKS[name].function(volumes, seeded(seed))
        for x in (inputs, outputs):
            assert x.shape == (3, SIDE, SIDE, SIDE)
            assert x.dtype == torch.float32
            assert 0 <= x.min() < x.max() <= 1
        assert not torch.equal(inputs, outputs)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_misses(name):
    bare = Volumes(planted_volumes().images)
    missing = {"segmentation": "labels", "skull_stripping": "labels of heads"}
    missing["modality_transform"] = "second contrast"
    assert bool(TASKS[name].needs) == (name in missing)
    if name in missing:
        with pytest.raises(InputError, match=missing[name]):
            TASKS[name].function(bare, seeded())
    else:
        TASKS[name].function(bare, seeded())


def test_needs_are_enough():
    volumes = planted_volumes()
    fields = {"labels": "labels", "brain": "labels", "second": "second"}
    for task in TASKS.values():
        needed = {fields[need] for need in task.needs}
        for name in {"labels", "second"} - needed:
            inputs, outputs = task.function(without(volumes, name), seeded())
            assert inputs.shape == outputs.shape == volumes.images.shape


def test_the_registry_is_table_3_of_the_paper():
    table = {
        "segmentation": (2, 50),
        "bias_field": (1, 1),
        "gaussian_noise": (1, 1),
        "salt_and_pepper": (1, 1),
        "slices_to_volume": (1, 0.5),
        "inpainting": (1, 1),
        "super_resolution": (1, 1),
        "skull_stripping": (1, 1),
        "modality_transform": (1, 1),
    }
    assert {name: (task.rate, task.weight) for name, task in TASKS.items()} == table
    assert [name for name, task in TASKS.items() if task.is_segmentation] == ["segmentation"]
    for name, task in TASKS.items():
        assert getattr(tasks, name) is task.function  # what a notebook calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 4, 4)}, r"images must be cubes .* \(2, 4, 4\)"),
        ({"images": torch.zeros(2, 4, 4, 5)}, "images must be cubes"),
        ({"images": torch.zeros(0, 4, 4, 4)}, "images must be cubes"),
        ({"images": torch.zeros(2, 4, 4, 4).double()}, "images must be float32"),
        ({"images": torch.full((2, 4, 4, 4), 1.5)}, r"\[0, 1\], not \[1.5, 1.5\]"),
        ({"images": torch.full((2, 4, 4, 4), torch.nan)}, "nan"),
        ({"second": torch.zeros(1, 4, 4, 4)}, r"second has shape \(1, 4, 4, 4\)"),
        ({"second": torch.full((2, 4, 4, 4), -1.0)}, "second must lie in"),
        ({"labels": (3, 4)}, "need 2 maps"),
        ({"labels": (2, 6)}, "multiple of 4"),
        ({"labels": (2, 2)}, "multiple of 4"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(change, message):
    good = {"images": torch.zeros(2, 4, 4, 4), "second": torch.ones(2, 4, 4, 4)}
    if "labels" in change:
        count, side = change["labels"]
        classes = torch.zeros(count, side, side, side, dtype=torch.uint8)
        change = {"labels": LabelDraw(classes, (0,), is_brain=False)}
    Volumes(**good)
    with pytest.raises(InputError, match=message):
        Volumes(**(good | change))


def test_label_maps_that_do_not_fit_are_refused():
    classes = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match="uint8"):
        LabelDraw(classes.long(), (0,), is_brain=False)
    with pytest.raises(InputError, match="cubes"):
        LabelDraw(classes[0], (0,), is_brain=False)
    with pytest.raises(InputError, match=r"0\.\.2, but only 2 values"):
        LabelDraw(classes + 2, (0, 5), is_brain=False)
    with pytest.raises(InputError, match="side 4 cannot be averaged down to side 3"):
        LabelDraw(classes, (0,), is_brain=False).masks([0], 3)


# --- tasks of anatomy ------------------------------------------------------------------------


def striped_volumes(count: int = 13) -> Volumes:
    """Stack planes of one class each: a head without hippocampus."""
    stripes = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1).expand(-1, count, count)
    labels = LabelDraw(stripes[None].repeat(2, 1, 1, 1), tuple(range(count + 1)), is_brain=True)
    return Volumes(torch.full((2, count, count, count), 0.5), labels)


def planes_of(masks: torch.Tensor) -> list[int]:
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks[0], masks[1])
    planes = masks[0, :, 0, 0].nonzero().flatten().tolist()
    assert masks[0].sum() == len(planes) * masks.shape[-1] ** 2  # whole planes
    return planes


def test_segmentation_asks_for_one_class_or_a_group_of_up_to_ten():
    volumes, sizes = striped_volumes(), []
    for seed in range(400):
        inputs, outputs = tasks.segmentation(volumes, seeded(seed))
        assert inputs is volumes.images
        sizes.append(len(planes_of(outputs)))
    assert set(sizes) == set(range(1, 11))
    assert abs(sizes.count(1) / 400 - 0.5) < 4 * math.sqrt(0.25 / 400)
    for size in range(2, 11):
        assert abs(sizes.count(size) / 400 - 0.5 / 9) < 4 * math.sqrt(0.0525 / 400)
    alone = {
        tuple(planes_of(tasks.segmentation(volumes, seeded(s), group=0.0)[1])) for s in range(99)
    }
    assert alone == {(plane,) for plane in range(13)}


def test_segmentation_of_nothing_allowed_is_refused():
    classes = torch.full((2, 4, 4, 4), VALUES.index(17), dtype=torch.uint8)
    head = Volumes(torch.zeros(2, 4, 4, 4), LabelDraw(classes, VALUES, is_brain=True))
    with pytest.raises(InputError, match=r"0\.15% of the first volume"):
        tasks.segmentation(head, seeded())


def test_skull_stripping_by_hand():
    values = (0, 24, 499, 500, 17)  # hippocampus is brain; fluid around it and bone are not
    blocks = torch.tensor([[[2, 1], [3, 4]], [[0, 0], [2, 0]]], dtype=torch.uint8)
    classes = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    classes[2, 2, 0] = 0  # two of the eight voxels that a corner of the brain has
    classes[2, 2, 1] = 3
    labels = LabelDraw(classes[None], values, is_brain=True)
    share = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0.75, 0]]])
    images = torch.full((1, 2, 2, 2), 0.8)
    assert torch.equal(labels.brain_mask(2)[0], share)
    inputs, outputs = tasks.skull_stripping(Volumes(images, labels), seeded())
    assert torch.equal(inputs, images)
    assert torch.allclose(outputs[0], 0.8 * share)
    shapes = replace(labels, is_brain=False)
    assert not shapes.brain_mask(2).any()
    with pytest.raises(InputError, match="labels of heads"):
        tasks.skull_stripping(Volumes(images, shapes), seeded())


def test_skull_stripping_without_brain_is_refused():
    classes = torch.zeros(3, 4, 4, 4, dtype=torch.uint8)
    classes[:, 0], classes[0, 1], classes[2, 1] = 2, 1, 1
    labels = LabelDraw(classes, (0, 3, 500), is_brain=True)
    with pytest.raises(InputError, match=r"volumes \[1\] have none"):
        tasks.skull_stripping(Volumes(torch.zeros(3, 4, 4, 4), labels), seeded())


def test_a_skull_shows_where_brain_and_the_rest_are_in_every_volume():
    classes = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    classes[:, 0], classes[:, 1] = 1, 2
    draw = LabelDraw(classes, (0, 3, 500), is_brain=True)
    assert shows_skull(draw)
    assert not shows_skull(replace(draw, is_brain=False))
    for lacking in (1, 2):
        poorer = classes.clone()
        poorer[1][poorer[1] == lacking] = 0
        assert not shows_skull(replace(draw, classes=poorer))
        poorer[1, 3, 0] = lacking  # 4 of 64 voxels, 6%
        assert shows_skull(replace(draw, classes=poorer))


# --- image tasks -------------------------------------------------------------------------------


def grey_volumes(count: int = 2, side: int = 24) -> Volumes:
    return Volumes(torch.full((count, side, side, side), 0.5))


@pytest.mark.parametrize("name", set(TASKS) - {"segmentation", "skull_stripping"})
def test_an_image_task_asks_for_the_clean_image(name):
    volumes = planted_volumes()
    _, outputs = TASKS[name].function(volumes, seeded())
    wanted = volumes.second if name == "modality_transform" else volumes.images
    assert torch.equal(outputs, wanted)


def test_gaussian_noise_has_one_level_a_task():
    levels = []
    for seed in range(60):
        inputs, outputs = tasks.gaussian_noise(grey_volumes(), seeded(seed))
        one, two = inputs - outputs
        # half of what is below the median is not clipped: 0.6745 deviations
        level = (one.flatten().quantile(0.75) - one.flatten().quantile(0.25)) / (2 * 0.6745)
        assert one.abs().median() == pytest.approx(float(two.abs().median()), rel=0.05)
        assert not torch.equal(one, two)
        assert abs(one.mean()) < 0.01
        levels.append(float(level))
    assert 0.145 < min(levels) < 0.16
    assert 0.24 < max(levels) < 0.255


def test_salt_and_pepper_take_four_percent_each():
    volumes = grey_volumes()
    inputs, _ = tasks.salt_and_pepper(volumes, seeded())
    bound = 4 * math.sqrt(0.04 * 0.96 / inputs.numel())
    assert abs((inputs == 1).float().mean() - 0.04) < bound
    assert abs((inputs == 0).float().mean() - 0.04) < bound
    assert set(inputs.unique().tolist()) == {0.0, 0.5, 1.0}
    assert not torch.equal(inputs[0], inputs[1])


def test_a_bias_field_is_smooth_and_clips_nothing():
    side, spreads = 12, []
    grid = unit_grid(side).flatten(1).double()
    powers = [(i, j, k) for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]
    basis = torch.stack([grid[0] ** i * grid[1] ** j * grid[2] ** k for i, j, k in powers], 1)
    for seed in range(30):
        volumes = grey_volumes(side=side)
        inputs, _ = tasks.bias_field(volumes, seeded(seed))
        assert inputs.amax((1, 2, 3)).tolist() == pytest.approx([0.5, 0.5])
        fields = (inputs / volumes.images).double().log().flatten(1).T
        fitted = basis @ torch.linalg.lstsq(basis, fields).solution
        assert torch.allclose(fitted, fields, atol=1e-5)  # a polynomial of degree 3
        spreads.append(fields.std(0))
        assert not torch.allclose(fields[:, 0], fields[:, 1], atol=0.05)
    assert 0.05 < torch.stack(spreads).min() < 0.15
    assert 0.3 < torch.stack(spreads).max() < 1
    assert not add_bias_field(torch.zeros(1, 4, 4, 4), seeded()).any()


def test_holes_cover_a_share_of_every_volume_and_hang_together():
    shares = []
    for seed in range(30):
        inputs, _ = tasks.inpainting(grey_volumes(), seeded(seed))
        holes = inputs == 0
        assert set(inputs.unique().tolist()) == {0.0, 0.5}
        share = holes.float().mean((1, 2, 3))
        assert share[0] == share[1]
        assert not torch.equal(holes[0], holes[1])
        beside = (holes[:, 1:] & holes[:, :-1]).float().mean() / share[0]
        assert beside > 0.5  # the neighbour of a hole is one too; by chance, up to 0.3
        shares.append(float(share[0]))
    assert 0.09 < min(shares) < 0.13
    assert 0.27 < max(shares) < 0.31
    assert not cut_holes(torch.ones(1, 2, 2, 2), seeded()).all()  # small volumes get one as well


def test_super_resolution_averages_and_interpolates():
    volumes = planted_volumes()
    inputs, _ = tasks.super_resolution(volumes, seeded())
    half = F.avg_pool3d(volumes.images, 2)
    back = F.interpolate(half[:, None], size=SIDE, mode="trilinear", align_corners=False)
    assert torch.allclose(inputs, back[:, 0], atol=1e-6)


def test_an_odd_side_ends_in_a_block_of_one():
    line = torch.tensor([0.0, 0.4, 1.0]).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    inputs, _ = tasks.super_resolution(Volumes(line.contiguous()), seeded())
    # blocks 0.2 and 1; linear between their centres, 0.5 and 2.5
    assert inputs[0, :, 1, 1].tolist() == pytest.approx([0.2, 0.4, 0.8])


@pytest.mark.parametrize(("side", "middle"), [(4, 2), (5, 2)])
def test_three_central_slices_are_kept(side, middle):
    volumes = Volumes(torch.rand(2, side, side, side, generator=seeded()) * 0.9 + 0.1)
    inputs, _ = tasks.slices_to_volume(volumes, seeded())
    for x, y, z in np.ndindex(side, side, side):
        expected = volumes.images[:, x, y, z] * (middle in (x, y, z))
        assert torch.equal(inputs[:, x, y, z], expected)


# --- random contrasts ----------------------------------------------------------------------------


def test_a_random_contrast_is_one_network_for_all_volumes():
    images = torch.rand(3, 8, 8, 8, generator=seeded())
    kept = images.clone()
    for seed in range(8):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        contrast = random_contrast(images, seeded(seed))
        assert torch.equal(torch.get_rng_state(), state)
        assert contrast.shape == images.shape
        assert contrast.dtype == torch.float32
        assert contrast.aminmax() == (0, 1)
        again = random_contrast(images.flip(0), seeded(seed)).flip(0)
        assert torch.allclose(contrast, again, atol=1e-4)
        assert not torch.allclose(contrast, random_contrast(images, seeded(seed + 50)), atol=0.01)
    assert torch.equal(images, kept)


def test_a_random_contrast_looks_at_one_voxel_or_its_neighbours(monkeypatch):
    images = torch.randint(0, 4, (1, 8, 8, 8), generator=seeded()) / 3
    for radius, pointwise in [(0, True), (1, False)]:
        monkeypatch.setattr(gin, "integer", lambda *_, r=radius: r)
        contrasts = [random_contrast(images, seeded(seed)) for seed in range(6)]
        spreads = torch.stack([c[images == level].std() for c in contrasts for level in (0, 1)])
        assert bool((spreads < 1e-4).all()) == pointwise
    # what is constant stays so up to the edges: nothing comes in from outside
    for seed in range(6):
        assert random_contrast(torch.full((1, 6, 6, 6), 0.5), seeded(seed)).std() == 0


def test_random_contrasts_reverse_at_times():
    ramp = torch.linspace(0, 1, 64).view(1, 4, 4, 4)
    contrasts = [random_contrast(ramp, seeded(seed)).flatten() for seed in range(30)]
    slopes = [float(torch.corrcoef(torch.stack([ramp.flatten(), c]))[0, 1]) for c in contrasts]
    assert 5 <= sum(slope < 0 for slope in slopes) <= 25


# --- fields --------------------------------------------------------------------------------------


def test_draws_of_numbers():
    generator = seeded()
    numbers = [uniform(generator, 2, 3) for _ in range(200)]
    assert 2 <= min(numbers) < 2.1
    assert 2.9 < max(numbers) < 3
    assert {integer(generator, 1, 3) for _ in range(60)} == {1, 2, 3}
    assert sum(chance(generator, 0.25) for _ in range(400)) == pytest.approx(100, abs=40)
    assert not any(chance(generator, 0.0) for _ in range(50))
    assert all(chance(generator, 1.0) for _ in range(50))


def test_unit_grid_by_hand():
    grid = unit_grid(4)
    assert grid.shape == (3, 4, 4, 4)
    assert grid[0, :, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[2, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_no_noise_is_no_deformation():
    assert torch.allclose(deformed_grid(seeded(), 8, 0.0, 0.0), unit_grid(8))
    moved = deformed_grid(seeded(), 8, 0.1, 0.04) - unit_grid(8)
    assert 0.01 < moved.abs().mean() < 0.4


def test_smooth_fields_pass_through_their_points():
    field = smooth_field(seeded(3), 7, 4, 2)
    points = torch.randn(1, 2, 4, 4, 4, generator=seeded(3))[0]
    assert field.shape == (2, 7, 7, 7)
    assert torch.allclose(field[:, ::2, ::2, ::2], points, atol=1e-6)


def test_a_legendre_field_by_hand():
    coefficients = torch.zeros(3, 4, 4, 4)
    coefficients[0, 1, 0, 0] = 2  # 2x
    coefficients[1, 0, 2, 0], coefficients[1, 0, 0, 0] = 1, 0.25  # (3y^2 - 1) / 2 + 1/4
    coefficients[2, 1, 1, 3] = -1  # -x y (5z^3 - 3z) / 2
    field = legendre_field(coefficients, 6)
    x, y, z = unit_grid(6)
    assert field.dtype == torch.float32
    assert torch.allclose(field[0], 2 * x, atol=1e-6)
    assert torch.allclose(field[1], (3 * y**2 - 1) / 2 + 0.25, atol=1e-6)
    assert torch.allclose(field[2], -x * y * (5 * z**3 - 3 * z) / 2, atol=1e-6)


def test_perlin_noise_is_blended_from_the_corners():
    field = perlin_field(seeded(4), 2, 5, 2)
    gradients = F.normalize(torch.randn(2, 3, 3, 3, 3, generator=seeded(4)), dim=1)
    for place in np.ndindex(5, 5, 5):
        at = (np.array(place) + 0.5) * 2 / 5
        cell = np.floor(at).astype(int)
        expected = torch.zeros(2)
        for step in np.ndindex(2, 2, 2):
            corner = cell + step
            away = at - corner
            t = 1 - np.abs(away)
            weight = float(np.prod(6 * t**5 - 15 * t**4 + 10 * t**3))
            slope = gradients[:, :, corner[0], corner[1], corner[2]]
            expected += weight * (slope @ torch.tensor(away, dtype=torch.float32))
        assert torch.allclose(field[(slice(None), *place)], expected, atol=1e-5)
    assert perlin_field(seeded(), 1, 4, 8).abs().max() < 1e-6  # zero on every corner


def test_blur_keeps_constants_and_spreads_a_point():
    assert torch.allclose(blur(torch.full((2, 5, 5, 5), 0.7), 0.9), torch.tensor(0.7))
    point = torch.zeros(1, 9, 9, 9)
    point[0, 4, 4, 4] = 1
    spread = blur(point, 0.8)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(spread, spread.flip(1, 2, 3))
    assert torch.allclose(spread, spread.transpose(1, 3))
    ratio = spread[0, 4, 4, 5] / spread[0, 4, 4, 4]
    assert ratio == pytest.approx(math.exp(-0.5 / 0.8**2), rel=1e-4)


def test_rescaling_by_quantiles_by_hand():
    x = torch.arange(101.0).view(1, 1, 101)
    scaled = rescale_quantiles(x).flatten()
    assert scaled[50] == pytest.approx(0.5)
    assert scaled[26] == pytest.approx(0.25)
    assert (scaled[:3] == 0).all()
    assert (scaled[98:] == 1).all()
    assert rescale_quantiles(torch.full((2, 2, 2), 3.0)).abs().max() < 1e-6
