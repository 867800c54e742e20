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


def test_the_model_is_not_below_the_mean_label_anywhere():
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    for name in ("hippocampus", "held_out"):
        rows = results[name]["rows"]
        assert rows[-1]["dice"] > rows[-1]["mean_label_dice"]
        assert rows[-1]["dice"] > rows[0]["dice"], "Dice does not rise with the context"
