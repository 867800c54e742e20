"""A colleague's whole day on real scans: from eight pairs, two of them wrong, to a cohort's files."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

import medverse_nb as mv
from medverse_nb.checks import VolumeWarning

ORIENTATIONS = ("RAS", "LPS", "PIR", "ASL", "SAR", "RSP", "LAI", "IPR")
SHIFTED = (2, 5)  # of the eight pairs
SHIFT_MM = 5
HIPPOCAMPUS = {"hippocampus": (1, 2)}
COHORT = 4


@pytest.fixture
def hippocampus(shared):
    """Images and labels of real cases by name, in an order that is no patient's."""
    folder = shared / "data" / "hippocampus"
    names = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("labelsTr/*.nii.gz"))
    return {
        str(name): (
            folder / "imagesTr" / f"{name}_0000.nii.gz",
            folder / "labelsTr" / f"{name}.nii.gz",
        )
        for name in np.random.default_rng(0).permutation(names)
    }


def save_turned(image, codes, path):
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    return path


def write_pairs(cases, folder):
    """Write pairs in eight orientations, the labels of two of them shifted to the front."""
    for number, (name, (image, label)) in enumerate(cases):
        mask = nib.load(label)
        if number in SHIFTED:
            moved = np.roll(np.asarray(mask.dataobj), SHIFT_MM, axis=1)
            mask = nib.Nifti1Image(moved, mask.affine, mask.header)
        codes = ORIENTATIONS[number]
        yield (
            name,
            save_turned(nib.load(image), codes, folder / f"{name}.nii.gz"),
            save_turned(mask, codes, folder / f"{name}_seg.nii.gz"),
        )


@pytest.mark.slow
def test_a_whole_day(hippocampus, tmp_path):
    distributed = pytest.importorskip("distributed")
    cases = list(hippocampus.items())
    session = mv.ICLSession("medverse-tiny", device="cpu")
    for name, image, label in write_pairs(cases[:8], tmp_path):
        session.add_context(image, label, name=name)
    target, truth = cases[8][1]

    # The doctor names the two labels that are shifted, and no other.
    found = [f.pair for f in session.check(target).findings if f.severity != "note"]
    assert sorted(found) == sorted(cases[number][0] for number in SHIFTED)
    for name in found:
        session.remove_context(name)

    # A mask on the scan's own grid, above the mean label, with a score for trust.
    prediction = session.predict(
        target, classes=HIPPOCAMPUS, truth=truth, record=True, trust="fast", on_progress=None
    )
    score = prediction.score.loc["hippocampus"]
    assert score["dice"] > score["mean_label_dice"]
    (trust,) = prediction.to_dict()["trust"]["classes"]
    assert trust["expected_low"] < trust["expected_dice"] < trust["expected_high"]
    assert abs(trust["expected_dice"] - score["dice"]) < 0.25
    assert prediction.explore_steps("static").state.step.scale == 1
    attention = prediction.explore_attention("static").state
    attention.look_at_strongest()
    _, _, weight = attention.strongest
    assert weight > 2 / attention.attention.sizes["key"]

    # Two slices are drawn on, the third between them is filled in; the result joins the context.
    viewer = prediction.view("static", edit=True)
    axial, middle = 2, viewer.state.cursor[2]
    for offset in (-1, 1):
        place = [*viewer.state.cursor[:2], middle + offset]
        viewer.state.paint([place], axial, 1, radius_vox=6)
    viewer.state.fill_between(axial, 1)
    corrected = viewer.mask
    assert not np.array_equal(corrected.values, prediction.mask.values)
    with pytest.warns(VolumeWarning, match="were asked for as one"):
        pair = session.accept(mask=corrected)
    assert np.array_equal(np.asarray(pair.label) > 0, corrected.values > 0)
    bank = session.save(tmp_path / "bank.mvctx")

    # The others on two workers, each result a file on its scan's grid and a manifest.
    others = dict(cases[9 : 9 + COHORT])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        table = mv.ICLSession.load(bank, client=client).predict_many(
            {name: image for name, (image, _) in others.items()},
            truths={name: label for name, (_, label) in others.items()},
            classes=HIPPOCAMPUS,
            out=tmp_path / "out",
            on_progress=None,
        )
    assert table["error"].isna().all()
    assert table["dice"].mean() > table["mean_label_dice"].mean()
    for name, (image, _) in others.items():
        mask, scan = nib.load(tmp_path / "out" / f"{name}.nii.gz"), nib.load(image)
        assert mask.shape == scan.shape
        assert np.allclose(mask.affine, scan.affine)
        made = json.loads((tmp_path / "out" / f"{name}.json").read_text())["manifest"]
        assert [one["name"] for one in made["context"]] == session.context.names
