import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medverse_nb.context import ContextSet
from medverse_nb.errors import ContextError, InputError
from medverse_nb.geometry import Grid
from medverse_nb.io import VolumeWarning
from medverse_nb.pair import content_hash, make_pair
from medverse_nb.pair_folder import case_name, find_class_table, find_pairs, list_volumes
from medverse_nb.regions import read
from medverse_nb.volume import make_volume

SHAPE = (4, 5, 6)
AFFINE = np.diag([1.0, 2, 3, 1])
AFFINE[:3, 3] = 4, -5, 6


def image(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def label(dtype=np.uint8):
    values = np.zeros(SHAPE, dtype)
    values[1, 2, 3], values[2, 2, 2], values[0, 4, 5] = 1, 2, 7
    return values


def pair(image_=None, label_=None, name="a", **options):
    options.setdefault("affine", AFFINE)
    return make_pair(
        image() if image_ is None else image_, label() if label_ is None else label_,
        name=name, **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64, bool])
def test_integer_labels_in_any_dtype(dtype):
    values = label(dtype)
    made = pair(label_=values)
    assert made.label.dtype == np.int32
    assert np.array_equal(made.label.values, values)
    assert made.values == ((1,) if dtype is bool else (1, 2, 7))
    assert made.changes == ()


def test_labels_a_hair_off_an_integer_are_rounded():
    values = label(np.float32) * (1 + 1e-6)
    assert pair(label_=values).values == (1, 2, 7)


def test_fractional_labels_are_refused_with_the_remedy():
    values = label(np.float32)
    values[0, 0, 0], values[0, 0, 1] = 0.13, 0.5
    with pytest.raises(ContextError, match=r"'a'.*0\.13, 0\.5.*label_threshold=0\.5 or task"):
        pair(label_=values)


def test_a_threshold_makes_a_mask_of_what_exceeds_it():
    values = np.zeros(SHAPE, np.float32)
    values[0, 0, :4] = 0.2, 0.5, 0.51, 3
    made = pair(label_=values, label_threshold=0.5)
    assert made.values == (1,)
    assert np.argwhere(made.label.values).tolist() == [[0, 0, 2], [0, 0, 3]]


def test_an_image_task_takes_any_label():
    values = image(1) - 5
    made = pair(label_=values, task="image")
    assert made.values == ()
    assert np.array_equal(made.label.values, values)
    low, high = np.quantile(values, [0.02, 0.98])
    assert made.label_scale.low == pytest.approx(low, abs=0.3)
    assert made.label_scale.high == pytest.approx(high, abs=0.3)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_negative_labels_are_refused(dtype):
    values = label(dtype)
    values[3, 3, 3] = -1
    with pytest.raises(ContextError, match="from -1 to 7"):
        pair(label_=values)


def test_a_label_of_another_shape_is_refused():
    with pytest.raises(ContextError, match=r"\(4, 5, 5\), its image \(4, 5, 6\)"):
        pair(label_=label()[..., :5])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("degrees", [0, 45])  # at 45, rounding decides what is canonical
def test_a_label_stored_in_another_orientation_lands_on_its_voxels(axes, signs, degrees):
    affine = np.eye(4)
    turn = np.deg2rad(degrees)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    source = nib.Nifti1Image(label(), affine)
    orientation = np.stack([axes, signs], axis=1).astype(float)
    turned = source.as_reoriented(orientation)
    made = pair(nib.Nifti1Image(image(), affine), turned, affine=None)
    assert np.array_equal(made.label.values, label())
    assert made.changes == ()


def test_an_image_stored_in_another_orientation_keeps_its_own_order():
    turned = nib.Nifti1Image(image(), AFFINE).as_reoriented(np.array([[2, -1], [0, 1], [1, -1.0]]))
    made = pair(turned, nib.Nifti1Image(label(), AFFINE), affine=None)
    assert made.image.shape == turned.shape
    back = nib.Nifti1Image(made.label.values.astype(np.int16), turned.affine)
    assert np.array_equal(np.asarray(nib.as_closest_canonical(back).dataobj), label())


def test_a_label_that_lost_its_affine_is_taken_in_its_images_order_and_told():
    lost = nib.Nifti1Image(label(), np.eye(4))
    with pytest.warns(VolumeWarning, match="'a': the label's affine differs"):
        made = pair(nib.Nifti1Image(image(), AFFINE), lost, affine=None)
    assert np.array_equal(made.label.values, label())
    assert "affine differs" in made.changes[0]


def test_a_turned_label_that_lost_its_affine_is_refused():
    with pytest.raises(ContextError, match="shape"):
        pair(
            nib.Nifti1Image(image(), AFFINE),
            nib.Nifti1Image(label().transpose(2, 0, 1), np.eye(4)),
            affine=None,
        )


def test_an_array_label_lies_on_its_images_grid(recwarn):
    made = pair(nib.Nifti1Image(image(), AFFINE), label(), affine=None)
    assert np.array_equal(made.label.values, label())
    assert not list(recwarn)


def test_what_reading_changed_is_told_of_both():
    holes = image()
    holes[0, 0, 0] = np.nan
    with pytest.warns(VolumeWarning, match="non-finite"):
        made = pair(holes, label()[..., None])
    assert len(made.changes) == 2


def test_a_placed_label_is_the_soft_mask_of_its_values():
    made = pair()
    grid = made.canonical_label.grid
    whole = read(made.label_on(grid, "world", (1, 7)))
    assert np.array_equal(whole, np.isin(label(), (1, 7)).astype(np.float32))
    half = read(made.label_on(Grid((2, 5, 6), np.diag([2.0, 2, 3, 1])), "box", (1,)))
    assert 0 < half.max() < 1


def test_a_placed_image_is_scaled_to_one():
    made = pair()
    placed = read(made.image_on(made.canonical_image.grid, "box"))
    assert (placed.min(), placed.max()) == (0, 1)


def test_hashes_tell_volumes_apart_but_not_their_storage():
    scan = nib.Nifti1Image(image(), AFFINE)
    turned = scan.as_reoriented(np.array([[1, -1], [0, 1], [2, -1.0]]))
    one = pair(scan, nib.Nifti1Image(label(), AFFINE), affine=None)
    same = pair(turned, nib.Nifti1Image(label(), AFFINE), affine=None)
    assert one.image_hash == same.image_hash
    assert one.hash == same.hash
    other_label = pair(scan, label() * 2, affine=None)
    assert other_label.image_hash == one.image_hash
    assert other_label.hash != one.hash
    moved = pair(affine=np.eye(4))
    assert moved.image_hash != one.image_hash
    assert content_hash(image(), Grid(SHAPE, AFFINE)) != content_hash(image(1), Grid(SHAPE, AFFINE))


def test_a_set_keeps_order_and_names():
    context = ContextSet()
    context.add(pair(name="b"), pair(name="a"))
    assert (len(context), context.names) == (2, ["b", "a"])
    assert context["a"].name == "a"
    assert context.values == [1, 2, 7]
    assert context.remove("b").name == "b"
    assert [each.name for each in context] == ["a"]
    with pytest.raises(ContextError, match=r"'b'.*'a'"):
        context["b"]


def test_a_taken_name_adds_nothing():
    context = ContextSet([pair(name="a")])
    with pytest.raises(ContextError, match=r"taken.*'a'"):
        context.add(pair(name="new"), pair(name="a"))
    with pytest.raises(ContextError, match=r"taken.*'x'"):
        context.add(pair(name="x"), pair(name="x"))
    assert context.names == ["a"]


# Folders in nnU-Net layout.


def test_a_computed_label_with_holes_is_refused():
    values = make_volume(label(np.float32), AFFINE)
    with (
        pytest.warns(VolumeWarning, match="replaced"),
        pytest.raises(ContextError, match="non-finite"),
    ):
        pair(nib.Nifti1Image(image(), AFFINE), values.where(values != 2), affine=None)


def make_folder(root, images, labels):
    folders = root / "imagesTr", root / "labelsTr"
    for folder, names in zip(folders, (images, labels), strict=True):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
    return folders


def test_images_and_labels_find_each_other(tmp_path):
    folders = make_folder(
        tmp_path,
        ["b_0000.nii.gz", "a_0000.nii", "plain.nii.gz", ".hidden_0000.nii.gz", "notes.txt"],
        ["a.nii.gz", "b.nii.gz", "plain.nii.gz"],
    )
    found = find_pairs(*folders)
    assert list(found) == ["a", "b", "plain"]
    assert found["a"] == (folders[0] / "a_0000.nii", folders[1] / "a.nii.gz")


def test_a_number_in_the_name_is_no_channel(tmp_path):
    names = ["la_1234.nii.gz", "la_2023.nii.gz"]
    folders = make_folder(tmp_path, ["la_1234.nii.gz", "la_2023_0000.nii.gz"], names)
    assert list(find_pairs(*folders)) == ["la_1234", "la_2023"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            ["a_0000.nii.gz", "b_0000.nii.gz"],
            ["a.nii.gz"],
            "^b: an image in .*imagesTr but no label in .*labelsTr$",
        ),
        (["a_0000.nii.gz"], ["a.nii.gz", "c.nii.gz"], "^c: a label in .* but no image in "),
        (
            ["a_0000.nii.gz"],
            ["a_seg.nii.gz"],
            "no image in .* has a label of its name in .*: there are a and a_seg",
        ),
        (
            ["a.nii.gz", "b.nii.gz"],
            ["a.nii.gz", "c.nii.gz"],
            "b: an image in .* but no label in .*; c: a label in .* but no image in ",
        ),
        (["a_0000.nii.gz", "a_0001.nii.gz"], ["a.nii.gz"], "channel 0001"),
        ([], ["a.nii.gz"], "no NIfTI file"),
        (["a_0000.nii.gz"], [], "no NIfTI file"),
        (["a.nii.gz", "a_0000.nii.gz"], ["a.nii.gz"], "two files are the case 'a'"),
        (["a.nii.gz"], ["a.nii.gz", "a.nii"], "two files are the case 'a'"),
    ],
    ids=[
        "alone",
        "orphan",
        "suffix",
        "both",
        "channel",
        "no-images",
        "no-labels",
        "twice",
        "twice-label",
    ],
)
def test_folders_that_do_not_match_are_refused(tmp_path, images, labels, message):
    with pytest.raises(ContextError, match=message):
        find_pairs(*make_folder(tmp_path, images, labels))


def test_many_lone_cases_are_counted_and_a_few_are_named(tmp_path):
    names = [f"c{number}_0000.nii.gz" for number in range(9)]
    with pytest.raises(ContextError, match=r"c0, c1, c2, c3, c4, \.\.\. \(9 in all\): an"):
        find_pairs(*make_folder(tmp_path, [*names, "a.nii"], ["a.nii"]))


def test_a_missing_folder_is_our_error(tmp_path):
    with pytest.raises(ContextError, match="no such folder"):
        list_volumes(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x/a_0000.nii.gz", "a"), ("a.nii", "a"), ("a_b_0000.nii", "a_b"), ("a_2023.nii", "a_2023")],
)
def test_case_names(name, expected):
    assert case_name(name) == expected


def test_a_class_table_is_found_beside_the_folders(tmp_path):
    images, labels = make_folder(tmp_path, ["a.nii"], ["a.nii"])
    assert find_class_table(labels, images) is None
    table = {"labels": {"background": 0, "x": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    assert find_class_table(labels, images).names == {1: "x"}
    (tmp_path / "dataset.json").write_text("{broken")
    with pytest.warns(VolumeWarning, match=r"dataset\.json"):
        assert find_class_table(labels, images) is None
    (labels / "dataset.json").write_text(json.dumps({"labels": {"1": "y"}}))
    assert find_class_table(labels, images).names == {1: "y"}


def test_a_folder_of_files_becomes_pairs(cohort):
    found = find_pairs(cohort.images, cohort.labels)
    assert list(found) == ["one", "three", "two"]
    made = make_pair(*found["one"], name="one")
    assert made.values == (1, 2)
    shutil.copy(cohort.scan, cohort.labels / "one.nii.gz")
    with pytest.raises(ContextError, match="fractional"):
        make_pair(*found["one"], name="one")


def test_a_bad_file_names_itself(cohort):
    with pytest.raises(InputError, match=r"none\.nii"):
        make_pair(cohort.scan, cohort.root / "none.nii", name="a")


def test_a_volume_with_nan_is_repaired_and_reported():
    scan = make_volume(np.array([[[1.0, np.nan], [3.0, 4.0]]]), np.eye(4), name="scan")
    with pytest.warns(VolumeWarning, match="replaced 1 non-finite"):
        pair = make_pair(scan, np.ones((1, 2, 2), np.uint8), name="a")
    assert pair.image.values.tolist() == [[[1, 1], [3, 4]]]
    assert pair.changes == ("replaced 1 non-finite voxels by the minimum",)


# --- as a beginner gets it wrong -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_an_image_and_a_label_that_are_swapped_are_told(dtype):
    rng = np.random.default_rng(0)
    image = rng.normal(500, 100, (20, 20, 6)).astype(dtype)
    label = np.zeros(image.shape, np.uint8)
    label[5:12, 5:12, 2:5] = 2
    with pytest.raises(ContextError, match=r"'x': the image has 2 values and .* swapped"):
        make_pair(label, image, name="x", affine=np.eye(4))
    atlas = np.indices(image.shape).sum(0) // 2 * 3
    assert len(make_pair(image.astype(float), atlas, name="x", affine=np.eye(4)).values) > 20
    assert make_pair(label, label, name="x", affine=np.eye(4)).values == (2,), (
        "a mask may show itself"
    )
    assert make_pair(label, image, name="x", task="image", affine=np.eye(4)).values == ()


def test_a_context_is_shown_in_a_line_a_pair():
    context = ContextSet()
    for name in ("one", "two"):
        label = np.zeros((4, 5, 6), np.uint8)
        label[1:3, 1:3, 1:3] = 7
        context.add(make_pair(label * 0.3, label, name=name, affine=np.eye(4)))
    assert repr(context).splitlines() == [
        "<ContextSet, 2 pairs>",
        "  <ContextPair one: 4 x 5 x 6, values [7]>",
        "  <ContextPair two: 4 x 5 x 6, values [7]>",
    ]
