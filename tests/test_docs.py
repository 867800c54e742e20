"""Pages and figures that nobody may type by hand."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("tables", None)
    import tables

    return tables


def test_pages_hold_the_measured_tables(tables):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.render(text, results) == text, f"{page.name}: run benchmarks/tables.py"


def test_a_typed_figure_is_noticed(tables):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = f"{results['hippocampus']['rows'][0]['dice']:.3f}"
    typed = page.replace(figure, "0.999")
    assert typed != page
    assert tables.render(typed, results) != typed


def result_of(name):
    return json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))[name]


def test_hippocampus_rises_with_the_context_and_lies_above_the_mean_label():
    rows = result_of("hippocampus")["rows"]
    assert rows[-1]["dice"] > rows[0]["dice"]
    assert all(row["dice"] > row["mean_label_dice"] for row in rows)


@pytest.mark.parametrize("arrangement", ["by structure", "by brain"])
def test_every_structure_of_held_out_heads_lies_above_the_mean_label(arrangement):
    for name, row in result_of("structures")[arrangement]["rows"].items():
        assert row["dice"] > row["mean_label_dice"], name
        assert row["swapped_dice"] < 0.2, name


def test_restored_volumes_gain():
    for name, row in result_of("image_tasks")["rows"].items():
        assert row["psnr"] > row["spoilt_psnr"] + 4, name
