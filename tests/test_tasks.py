import math

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Generator

from medverse_nb.errors import InputError
from medverse_nb.tasks import draw as drawing
from medverse_nb.tasks import labelmaps
from medverse_nb.tasks.contrast import reduce_to, render_images, render_labels
from medverse_nb.tasks.corruption import (
    CORRUPTIONS,
    add_bias_field,
    add_gaussian_noise,
    add_salt_and_pepper,
    cut_holes,
)
from medverse_nb.tasks.draw import TaskDraw, TaskRates, coarsen, draw_task
from medverse_nb.tasks.fields import (
    blur,
    chance,
    deformed_grid,
    integer,
    rescale_quantiles,
    smooth_field,
    uniform,
    unit_grid,
)
from medverse_nb.tasks.labelmaps import (
    HeadMap,
    LabelDraw,
    allowed_foreground,
    draw_foreground,
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
    kinds = set()
    for seed in range(40):
        task = draw_task(heads, seeded(seed), size, WINDOW, TaskRates(enhancement=0.6))
        kinds.add(task.kind)
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
    assert kinds == {"segmentation", *CORRUPTIONS}


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


def drawn_values(draws: int = 3000) -> tuple[set[int], set[int]]:
    """Draw foregrounds; return the values seen and the sizes of the groups."""
    generator, seen, sizes = seeded(), set(), set()
    for number in range(draws):
        draw = planted_draw(number % 40)
        foreground = draw_foreground(draw, generator)
        assert len(set(foreground)) == len(foreground)
        seen |= {VALUES[index] for index in foreground}
        sizes.add(len(foreground))
    return seen, sizes


def test_hippocampus_is_never_a_foreground_alone_or_in_a_group():
    seen, sizes = drawn_values()
    assert seen == set(VALUES) - HIPPOCAMPUS - {0}
    assert sizes == {1, 2, 3, 4, 5}


def test_without_the_rule_hippocampus_would_be_drawn(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(labelmaps, "NEVER_FOREGROUND", frozenset())
    assert drawn_values(200)[0] == set(VALUES) - {0}


def test_only_hippocampus_large_enough_gives_no_foreground():
    classes = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    classes[:, :4] = VALUES.index(17)
    classes[:, 4:, :4] = VALUES.index(53)
    draw = LabelDraw(classes, VALUES, is_brain=True)
    assert draw_foreground(draw, seeded()) == []
    shapes = LabelDraw(classes, tuple(range(len(VALUES))), is_brain=False)
    assert set(allowed_foreground(shapes, 0.0015)) == {4, 6}  # shapes are not anatomy


def test_small_classes_are_no_foreground():
    classes = torch.zeros(2, 10, 10, 10, dtype=torch.uint8)
    classes[0, 0, 0, 0], classes[0, 1, 0, :2] = 1, 2  # 0.1% and 0.2%
    classes[1, :5] = 3  # in another subject than the target
    draw = LabelDraw(classes, VALUES, is_brain=True)
    assert allowed_foreground(draw, 0.0015) == [2]


def capture_foregrounds(monkeypatch) -> list[tuple[LabelDraw, list[int], torch.Tensor]]:
    captured = []

    def render(draw, foreground, side):
        masks = render_labels(draw, foreground, side)
        captured.append((draw, foreground, masks))
        return masks

    monkeypatch.setattr(drawing, "render_labels", render)
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
            assert_no_hippocampus([(draw, [], render_labels(draw, [index], WINDOW))])


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
    masks = render_labels(draw, [1, 2], 2)
    assert masks[0, 0, 0, 0] == 1
    assert masks[0, 1, 1, 1] == 1 / 8
    assert masks.sum() == 1 + 1 / 8
    assert torch.equal(render_labels(draw, [2], 4)[0], (classes[0] == 2).float())


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


def test_corruptions_by_their_numbers():
    images = torch.full((2, 24, 24, 24), 0.5)
    noisy = add_gaussian_noise(images, seeded())
    assert 0.14 < (noisy - images).std() < 0.26
    assert abs((noisy - images).mean()) < 0.01
    dotted = add_salt_and_pepper(images, seeded())
    assert (dotted == 1).float().mean() == pytest.approx(0.04, abs=0.005)
    assert (dotted == 0).float().mean() == pytest.approx(0.04, abs=0.005)
    holed = cut_holes(images, seeded())
    for volume in holed:
        assert 0.09 < (volume == 0).float().mean() < 0.31
        assert set(volume.unique().tolist()) == {0.0, 0.5}
    biased = add_bias_field(images, seeded())
    assert 0 <= biased.min() < 0.5 < biased.max() <= 1
    assert not torch.allclose(biased[0], biased[1])
    assert (biased.diff(dim=1)).abs().max() < 0.2  # smooth
    assert (images == 0.5).all()  # not modified


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
