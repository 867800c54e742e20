"""Pages and figures that nobody may type by hand."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from medverse_nb.training.config import read_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("tables", None)
    import tables

    return tables


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ablations

    return ablations


def test_pages_with_a_table_are_found(tables):
    names = {page.name for page in tables.PAGES}
    assert {"models.md", "evidence.md", "trust.md", "scaling.md"} <= names


def test_pages_hold_the_measured_tables(tables):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.render(text, results) == text, f"{page.name}: run benchmarks/tables.py"


def test_a_typed_figure_is_noticed(tables):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    figure = f"{results['hippocampus']['rows'][0]['dice']:.3f}"
    typed = page.replace(figure, "0.999")
    assert typed != page
    assert tables.render(typed, results) != typed


EMPTY_BLOCK = "Before.\n\n<!-- benchmark:ablations -->\n<!-- benchmark:end -->\n\nAfter.\n"


def arm_of_known_figures():
    row = {"step": 1204, "minutes": 12.0, "dice_1": 0.4, "dice_8": 0.5, "native_dice": 0.6}
    return row | {"mean_label_1": 0.1, "mean_label_8": 0.2, "native_mean_label": 0.3}


def test_ablations_have_one_row_an_arm_under_a_heading(tables):
    result = {
        **result_of("speed"),
        "minutes": 12,
        "subjects": 2,
        "pairs": 8,
        "rows": {"no BAM": arm_of_known_figures()},
    }
    page = tables.render(EMPTY_BLOCK, {"ablations": result})
    assert "| no BAM | 1,204 | 0.400 | 0.100 | 0.500 | 0.200 | 0.600 | 0.300 |" in page
    assert "What each part is worth" in page
    assert tables.render(page, {"ablations": result}) == page
    assert tables.render(page, {}) == EMPTY_BLOCK


def test_ablations_not_measured_leave_nothing_on_the_page(tables):
    assert tables.render(EMPTY_BLOCK, {}) == EMPTY_BLOCK
    assert "<!-- benchmark:ablations -->" in (ROOT / "docs" / "models.md").read_text("utf-8")


def test_any_other_table_has_to_be_measured(tables):
    with pytest.raises(KeyError, match="speed"):
        tables.render(EMPTY_BLOCK.replace("ablations", "speed"), {})


def test_every_arm_can_be_trained_and_differs_in_what_its_name_says(ablations, tmp_path):
    configs = {}
    for name, arm in ablations.ARMS.items():
        path = tmp_path / "arm.yaml"
        path.write_text(json.dumps(ablations.settings_of(arm, 12, tmp_path)), encoding="utf-8")
        configs[name] = read_config(path).model_dump()
    whole = configs.pop("BAM and NA-ICL")
    differences = {
        name: {
            f"{part}.{key}"
            for part in ("network", "tasks")
            for key in config[part]
            if config[part][key] != whole[part].get(key)
        }
        for name, config in configs.items()
    }
    assert differences == {
        "no NA-ICL": {"tasks.autoregressive"},
        "no BAM, no NA-ICL": {"network.architecture", "tasks.autoregressive"},
        "interleaved blocks": {"network.partition"},
    }


def test_an_arm_of_other_minutes_is_not_taken_for_this_one(ablations, tmp_path):
    arm = ablations.ARMS["no NA-ICL"]
    settings = ablations.settings_of(arm, 12, tmp_path)
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (tmp_path / "arm.safetensors").touch()
    assert ablations.prepare(tmp_path, settings, 12) is None  # done: nothing is run
    with pytest.raises(SystemExit, match="other settings or minutes"):
        ablations.prepare(tmp_path, ablations.settings_of(arm, 48, tmp_path), 48)


def test_one_arm_that_fails_ends_the_others(ablations):
    endless = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(SystemExit, match="not trained"):
        ablations.train([endless, [sys.executable, "-c", "raise SystemExit(1)"]])


def test_a_figure_goes_to_the_file_asked_for(ablations, tmp_path):
    path = tmp_path / "results.json"
    ablations.record("one", {"dice": 0.5}, path)
    ablations.record("two", {"dice": 0.6}, path)
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["one"]["dice"] == 0.5
    assert results["two"]["measured"]["versions"]["torch"]


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
