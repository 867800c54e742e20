"""The weights in the package: real, above the mean label, and led by the context."""

import numpy as np
import pytest

import medverse_nb as mv
from medverse_nb.model.registry import SHIPPED, available_models
from medverse_nb.model.weights import read_notes

HIPPOCAMPUS = {"hippocampus": (1, 2)}


def names_of(shared, start, count):
    labels = sorted((shared / "data" / "hippocampus" / "labelsTr").glob("*.nii.gz"))
    return [path.name.removesuffix(".nii.gz") for path in labels[start : start + count]]


@pytest.fixture(scope="module")
def session(shared):
    session = mv.ICLSession("medverse-tiny", device="cpu")
    folder = shared / "data" / "hippocampus"
    names = names_of(shared, 0, 8)
    session.add_context_folder(folder / "imagesTr", folder / "labelsTr", names=names)
    return session


def test_the_card_tells_the_file():
    (card,) = [c for c in available_models() if c["name"] == "medverse-tiny"]
    network = mv.load_model("medverse-tiny", "cpu")
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["window"] == network.config.window
    assert card["partition"] == network.config.partition
    assert "hippocampus never a foreground" in read_notes(card["path"])["training"]
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 10e6


def test_real_hippocampus_lies_above_the_mean_label(session, shared):
    folder = shared / "data" / "hippocampus"
    rows = [
        session.predict(
            folder / "imagesTr" / f"{name}_0000.nii.gz",
            classes=HIPPOCAMPUS,
            truth=folder / "labelsTr" / f"{name}.nii.gz",
        ).score.loc["hippocampus"]
        for name in names_of(shared, 60, 10)
    ]
    ours = np.mean([row["dice"] for row in rows])
    assert ours > np.mean([row["mean_label_dice"] for row in rows])


def test_the_context_decides_what_is_segmented(session, shared):
    folder = shared / "data" / "hippocampus"
    (name,) = names_of(shared, 60, 1)
    scan = folder / "imagesTr" / f"{name}_0000.nii.gz"
    anterior, posterior = (
        session.predict(scan, classes=[value]).mask.values > 0 for value in (1, 2)
    )
    assert anterior.any()
    assert posterior.any()
    assert mv.metrics.dice(anterior, posterior) < 0.2
