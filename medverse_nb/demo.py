"""The demo: grey matter, white matter and a phantom organ from four pairs, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .classes import Classes
from .datasets import DemoCase, demo_cohort, phantom_cohort
from .files import check_writable, write_atomically
from .io import read_volume
from .prediction import Prediction
from .session import ICLSession

PAIRS = 4
BRAIN_SPACING_MM = 3.0
ORGAN = "liver"


def run_demo(out: Path, on_progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Predict the demo's two targets and write NIfTI, PNG and `manifest.json` to `out`.

    Returns one row a class: target, class, Dice, the mean label's Dice, seconds.

    Raises
    ------
    MedverseError : the demo data's package is missing, or `out` cannot be written.
    """
    check_writable(out / "manifest.json")
    rows: list[dict[str, Any]] = []
    manifests: dict[str, Any] = {}
    brains = demo_cohort(PAIRS + 1, spacing_mm=BRAIN_SPACING_MM)
    phantoms = phantom_cohort(PAIRS + 1)
    organ = {ORGAN: phantoms[0].classes[ORGAN]}
    for title, cases, classes in (("brain", brains, None), ("abdomen", phantoms, organ)):
        on_progress(f"{title}: {PAIRS} pairs, one new scan")
        prediction = _predict_last(cases, classes)
        prediction.write(out / f"{title}_prediction.nii.gz")
        picture = prediction.picture()
        write_atomically(out / f"{title}_preview.png", lambda p, data=picture: p.write_bytes(data))  # type: ignore[misc]
        manifests[title] = prediction.to_dict()
        assert prediction.score is not None
        for name, score in prediction.score.iterrows():
            rows.append(
                {
                    "target": title,
                    "class": name,
                    "dice": float(score["dice"]),
                    "mean_label_dice": float(score["mean_label_dice"]),
                    "seconds": prediction.manifest["seconds"],
                }
            )
    text = json.dumps(manifests, indent=2)
    write_atomically(out / "manifest.json", lambda p: p.write_text(text, encoding="utf-8"))
    return rows


def _predict_last(cases: Sequence[DemoCase], classes: Classes) -> Prediction:
    session = ICLSession("medverse-tiny")
    for case in cases[:-1]:
        session.add_context(case.image, case.label, name=case.name)
    session.context.table.names.update({number: name for name, number in cases[0].classes.items()})
    target = cases[-1]
    scan = read_volume(target.image).rename(target.name)
    return session.predict(scan, classes=classes, truth=target.label)
