import json
import socket
import sys
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import datasets
from medverse_nb.datasets import DemoCase, demo_cohort, phantom_cohort, write_cohort
from medverse_nb.errors import ContextError, InputError, MedverseError

Make = Callable[..., list[DemoCase]]


def coarse_brains(subjects: int = 3, seed: int = 0) -> list[DemoCase]:
    pytest.importorskip("nilearn")
    return demo_cohort(subjects, seed, spacing_mm=5)


def coarse_phantoms(subjects: int = 3, seed: int = 0) -> list[DemoCase]:
    return phantom_cohort(subjects, seed, side=32)


both_cohorts = pytest.mark.parametrize("make", [coarse_brains, coarse_phantoms])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a cohort must not touch the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def in_ras(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


def test_the_network_guard_works():
    with pytest.raises(AssertionError, match="must not touch the network"):
        socket.create_connection(("192.0.2.1", 80))


def test_the_demo_brain_comes_from_disk():
    datasets._read_template.cache_clear()  # another test may have read it
    assert coarse_brains(1)


@both_cohorts
def test_seed_alone_decides_the_cohort(make: Make):
    np.random.seed(1)  # noqa: NPY002  a global seed must not matter
    first = make(seed=3)
    np.random.seed(2)  # noqa: NPY002
    again = make(seed=3)
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name
        assert np.array_equal(a.image.dataobj, b.image.dataobj)
        assert np.array_equal(a.label.dataobj, b.label.dataobj)
        assert np.array_equal(a.image.affine, b.image.affine)


@both_cohorts
def test_a_subject_does_not_depend_on_how_many_are_drawn(make: Make):
    few, many = make(subjects=1), make(subjects=2)
    assert np.array_equal(few[0].image.dataobj, many[0].image.dataobj)


@both_cohorts
def test_other_seeds_give_other_subjects(make: Make):
    a, b = make(1, seed=0)[0], make(1, seed=1)[0]
    assert a.image.shape != b.image.shape or not np.array_equal(a.label.dataobj, b.label.dataobj)


@both_cohorts
def test_image_and_label_share_one_grid(make: Make):
    for case in make():
        assert case.image.shape == case.label.shape
        assert np.array_equal(case.image.affine, case.label.affine)
        assert case.image.get_data_dtype() == np.int16
        assert case.label.get_data_dtype() == np.uint8
        for code in (int(case.image.header["qform_code"]), int(case.image.header["sform_code"])):
            assert code == 1
        assert np.allclose(case.image.get_qform(), case.image.affine, atol=1e-4)


@both_cohorts
def test_labels_hold_every_class_and_nothing_else(make: Make):
    for case in make():
        values, counts = np.unique(case.label.dataobj, return_counts=True)
        assert values.tolist() == [0, *case.classes.values()]
        assert counts.min() > 20


@both_cohorts
def test_labels_lie_inside_the_imaged_body(make: Make):
    for case in make():
        image, label = np.asarray(case.image.dataobj, float), np.asarray(case.label.dataobj)
        air = np.median(image[label == 0])
        assert np.median(image[label > 0]) > 3 * air
        assert np.mean(image[label > 0] > air) > 0.98


@both_cohorts
def test_subjects_are_stored_in_different_orientations(make: Make):
    orientations = ["".join(nib.aff2axcodes(case.image.affine)) for case in make()]
    assert orientations == ["RAS", "LPS", "LIA"]


@both_cohorts
def test_subjects_differ_but_lie_in_the_same_place_in_the_world(make: Make):
    centres, volumes = [], []
    for case in make():
        mask = np.asarray(case.label.dataobj) == 1
        centre = nib.affines.apply_affine(case.label.affine, np.argwhere(mask)).mean(0)
        centres.append(centre)
        volumes.append(mask.sum())
    assert np.ptp(centres, axis=0).max() < 25
    assert len(set(volumes)) == 3


def test_organs_lie_on_their_own_side():
    for case in coarse_phantoms():
        label = np.asarray(case.label.dataobj)

        def centre(name: str, label=label, case=case) -> np.ndarray:
            points = np.argwhere(label == case.classes[name])
            return nib.affines.apply_affine(case.label.affine, points).mean(0)

        assert centre("liver")[0] > 20 > -20 > centre("spleen")[0]
        assert centre("right kidney")[0] > 20 > -20 > centre("left kidney")[0]
        assert centre("stomach")[1] > centre("left kidney")[1]


def test_white_matter_is_brighter_than_grey_in_every_brain():
    for case in coarse_brains(5):
        image, label = np.asarray(case.image.dataobj), np.asarray(case.label.dataobj)
        grey, white = (np.median(image[label == value]) for value in (1, 2))
        assert white > 1.05 * grey


def test_brains_are_whole_except_below():
    for case in coarse_brains(5):
        label = in_ras(case.label)
        faces = [label[0], label[-1], label[:, 0], label[:, -1], label[:, :, -1]]
        assert not any(face.any() for face in faces)


def test_deformation_never_folds():
    spacing_mm, grid = 5.0, (40, 46, 38)
    for seed in range(20):
        moved = datasets._displacement_mm(np.random.default_rng(seed), grid, 2.5)
        moved = np.moveaxis(moved, 0, -1)
        steps = [np.gradient(moved, spacing_mm, axis=axis) for axis in range(3)]
        jacobian = np.linalg.det(np.eye(3) + np.stack(steps, axis=-1))
        assert jacobian.min() > 0.1


def test_smooth_field_passes_through_its_control_points():
    field = datasets._smooth_field(np.random.default_rng(0), (9, 9, 9), 5)
    points = np.random.default_rng(0).standard_normal((5, 5, 5))
    assert np.allclose(field[::2, ::2, ::2], points, atol=1e-5)


def test_missing_nilearn_says_what_to_install(monkeypatch):
    datasets._read_template.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MedverseError, match=r'nilearn: \S+ -m pip install "medverse_nb\[demo\]"'):
        demo_cohort(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: demo_cohort(0), "subjects must be 1 or more, got 0"),
        (lambda: demo_cohort(1, spacing_mm=0), "spacing_mm must lie in 0.5 to 8, got 0"),
        (lambda: demo_cohort(1, spacing_mm=float("nan")), "got nan"),
        (lambda: phantom_cohort(-1), "subjects must be 1 or more, got -1"),
        (lambda: phantom_cohort(1, seed=-1), "seed must be 0 or more, got -1"),
        (lambda: phantom_cohort(1, side=8), "side must be 24 voxels or more, got 8"),
    ],
)
def test_impossible_cohorts_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_written_cohort_has_the_nnunet_layout(tmp_path):
    cases = coarse_phantoms()
    folder = write_cohort(cases, tmp_path / "new" / "cohort")
    assert folder == tmp_path / "new" / "cohort"
    names = [case.name for case in cases]
    images = sorted(path.name for path in (folder / "imagesTr").iterdir())
    labels = sorted(path.name for path in (folder / "labelsTr").iterdir())
    assert images == [f"{name}_0000.nii.gz" for name in names]
    assert labels == [f"{name}.nii.gz" for name in names]
    for case in cases:
        for stored, path in (
            (case.image, folder / "imagesTr" / f"{case.name}_0000.nii.gz"),
            (case.label, folder / "labelsTr" / f"{case.name}.nii.gz"),
        ):
            back = nib.load(path)
            assert np.array_equal(back.dataobj, stored.dataobj)
            assert np.allclose(back.affine, stored.affine, atol=1e-4)
            assert back.get_data_dtype() == stored.get_data_dtype()
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["labels"] == {"background": 0, **cases[0].classes}
    assert description["file_ending"] == ".nii.gz"
    assert description["numTraining"] == 3
    assert list(description["channel_names"]) == ["0"]


def test_cohorts_that_cannot_be_one_dataset_are_refused(tmp_path):
    a, b = coarse_phantoms(2)
    other = DemoCase("other", b.image, b.label, {"liver": 2})
    for cases in ([], [a, a], [a, other]):
        with pytest.raises(ContextError):
            write_cohort(cases, tmp_path / "cohort")
    assert not (tmp_path / "cohort").exists()
