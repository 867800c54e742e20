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
    integer,
    legendre_field,
    perlin_field,
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


def draw_brain(seed: int, rates: TaskRates | None = None, size: int = 2) -> TaskDraw:
    return draw_task(HEADS, seeded(seed), size, WINDOW, rates or TaskRates(brain=1.0))


def tensors(task: TaskDraw) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(task).items() if isinstance(value, torch.Tensor)}


# --- tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [HEADS, []])
@pytest.mark.parametrize("seed", range(4))
def test_the_generator_alone_decides_the_task(heads, seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw_task(heads, seeded(seed), 2, WINDOW)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(2)
    again = draw_task(heads, seeded(seed), 2, WINDOW)
    assert first.kind == again.kind
    assert set(tensors(first)) == set(tensors(again))
    for name, value in tensors(first).items():
        assert torch.equal(value, tensors(again)[name]), name
    other = draw_task(heads, seeded(seed + 100), 2, WINDOW)
    assert not torch.equal(first.target, other.target)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("heads", [HEADS, []])
def test_shapes_and_ranges(heads, size):
    for seed in range(40):
        task = draw_task(heads, seeded(seed), size, WINDOW, TaskRates(enhancement=0.6))
        assert task.weight == TASKS[task.kind].weight
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


def test_segmentation_labels_have_a_foreground():
    for seed in range(20):
        task = draw_brain(seed, TaskRates(brain=1.0, enhancement=0.0, padded=0.0))
        assert task.kind == "segmentation"
        assert task.truth.mean() > 0.0014  # the smallest share of a foreground, 0.15%


def test_rates_are_what_comes_out():
    tasks = [draw_task([], seeded(s), 1, WINDOW, TaskRates(enhancement=0.25)) for s in range(100)]
    with_pair = sum(task.ar_image is not None for task in tasks) / len(tasks)
    enhancing = sum(task.kind != "segmentation" for task in tasks) / len(tasks)
    assert abs(with_pair - 0.5) < 4 * math.sqrt(0.25 / 100)
    assert abs(enhancing - 0.25) < 4 * math.sqrt(0.19 / 100)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_none_and_all(rate):
    rates = TaskRates(brain=rate, enhancement=rate, autoregressive=rate, padded=rate)
    for seed in range(12):
        task = draw_task(HEADS, seeded(seed), 1, WINDOW, rates)
        assert (task.ar_image is not None) == bool(rate)
        assert (task.kind != "segmentation") == bool(rate)


def kinds_drawn(heads, draws: int) -> list[str]:
    rates = TaskRates(brain=1.0, enhancement=1.0, autoregressive=0.0)
    return [draw_task(heads, seeded(seed), 1, 8, rates).kind for seed in range(draws)]


def test_image_tasks_come_by_their_rates(monkeypatch):
    blocks = draw_shape_labels(seeded(), 2, 8)
    monkeypatch.setattr(drawing, "draw_shape_labels", lambda *_: blocks)
    monkeypatch.setattr(drawing, "render_images", lambda *_: torch.full((2, 8, 8, 8), 0.5))
    images = {name for name, task in TASKS.items() if not task.is_segmentation}
    kinds = kinds_drawn([], 700)
    assert set(kinds) == images - {"skull_stripping"}  # shapes have no skull
    for kind in set(kinds):
        assert abs(kinds.count(kind) / 700 - 1 / 7) < 4 * math.sqrt(1 / 7 * 6 / 7 / 700)
    for name in images - {"inpainting", "super_resolution"}:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], rate=0.0))
    monkeypatch.setitem(TASKS, "inpainting", replace(TASKS["inpainting"], rate=3.0))
    kinds = kinds_drawn([], 400)
    assert set(kinds) == {"inpainting", "super_resolution"}
    assert abs(kinds.count("inpainting") / 400 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)


def test_heads_bring_skull_stripping_where_it_has_work(monkeypatch):
    for name in set(TASKS) - {"segmentation", "skull_stripping"}:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], rate=1e-6))
    seen = []
    monkeypatch.setattr(
        drawing, "shows_skull", lambda draw: seen.append(shows_skull(draw)) or seen[-1]
    )
    kinds = kinds_drawn(HEADS, 40)
    assert [kind == "skull_stripping" for kind in kinds] == seen
    assert True in seen
    assert False in seen


def test_groups_come_at_their_rate(monkeypatch):
    for group, sizes in [(0.0, {1}), (1.0, {2, 3})]:
        captured = capture_foregrounds(monkeypatch)
        rates = TaskRates(brain=1.0, enhancement=0.0, group=group, largest_group=3)
        for seed in range(15):
            draw_task(HEADS, seeded(seed), 1, 8, rates)
        assert {len(foreground) for _, foreground, _ in captured} == sizes


def test_brains_come_at_their_rate(monkeypatch):
    drawn = {"brain": 0, "shapes": 0}

    def count(name, function):
        def counted(*arguments):
            drawn[name] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(drawing, "draw_head_labels", count("brain", draw_head_labels))
    monkeypatch.setattr(drawing, "draw_shape_labels", count("shapes", draw_shape_labels))
    for seed in range(80):
        draw_task(HEADS, seeded(seed), 1, WINDOW, TaskRates(enhancement=1.0))
    assert abs(drawn["brain"] / 80 - 0.6) < 4 * math.sqrt(0.24 / 80)
    assert drawn["brain"] + drawn["shapes"] == 80


def test_padding_keeps_a_corner_box_of_every_volume():
    sides = set()
    for seed in range(30):
        images, labels = drawing._pad(
            torch.ones(3, 16, 16, 16), torch.full((3, 16, 16, 16), 0.5), seeded(seed)
        )
        kept = images[0] > 0
        x, y, z = (
            int(kept.amax((1, 2)).sum()),
            int(kept.amax((0, 2)).sum()),
            int(kept.amax((0, 1)).sum()),
        )
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
        rates = TaskRates(brain=1.0, padded=1.0, autoregressive=0.0)
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
        draw_brain(seed, TaskRates(brain=1.0, enhancement=0.0))
    assert len(captured) == 60
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
    rates = TaskRates(brain=1.0, enhancement=0.0, padded=0.0, autoregressive=0.0)
    for seed in range(25):
        draw_task([head], seeded(seed), 1, WINDOW, rates)
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
    one, two = read_head_maps(tmp_path, [1, 2])
    assert one.values == two.values == (0, 3, 17, 24, 53, 510)
    assert two.classes[1, 1, 1] == one.values.index(53)
    assert one.classes[4, 4, 2] == one.values.index(17)
    with pytest.raises(InputError, match="training_seg_03"):
        read_head_maps(tmp_path, [1, 3])


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
            task.function(without(volumes, name), seeded())


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
