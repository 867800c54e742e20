import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Generator

from medverse_nb.errors import ContextError, InputError
from medverse_nb.io import VolumeWarning
from medverse_nb.tasks.anatomy import draw_foreground
from medverse_nb.tasks.draw import TaskRates, draw_task
from medverse_nb.tasks.scenes import HeadSource, Mixture, ShapeSource
from medverse_nb.training import sources
from medverse_nb.training.config import DataConfig, TrainingConfig
from medverse_nb.training.run import open_data
from medverse_nb.training.sources import (
    Scan,
    ScanSource,
    crop_map,
    open_source,
    scan_classes,
    scan_image,
)

SHAPE, SPACING = (20, 16, 12), (1.0, 1.5, 2.0)  # 20 x 24 x 24 mm
NAMES = ("case-1", "case-2", "case-3", "case-4")


@pytest.fixture(autouse=True)
def single(one_thread):
    """Small volumes only wait for other threads."""


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def plant_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make a bright block 5 beside a dimmer block 9, air around; in RAS order."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = rng.integers(0, 3, 3)
    label[5 + x : 12 + x, 4 + y : 9 + y, 3 + z : 8 + z] = 5
    label[12 + x : 15 + x, 4 + y : 9 + y, 3 + z : 8 + z] = 9
    image = 800.0 * (label == 5) + 400.0 * (label == 9)
    return (image + rng.normal(0, 5, SHAPE)).astype(np.float32), label


def write(path: Path, array: np.ndarray, codes: str = "RAS", spacing=SPACING) -> None:
    """Write an array, given in RAS order, in another orientation."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(turn), path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four cases in nnU-Net layout, each in another orientation."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for seed, (name, codes) in enumerate(zip(NAMES, ("RAS", "LPS", "PIR", "LAS"), strict=True)):
        image, label = plant_case(seed)
        write(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", image, codes)
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", label, codes)
    return tmp_path


def nnunet(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(kind="nnunet", folder=folder, **settings)


def spoil_with_fractions(folder: Path, name: str) -> None:
    write(folder / "labelsTr" / f"{name}.nii.gz", plant_case()[1] + np.float32(0.4))


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def names_of(source: ScanSource) -> list[str]:
    return [scan.name for scan in source.scans]


# --- reading and splitting -----------------------------------------------------------------------


def test_scans_are_read_in_canonical_order_and_scaled(folder):
    source = open_source(nnunet(folder, never_foreground=(9, 77))).training
    assert names_of(source) == list(NAMES)
    assert source.values == (0, 5, 9)
    assert source.never_foreground == {9, 77}
    for seed, scan in enumerate(source.scans):
        _, label = plant_case(seed)
        assert scan.grid.shape == SHAPE
        assert scan.grid.spacing_mm == pytest.approx(SPACING)
        assert scan.image.dtype == np.float16
        assert 0 <= scan.image.min() < scan.image.max() <= 1
        assert np.array_equal(np.array(source.values)[scan.classes.numpy()], label)
        assert scan.image[label == 5].min() > scan.image[label == 9].max()
        assert scan.image[label == 9].min() > scan.image[label == 0].max()


def test_the_last_cases_by_name_are_held_out(folder):
    split = open_source(nnunet(folder, validation=1))
    assert names_of(split.training) == list(NAMES[:3])
    assert names_of(split.validation) == [NAMES[3]]
    assert split.training.values == split.validation.values == (0, 5, 9)
    assert split.skipped == ()
    assert open_source(nnunet(folder)).validation is None


@pytest.mark.parametrize("validation", [4, 9])
def test_none_left_to_train_on(folder, validation):
    with pytest.raises(InputError, match=f"4 usable cases, {validation} of them") as error:
        open_source(nnunet(folder, validation=validation))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: spoil_with_fractions(folder, "case-2"), "'case-2'.*fractional"),
        (lambda folder: cut_short(folder / "imagesTr" / "case-2_0000.nii.gz"), "case-2.*cut short"),
        (lambda folder: cut_short(folder / "labelsTr" / "case-2.nii.gz"), "case-2.*cut short"),
        (
            lambda folder: write(folder / "labelsTr" / "case-2.nii.gz", np.ones((3, 4, 5))),
            "'case-2'.*label has shape",
        ),
    ],
)
def test_a_bad_case_is_passed_over_or_an_error(folder, spoil, message, strict):
    spoil(folder)
    if strict:
        with pytest.raises(InputError, match=message):
            open_source(nnunet(folder), strict=True)
        return
    with pytest.warns(VolumeWarning, match=f"passed over: .*{message}"):
        split = open_source(nnunet(folder, validation=1))
    assert names_of(split.training) == ["case-1", "case-3"]
    assert names_of(split.validation) == ["case-4"]
    (told,) = split.skipped
    assert "case-2" in told


def test_no_case_left_names_the_folder(folder):
    for name in NAMES:
        spoil_with_fractions(folder, name)
    with (
        pytest.warns(VolumeWarning, match="passed over"),
        pytest.raises(InputError, match="0 usable cases") as error,
    ):
        open_source(nnunet(folder))
    assert str(folder) in str(error.value)


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(ContextError, match=r"no such folder: .*labelsTr"):
        open_source(nnunet(tmp_path))
    with pytest.raises(ContextError, match="no NIfTI file in"):
        open_source(DataConfig(kind="label_maps", folder=tmp_path))


def test_too_many_label_values(folder):
    write(folder / "labelsTr" / "case-1.nii.gz", np.arange(3840).reshape(SHAPE).astype(np.int16))
    with pytest.raises(InputError, match="3840 label values; at most 256"):
        open_source(nnunet(folder))


# --- crops ---------------------------------------------------------------------------------------


@pytest.fixture
def scan() -> Scan:
    """A ramp along x, y and z, its label one on the far side of x."""
    x, y, z = np.indices(SHAPE)
    image = (x / 40 + y / 80 + z / 120).astype(np.float16)
    grid = sources.Grid(SHAPE, np.diag([*SPACING, 1.0]))
    return Scan("ramp", image, torch.from_numpy((x >= 10).astype(np.uint8)), grid)


def test_the_map_of_a_crop_by_hand(scan):
    matrix = crop_map(scan, np.array([7.0, 6.0, 5.0]), 12.0, 4)  # voxels of 3 mm
    assert np.diag(matrix).tolist() == [3, 2, 1.5, 1]
    # the cube's middle, voxel 1.5, is where it was asked for
    assert (matrix @ [1.5, 1.5, 1.5, 1]).tolist() == [7, 6, 5, 1]
    assert (matrix @ [0, 0, 0, 1]).tolist() == [2.5, 3, 2.75, 1]


def test_a_crop_of_a_ramp_by_hand(scan):
    """One millimetre a voxel: x as it is, y and z between their voxels."""
    crop = scan_image(scan, np.array([9.5, 7.5, 5.5]), 8.0, 8)
    at = torch.arange(8) - 3.5
    wanted = (
        (9.5 + at).view(8, 1, 1) / 40
        + (7.5 + at / 1.5).view(1, 8, 1) / 80
        + (5.5 + at / 2).view(1, 1, 8) / 120
    )
    assert crop.dtype == torch.float32
    assert torch.allclose(crop, wanted, atol=1e-3)
    classes = scan_classes(scan, np.array([9.5, 7.5, 5.5]), 8.0, 8)
    assert classes.dtype == torch.uint8
    assert (classes == (at + 9.5 >= 9.5).view(8, 1, 1)).all()
    finer = scan_classes(scan, np.array([9.5, 7.5, 5.5]), 8.0, 16)
    assert torch.equal(finer[::2, ::2, ::2], classes)


def test_a_crop_that_shrinks_averages(scan):
    flat = np.zeros(SHAPE, np.float16)
    flat[::2] = 1
    crop = scan_image(Scan("stripes", flat, scan.classes, scan.grid), np.array([9, 8, 6]), 16.0, 4)
    assert torch.allclose(crop, torch.tensor(0.5), atol=0.01)


def test_a_crop_is_zero_outside(scan):
    bright = Scan("bright", np.ones(SHAPE, np.float16), torch.ones_like(scan.classes), scan.grid)
    place = np.array([0.25, 7.5, 5.5])  # x from -3.25 to 3.75
    image, classes = (cut(bright, place, 8.0, 8) for cut in (scan_image, scan_classes))
    assert image[:, 4, 4].tolist() == pytest.approx([0, 0, 0, 0.75, 1, 1, 1, 1])
    assert classes[:, 4, 4].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert not scan_image(bright, np.array([99.0, 0, 0]), 8.0, 8).any()
    assert not scan_classes(bright, np.array([99.0, 0, 0]), 8.0, 8).any()


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_the_same_content_stored_in_another_order_gives_the_same_crop(folder, codes):
    image, label = plant_case()
    drawn = []
    for stored in ("RAS", codes):
        for name in NAMES:
            write(folder / "imagesTr" / f"{name}_0000.nii.gz", image, stored)
            write(folder / "labelsTr" / f"{name}.nii.gz", label, stored)
        source = open_source(nnunet(folder)).training
        drawn.append([source.draw(seeded(seed), 2, 8) for seed in range(6)])
    for one, two in zip(*drawn, strict=True):
        assert torch.equal(one.paint(seeded()), two.paint(seeded()))
        assert torch.equal(one.labels.classes, two.labels.classes)


def test_two_subjects_of_one_content_in_two_orders_look_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_JITTER", 0.0)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    image, label = plant_case()
    for name, codes in [("one", "RAS"), ("two", "PIL")]:
        write(tmp_path / "imagesTr" / f"{name}.nii.gz", image, codes)
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", label, codes)
    source = open_source(nnunet(tmp_path)).training
    for seed in range(8):
        scene = source.draw(seeded(seed), 2, 8)
        one, two = scene.paint(seeded())
        assert torch.equal(one, two)
        assert torch.equal(*scene.labels.classes)
        assert scene.labels.classes.any()


@pytest.fixture
def asked(monkeypatch) -> list[tuple[np.ndarray, float, int]]:
    """Where the crops of a scene lie: centre in voxels, width in mm, side."""
    crops = []

    def noted(scan, centre_vox, width_mm, side):
        crops.append((centre_vox, width_mm, side))
        return scan_classes(scan, centre_vox, width_mm, side)

    monkeypatch.setattr(sources, "scan_classes", noted)
    return crops


def test_the_same_place_is_the_same_share_of_each_box(scan, asked, monkeypatch):
    twice = np.kron(scan.classes.numpy(), np.ones((2, 2, 2), np.uint8))
    grid = scan.grid.resized(twice.shape)
    finer = Scan("finer", twice.astype(np.float16), torch.from_numpy(twice), grid)
    source = ScanSource([scan, scan, finer], (0, 1), frozenset())
    monkeypatch.setattr(sources, "LARGEST_JITTER", 0.0)
    for seed in range(12):
        asked.clear()
        source.draw(seeded(seed), 3, 8)
        chosen = [source.scans[i] for i in torch.randperm(3, generator=seeded(seed))]
        first = asked[0][0]
        assert np.allclose(first, first.round(), atol=1e-6)
        assert chosen[0].classes[tuple(first.round().astype(int))] == 1
        for there, (centre, _, _) in zip(chosen, asked, strict=True):
            share = (first + 0.5) / np.array(chosen[0].grid.shape)
            assert np.allclose((centre + 0.5) / np.array(there.grid.shape), share)


def test_the_same_place_is_a_jitter_apart(scan, asked):
    shares = []
    for seed in range(60):
        asked.clear()
        ScanSource([scan, scan], (0, 1), frozenset()).draw(seeded(seed), 2, 8)
        (one, width_mm, _), (two, _, _) = asked
        shares.append(np.abs(one - two) * SPACING / width_mm)
    # each is off by up to a tenth of the width, in mm, and so they are apart by up to two
    assert (np.max(shares, 0) <= 0.2).all()
    assert (np.max(shares, 0) > 0.1).all()
    assert (np.min(shares, 0) < 0.01).all()


def test_labels_lie_where_the_image_is_bright(folder):
    source = open_source(nnunet(folder)).training
    seen = 0
    for seed in range(20):
        scene = source.draw(seeded(seed), 3, 8)
        images = scene.paint(seeded())
        assert images.shape == (3, 8, 8, 8)
        assert images.dtype == torch.float32
        for value, low, high in [(5, 0.6, 1.0), (9, 0.3, 0.7), (0, 0.0, 0.15)]:
            share = scene.labels.masks([source.values.index(value)], 8)
            inside = images[share == 1]
            if len(inside) > 30:
                assert low < inside.mean() + 1e-3 < high + 1e-3
                seen |= 1 << value
    assert seen == (1 << 5) | (1 << 9) | 1


def test_a_scene_of_scans_has_one_contrast(folder):
    scene = open_source(nnunet(folder)).training.draw(seeded(), 2, 8)
    assert not scene.any_contrast
    assert not scene.labels.is_brain
    assert torch.equal(scene.paint(seeded(1)), scene.paint(seeded(2)))


def test_each_subject_comes_once_as_long_as_there_are_enough(folder, monkeypatch):
    drawn = []

    def noted(scan, *arguments):
        drawn.append(scan.name)
        return scan_image(scan, *arguments)

    monkeypatch.setattr(sources, "scan_image", noted)
    source = open_source(nnunet(folder)).training
    source.draw(seeded(), 4, 8)
    assert sorted(drawn) == list(NAMES)
    drawn.clear()
    source.draw(seeded(), 6, 8)
    assert {drawn.count(name) for name in NAMES} == {1, 2}
    firsts = set()
    for seed in range(20):
        drawn.clear()
        source.draw(seeded(seed), 2, 8)
        firsts.add(drawn[0])
    assert firsts == set(NAMES)


def test_crops_reach_from_native_resolution_to_the_whole(folder, asked):
    source = open_source(nnunet(folder)).training
    for seed in range(150):
        source.draw(seeded(seed), 1, 8)
    widths = [width for _, width, _ in asked]
    assert 8 <= min(widths) < 8.3  # 8 voxels of the smallest spacing, 1 mm
    assert 23.3 < max(widths) <= 24  # the longest extent
    assert {side for _, width, side in asked if width > 1.4 * 8} == {16}
    assert {side for _, width, side in asked if width <= 1.4 * 8} == {8}
    asked.clear()
    for seed in range(20):
        source.draw(seeded(seed), 1, 8, finer=False)
        source.draw(seeded(seed), 1, 32)  # a window wider than the scan: never below native
    assert {(width, side) for _, width, side in asked[1::2]} == {(32.0, 32)}
    assert {side for _, _, side in asked[::2]} == {8}


def test_crops_lie_around_every_structure_as_often(folder):
    source = open_source(nnunet(folder)).training
    first = source.scans[0]
    places = [source._draw_place(first, seeded(seed)) * SHAPE - 0.5 for seed in range(100)]
    classes = [int(first.classes[tuple(place.round().astype(int))]) for place in places]
    assert all(np.allclose(place, place.round(), atol=1e-6) for place in places)
    assert 30 < classes.count(1) < 70  # although it is more than twice as large
    assert classes.count(1) + classes.count(2) == 100
    empty = Scan("empty", first.image, torch.zeros_like(first.classes), first.grid)
    place = source._draw_place(empty, seeded())
    assert ((place >= 0) & (place < 1)).all()


def test_no_task_asks_for_what_is_never_to_be_asked_for(folder):
    source = open_source(nnunet(folder, never_foreground=(9,))).training
    for seed in range(40):
        draw = source.draw(seeded(seed), 2, 8).labels
        foreground = draw_foreground(draw, seeded(seed), group=1.0)
        assert foreground in ([1], [])  # the value 5
    task = draw_task(source, seeded(3), 2, 8, TaskRates(enhancement=0.0))
    assert task.kind == "segmentation"
    assert task.context_label.shape == (1, 2, 1, 8, 8, 8)
    two = draw_task(source, seeded(3), 2, 8, TaskRates(autoregressive=1.0, own_prediction=1.0))
    assert two.coarse is not None


# --- the other kinds -----------------------------------------------------------------------------


def plant_heads(folder: Path) -> None:
    for number, value in enumerate((3, 10, 17), start=1):
        labels = np.zeros((8, 8, 8), np.float32)
        labels[2:6, 2:6, 2:6] = 2
        labels[3:5, 3:5, 3:5] = value
        write(folder / f"head-{number}.nii.gz", labels, "LIA", (1, 1, 1))


def test_label_maps_share_their_values_and_are_split_by_name(tmp_path):
    plant_heads(tmp_path)
    config = DataConfig(kind="label_maps", folder=tmp_path, validation=1, never_foreground=(10,))
    split = open_source(config)
    assert isinstance(split.training, HeadSource)
    assert [head.name for head in split.training.heads] == ["head-1", "head-2"]
    assert [head.name for head in split.validation.heads] == ["head-3"]
    for head in (*split.training.heads, *split.validation.heads):
        assert head.values == (0, 2, 3, 10, 17)
    assert split.training.never == split.validation.never == {10}
    assert split.training.draw(seeded(), 2, 8).labels.never == {10}
    whole = open_source(DataConfig(kind="label_maps", folder=tmp_path))
    assert whole.validation is None
    assert len(whole.training.heads) == 3


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["cut short", "whole numbers", "no voxel has", "not a NIfTI"])
def test_a_bad_label_map_is_passed_over_or_an_error(tmp_path, kind, strict):
    plant_heads(tmp_path)
    path = tmp_path / "head-2.nii.gz"
    if kind == "cut short":
        cut_short(path)
    elif kind == "whole numbers":
        write(path, np.full((8, 8, 8), 2.5, np.float32))
    elif kind == "no voxel has":
        write(path, np.full((8, 8, 8), 600, np.int16))
    else:
        path.write_bytes(gzip.compress(b"no header" * 80))
    config = DataConfig(kind="label_maps", folder=tmp_path)
    if strict:
        with pytest.raises(InputError, match=f"head-2.*{kind}"):
            open_source(config, strict=True)
        return
    with pytest.warns(VolumeWarning, match=f"passed over: .*head-2.*{kind}"):
        split = open_source(config)
    assert [head.name for head in split.training.heads] == ["head-1", "head-3"]
    assert split.training.heads[0].values == (0, 2, 3, 17)
    (told,) = split.skipped
    assert "head-2" in told


def test_shapes_need_nothing():
    split = open_source(DataConfig(kind="shapes"))
    assert isinstance(split.training, ShapeSource)
    assert split.validation is None
    assert split.skipped == ()


# --- all of a run's data -------------------------------------------------------------------------


def run_config(*data: DataConfig) -> TrainingConfig:
    network = {"channels": [4, 8], "window": 16, "output": "sigmoid"}
    return TrainingConfig(name="toy", licence="", description="", network=network, data=data)


def test_data_of_several_sources(folder):
    shapes = DataConfig(kind="shapes", rate=0.3)
    scans = nnunet(folder, rate=0.7, validation=1)
    spoil_with_fractions(folder, "case-2")
    with pytest.warns(VolumeWarning, match="passed over"):
        data = open_data(run_config(shapes, scans))
    assert list(data.training.rates) == [0.3, 0.7]
    assert [type(source) for source in data.training.sources] == [ShapeSource, ScanSource]
    assert names_of(data.training.sources[1]) == ["case-1", "case-3"]
    assert list(data.validation.rates) == [0.7]  # shapes have no subject to hold out
    assert names_of(data.validation.sources[0]) == ["case-4"]
    assert len(data.skipped) == 1
    with pytest.raises(InputError, match="case-2"):
        open_data(run_config(shapes, scans), strict=True)


def test_without_held_out_cases_validation_draws_from_what_there_is():
    config = run_config(DataConfig(kind="shapes"), DataConfig(kind="shapes", rate=2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(config)
    assert isinstance(data.validation, Mixture)
    assert list(data.validation.rates) == [1, 2]
    assert list(data.validation.sources) == list(data.training.sources)
