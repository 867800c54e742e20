"""The evaluation of a cohort: split, draws, rows, what is bad among them, and resuming."""

import json
import math
import os
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation import evaluate as evaluate_module
from medverse_nb.evaluation.evaluate import Cohort, evaluate
from medverse_nb.evaluation.metrics import dice, hd95, psnr, ssim, surface_dice
from medverse_nb.evaluation.protocol import draw_orders, split_cohort
from medverse_nb.evaluation.result_folder import ResultFolder
from medverse_nb.evaluation.scorers import ImageScorer, SegmentationScorer
from medverse_nb.evaluation.summary import draw_curve, summarise
from medverse_nb.inference import estimate
from medverse_nb.intensity import quantile_scale
from medverse_nb.model.network import ICLNetwork
from medverse_nb.model.registry import load_model
from medverse_nb.pair import make_pair

SCORES = SegmentationScorer.measures
NAMES = [f"case-{number}" for number in range(10)]
SHAPE, SPACING = (9, 10, 8), (2.0, 1.5, 3.0)


# --- the protocol --------------------------------------------------------------------------------


def test_a_split_is_seeded_and_apart():
    split = split_cohort(NAMES, 3, seed=1)
    assert split == split_cohort(NAMES[::-1], 3, seed=1)
    assert split != split_cohort(NAMES, 3, seed=2)
    assert sorted(split.meta_context + split.test) == NAMES
    assert len(split.test) == 3
    assert len(split_cohort(NAMES, 0.4).test) == 4
    assert len(split_cohort(NAMES, 0.001).test) == 1


@pytest.mark.parametrize("test", [0, -1, 2.5, float("nan")])
def test_a_split_that_is_no_number(test):
    with pytest.raises(InputError, match="test="):
        split_cohort(NAMES, test)


def test_a_split_must_leave_a_context():
    with pytest.raises(ContextError, match="none as context"):
        split_cohort(NAMES, 10)
    with pytest.raises(ContextError, match="twice"):
        split_cohort(["a", "a", "b"], 1)


def test_sizes_are_nested_and_draws_are_kept():
    draws = draw_orders(NAMES, draws=4, seed=3)
    assert draws.sizes == (1, 2, 4, 8)
    assert len(set(draws.orders)) == 4
    for draw in range(4):
        for size in draws.sizes:
            names = draws.context(draw, size).names
            assert len(set(names)) == size
            assert names == draws.context(draw, 8).names[:size]
    assert draw_orders(NAMES[::-1], draws=2, seed=3).orders == draws.orders[:2]
    assert draw_orders(NAMES, draws=4, seed=4).orders != draws.orders


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sizes": [11]}, ContextError),
        ({"sizes": [0]}, ContextError),
        ({"sizes": []}, InputError),
        ({"draws": 0}, InputError),
    ],
)
def test_draws_that_cannot_be(options, error):
    with pytest.raises(error):
        draw_orders(NAMES, **options)


# --- rows ----------------------------------------------------------------------------------------


def drawn(start, values=(1, 2)):
    """Return image and label: a block of the first value, whose end has the second."""
    label = np.zeros(SHAPE, np.uint8)
    label[start : start + 4, 3:7, 2:6] = values[0]
    label[start : start + 2, 3:7, 2:6] = values[1]
    noise = np.random.default_rng(start).normal(0, 5, SHAPE)
    return (100 * (label > 0) + noise).astype(np.float32), label


def image_of(array):
    return nib.Nifti1Image(array, np.diag([*SPACING, 1]))


def cohort_of(**changes):
    """Return five cases in memory; a changed one is (image, label)."""
    cases = {f"c{start}": drawn(start) for start in range(1, 6)} | changes
    return Cohort({name: (image_of(a), image_of(b)) for name, (a, b) in cases.items()})


@pytest.fixture
def ask(tmp_path, tiny_weights, one_thread):
    """Evaluate with the random network; c1 and c3 are the test cases."""
    network = load_model(tiny_weights, "cpu")

    def run(cohort=None, **options):
        asked = {"test": 2, "sizes": [1, 3], "draws": 2, "seed": SEED, "out": tmp_path / "out"}
        out = (asked | options).pop("out")
        asked = {key: value for key, value in (asked | options).items() if key != "out"}
        return evaluate(network, cohort or cohort_of(), out, weights_sha256="f00", **asked)

    return run


SEED = next(
    s
    for s in range(99)
    if split_cohort(["c1", "c2", "c3", "c4", "c5"], 2, seed=s).test == ("c1", "c3")
)


def answer_with(monkeypatch, answer):
    """Let `answer(wanted)` stand for the network: (K, X, Y, Z) probabilities."""

    def predictor(_network, _target, wanted, **_options):
        return lambda _pairs: answer(wanted)

    monkeypatch.setattr(evaluate_module, "predictor", predictor)


def test_a_row_for_every_case_class_size_and_draw(ask, tmp_path):
    found = ask()
    keys = found.rows[["case", "class", "size", "draw"]]
    assert len(keys.drop_duplicates()) == len(keys) == 2 * 2 * 2 * 2
    assert set(found.rows["case"]) == {"c1", "c3"}
    assert list(found.rows.columns) == [
        "case", "class", "size", "draw", "dice", "surface_dice", "hd95_mm", "mean_label_dice",
        "seconds", "note", "error", "context", "weights_sha256", "seed", "versions",
    ]  # fmt: skip
    assert set(found.rows["weights_sha256"]) == {"f00"}
    assert (found.rows["error"] == "").all()
    assert found.rows["seconds"].min() > 0
    assert found.rows["versions"].str.contains("torch ").all()
    for row in found.rows.itertuples():
        names = row.context.split(";")
        assert len(names) == row.size
        assert not {"c1", "c3"} & set(names)
    files = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert files - {"rows.parquet"} == {"asked.json", "curve.png", "rows.csv", "summary.csv"}
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_those_of_the_answer_on_the_scans_own_grid(ask, monkeypatch):
    answer = np.zeros((2, *SHAPE), np.float32)
    answer[0, 2:6, 3:7, 2:6] = 0.9
    answer[1, 2:4, 3:7, 2:6] = 0.95
    answer_with(monkeypatch, lambda _wanted: answer)
    rows = ask().rows
    masks = {"class 1": (answer[0] > 0) & (answer[1] == 0), "class 2": answer[1] > 0}
    for row in rows.itertuples():
        _, label = drawn(int(row.case[1]))
        truth, mask = label == int(row[2][-1]), masks[row[2]]
        assert row.dice == pytest.approx(dice(mask, truth))
        assert row.hd95_mm == pytest.approx(hd95(mask, truth, spacing_mm=SPACING))
        assert row.surface_dice == pytest.approx(
            surface_dice(mask, truth, tolerance_mm=1, spacing_mm=SPACING)
        )
    assert rows["hd95_mm"].min() == pytest.approx(2)  # c1 and c3 lie one voxel off


def test_the_mean_label_stands_beside(ask):
    rows = ask(sizes=[1], draws=1).rows
    for row in rows.itertuples():
        pair, truth = (
            drawn(int(name[1]))[1] == int(row[2][-1]) for name in (row.context, row.case)
        )
        assert row.mean_label_dice == pytest.approx(dice(pair, truth))


def test_the_same_mean_label_and_dice_as_a_session(ask, tiny_weights):
    from medverse_nb import ICLSession

    row = ask(sizes=[3], draws=1).rows.iloc[0]
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    cases = cohort_of().cases
    for name in row["context"].split(";"):
        session.add_context(*cases[name], name=name)
    score = session.predict(cases[row["case"]][0], truth=cases[row["case"]][1]).score
    assert score.loc["class 1", "dice"] == pytest.approx(row["dice"])
    assert score.loc["class 1", "mean_label_dice"] == pytest.approx(row["mean_label_dice"])


# --- image tasks ---------------------------------------------------------------------------------


def spoilt(start):
    """Return a noisy scan and the clean one, in other units."""
    image, label = drawn(start)
    return image, (1000.0 + 50 * label + np.arange(SHAPE[2])).astype(np.float32)


@pytest.fixture
def ask_image(ask):
    def run(**options):
        changes = options.pop("changes", {})
        cases = {f"c{start}": spoilt(start) for start in range(1, 6)} | changes
        return ask(cohort_of(**cases), task="image", **options)

    return run


def scaled(array):
    return quantile_scale(array).apply(array)


def test_an_image_is_scored_in_its_own_scale_beside_the_target(ask_image, monkeypatch):
    answer = np.random.default_rng(0).random((1, *SHAPE), np.float32)
    answer_with(monkeypatch, lambda wanted: answer if wanted == [None] else None)
    found = ask_image()
    assert list(found.rows.columns[4:8]) == ["psnr", "ssim", "target_psnr", "target_ssim"]
    assert len(found.rows) == 2 * 2 * 2
    for row in found.rows.itertuples():
        image, truth = map(scaled, spoilt(int(row.case[1])))
        assert row.psnr == pytest.approx(psnr(answer[0], truth, 1))
        assert row.ssim == pytest.approx(ssim(answer[0], truth, 1, window=7))
        assert row.target_psnr == pytest.approx(psnr(image, truth, 1))
        assert row.target_ssim == pytest.approx(ssim(image, truth, 1, window=7))
        assert row.note == "SSIM in windows of 7 voxels: thin volume"
    line = found.summary.iloc[0]
    assert (line["class"], line["noted"], line["errors"]) == ("image", 4, 0)
    assert line["psnr"] == pytest.approx(found.rows[found.rows["size"] == 1]["psnr"].mean())


def test_units_that_differ_from_scan_to_scan_do_not_count(ask_image, tmp_path):
    others = {f"c{start}": [10 * start * array for array in spoilt(start)] for start in range(1, 6)}
    here, there = ask_image().rows, ask_image(changes=others, out=tmp_path / "other").rows
    for column in ImageScorer.measures.columns:
        assert list(there[column]) == pytest.approx(list(here[column]), abs=0.01)


def test_the_same_image_as_a_session(ask_image, tiny_weights):
    from medverse_nb import ICLSession

    row = ask_image(sizes=[1], draws=1).rows.iloc[0]
    session = ICLSession(tiny_weights, task="image", device="cpu", precision="float32")
    pair = spoilt(int(row["context"][1]))
    session.add_context(*map(image_of, pair), name="only")
    scan, truth = spoilt(int(row["case"][1]))
    answer = quantile_scale(pair[1]).apply(session.predict(image_of(scan)).image.values)
    assert row["psnr"] == pytest.approx(psnr(answer, scaled(truth), 1), abs=1e-3)


def test_a_thick_volume_takes_the_whole_ssim_window():
    image, label = np.random.default_rng(0).random((2, 12, 11, 13))
    case = make_pair(image, label, name="thick", task="image", affine=np.eye(4))
    (asked,) = ImageScorer().questions(None)
    scores, notes = ImageScorer().score({asked: image}, case, [])[asked]
    assert scores["ssim"] == pytest.approx(ssim(image, scaled(label), 1))
    assert not notes


def test_an_image_without_a_score_is_an_error_and_a_perfect_one_is_counted(ask_image, monkeypatch):
    answer_with(monkeypatch, lambda _wanted: np.zeros((1, *SHAPE), np.float32))
    image, label = spoilt(3)
    flat = ask_image(changes={"c3": (image, np.full_like(label, 7))})
    wrong = flat.rows[flat.rows["case"] == "c3"]
    assert wrong["error"].str.contains("the truth is constant").all()
    assert (flat.summary["errors"] == 2).all()
    assert (flat.summary["cases"] == 1).all()


def test_a_target_that_is_the_truth_is_left_out_of_its_own_mean(ask_image, monkeypatch):
    answer_with(monkeypatch, lambda _wanted: np.zeros((1, *SHAPE), np.float32))
    _, label = spoilt(3)
    found = ask_image(changes={"c3": (label, label)})
    assert math.isinf(found.rows.set_index("case").loc["c3", "target_psnr"].iloc[0])
    assert (found.summary["infinite"] == 2).all()
    others = found.rows[found.rows["case"] == "c1"]["target_psnr"]
    assert found.summary["target_psnr"].iloc[0] == pytest.approx(others.iloc[0])


@pytest.mark.filterwarnings("ignore::medverse_nb.checks.VolumeWarning")
def test_an_image_label_with_nan_is_noted(ask_image):
    image, label = spoilt(3)
    label[0, 0, :2] = np.nan
    rows = ask_image(changes={"c3": (image, label)}).rows
    assert set(rows[rows["note"].str.contains("replaced 2 non-finite")]["case"]) == {"c3"}


def test_an_image_task_has_no_classes(ask_image, ask):
    with pytest.raises(InputError, match="classes are for"):
        ask_image(classes=[1])
    with pytest.raises(InputError, match="task='both'"):
        ask(task="both")


def test_the_curve_of_an_image_task_is_psnr(ask_image):
    from matplotlib.figure import Figure

    summary = ask_image().summary
    axes = Figure().subplots()
    draw_curve(axes, summary, ImageScorer.measures)
    assert [list(line.get_ydata()) for line in axes.lines] == [
        list(summary["psnr"]), list(summary["target_psnr"]),
    ]  # fmt: skip
    assert axes.get_ylabel() == "PSNR dB"


# --- what is bad ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::medverse_nb.checks.VolumeWarning")
def test_a_scan_with_nan_is_noted_and_counted(ask):
    image, label = drawn(3)
    image[0, 0, 0] = np.nan
    found = ask(cohort_of(c3=(image, label)))
    noted = found.rows[found.rows["note"].str.contains("target: replaced 1 non-finite")]
    assert set(noted["case"]) == {"c3"}
    assert len(noted) == 8
    assert found.summary["noted"].min() >= 2


@pytest.mark.filterwarnings("ignore::medverse_nb.checks.VolumeWarning")
def test_a_pair_with_nan_is_noted_where_it_is_used(ask):
    image, label = drawn(2)
    image[0, 0, 0] = np.nan
    rows = ask(cohort_of(c2=(image, label))).rows
    noted = rows["note"].str.contains("context c2: replaced 1 non-finite")
    assert noted.any()
    assert (noted == rows["context"].str.contains("c2")).all()


def test_a_scan_without_a_finite_voxel_is_an_error(ask):
    image, label = drawn(3)
    rows = ask(cohort_of(c3=(np.full_like(image, np.nan), label))).rows
    assert (rows["error"].str.contains("no finite voxel") == (rows["case"] == "c3")).all()


def test_a_window_that_cannot_fit_is_told_before_anything_is_read(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda _: 10)
    with pytest.raises(InputError, match="window of 8"):
        ask(Cohort({}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["segmentation", "image"])
def test_an_answer_that_is_not_finite_is_an_error(ask, ask_image, monkeypatch, task):
    def broken(_network, target, *_inputs, **_options):
        answer = torch.ones_like(target)
        answer[..., :3] = torch.nan
        return answer

    monkeypatch.setattr(ICLNetwork, "forward", broken)
    found = (ask_image if task == "image" else ask)()
    assert found.rows["error"].str.contains("voxels with values that are not finite").all()
    assert found.summary["errors"].sum() == len(found.rows)
    assert found.summary[found.measures.drawn].isna().all()


@pytest.mark.parametrize("bad", ["shape", "nan"])
@pytest.mark.filterwarnings("ignore::medverse_nb.checks.VolumeWarning")
def test_a_truth_that_cannot_be_used_is_an_error_and_the_rest_goes_on(ask, tmp_path, bad):
    image, label = drawn(3)
    other = label[:-1] if bad == "shape" else np.where(label == 0, np.nan, label)
    found = ask(cohort_of(c3=(image, other)))
    wrong = found.rows[found.rows["case"] == "c3"]
    assert wrong["error"].str.contains("shape" if bad == "shape" else "non-finite").all()
    assert wrong[SCORES.columns].isna().all(axis=None)
    assert (found.summary["errors"] == 2).all()
    assert (found.summary["cases"] == 1).all()
    good = ask(cohort_of(), out=tmp_path / "good").rows
    alone = good[(good["case"] == "c1") & (good["class"] == "class 1") & (good["size"] == 1)]
    assert found.summary.iloc[0]["mean_label_dice"] == pytest.approx(
        alone["mean_label_dice"].mean()
    )


def test_a_pair_that_cannot_be_used_is_left_out_of_the_context(ask):
    image, label = drawn(2)
    found = ask(cohort_of(c2=(image, label[:-1])), sizes=[1, 2])
    assert list(found.left_out) == ["c2"]
    assert "shape" in found.left_out["c2"]
    assert not found.rows["context"].str.contains("c2").any()
    with pytest.raises(ContextError, match=r"\[3\]"):
        ask(cohort_of(c2=(image, label[:-1])), sizes=[3])


def test_a_class_that_pairs_lack(ask):
    without = {f"c{start}": drawn(start, (1, 1)) for start in (2, 4)}
    found = ask(cohort_of(**without))
    second = found.rows[found.rows["class"] == "class 2"]
    three = second[second["size"] == 3]
    assert three["note"].str.startswith("2 of 3 pairs without this class").all()
    for row in second[second["size"] == 1].itertuples():
        assert (row.error == "none of the 1 pairs has this class") == (row.context != "c5")
        assert math.isnan(row.dice) == (row.context != "c5")
    assert (found.rows[found.rows["class"] == "class 1"]["error"] == "").all()


def test_empty_truth_and_prediction_are_noted(ask, monkeypatch):
    answer_with(monkeypatch, lambda wanted: np.zeros((len(wanted), *SHAPE), np.float32))
    found = ask(cohort_of(c3=drawn(3, (1, 1))))
    table = found.rows.set_index(["case", "class"])
    nothing, missed = table.loc[("c3", "class 2")], table.loc[("c3", "class 1")]
    assert set(nothing["note"]) == {"no foreground in truth and prediction"}
    assert set(missed["note"]) == {"no foreground in prediction"}
    assert (set(nothing["dice"]), set(nothing["hd95_mm"])) == ({1}, {0})
    assert (set(missed["dice"]), set(missed["hd95_mm"])) == ({0}, {math.inf})
    first = found.summary[found.summary["class"] == "class 1"]
    assert (first["infinite"] == 4).all()
    assert first["hd95_mm"].isna().all()
    second = found.summary[found.summary["class"] == "class 2"]
    assert (second["infinite"] == 2).all()
    assert (second["hd95_mm"] == 0).all()


# --- resuming ------------------------------------------------------------------------------------


def stop_after(count):
    def on_progress(what, done, _of):
        if done == count and not what.startswith("reading"):
            raise Cancelled("enough")

    return on_progress


@pytest.fixture
def calls(monkeypatch):
    """Let the mean of the labels stand for the network; collects what was asked for."""
    calls = []

    def predictor(_network, target, wanted, **_options):
        def predict(pairs):
            calls.append((target.name, [pair.name for pair in pairs]))
            labels = np.stack([pair.label.values for pair in pairs])
            return np.stack([np.isin(labels, values).mean(axis=0) for values in wanted])

        return predict

    monkeypatch.setattr(evaluate_module, "predictor", predictor)
    return calls


# A kill leaves a whole file, half a line, half a number, or some of a group's classes.
@pytest.mark.parametrize("cut", [0, 1, 40, 200, 700])
def test_what_was_cut_short_is_finished_alike(ask, tmp_path, calls, cut):
    whole = ask(out=tmp_path / "whole").rows
    with pytest.raises(Cancelled):
        ask(on_progress=stop_after(3))
    path = tmp_path / "out" / "rows.csv"
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    kept = path.read_bytes().decode().rpartition("\n")[0].count("\n") // 2
    calls.clear()
    again = ask().rows
    assert len(calls) == 8 - kept
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )
    calls.clear()
    pd.testing.assert_frame_equal(ask().rows, again)
    assert not calls


def test_a_table_of_umlauts_that_was_cut_in_one(ask, tmp_path, calls):
    classes = {"Gefäß": (1, 2)}
    whole = ask(classes=classes).rows
    path = tmp_path / "out" / "rows.csv"
    text = path.read_bytes()
    path.write_bytes(text[: text.rfind("ä".encode()) + 1])
    assert list(ask(classes=classes).rows["dice"]) == list(whole["dice"])


@pytest.mark.parametrize(
    "other",
    [{"seed": SEED, "draws": 3}, {"sizes": [1]}, {"classes": [1]}, {"tolerance_mm": 2.0}],
)
def test_another_question_is_refused(ask, tmp_path, calls, other):
    ask()
    before = (tmp_path / "out" / "rows.csv").read_bytes()
    changed = "draws" if "draws" in other else next(iter(other))
    with pytest.raises(InputError, match=f"another evaluation: .*{changed}"):
        ask(**other)
    assert (tmp_path / "out" / "rows.csv").read_bytes() == before


def test_a_case_that_changed_is_another_question(ask, calls):
    ask()
    with pytest.raises(InputError, match="cases"):
        ask(cohort_of(c1=drawn(2)))


def test_a_folder_of_something_else_is_left_alone(ask, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        ask()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_rows_of_other_columns_are_refused(ask, tmp_path, calls):
    ask()
    (tmp_path / "out" / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        ask()


def test_a_folder_is_written_by_one_process_at_a_time(ask, tmp_path, calls):
    whole = ask(out=tmp_path / "whole").rows
    with pytest.raises(Cancelled):
        ask(on_progress=stop_after(3))
    before = (tmp_path / "out" / "rows.csv").read_bytes()
    asked = json.loads((tmp_path / "out" / "asked.json").read_text())
    with ResultFolder(tmp_path / "out", asked, ["class 1", "class 2"], SCORES.columns):
        with pytest.raises(InputError, match="another process"):
            ask()
        assert (tmp_path / "out" / "rows.csv").read_bytes() == before
    pd.testing.assert_frame_equal(
        ask().rows.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


def test_a_refused_question_leaves_the_folder_free(ask, calls):
    ask()
    with pytest.raises(InputError, match="another evaluation"):
        ask(sizes=[1])
    assert len(ask().rows) == 16


SLOWLY = """
import sys, time
from medverse_nb.cli import main
from medverse_nb.evaluation import evaluate as module

predictor = module.predictor

def slow_predictor(*arguments, **options):
    time.sleep(0.5)
    return predictor(*arguments, **options)

module.predictor = slow_predictor
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_table(cli, cohort, tiny_weights, one_thread):
    rows = cohort.out / "rows.csv"
    asked = evaluate_arguments(cohort, tiny_weights, "--draws", 10)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *asked],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not rows.is_file() or rows.read_bytes().count(b"\n") < 7:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        beside = cli(*asked)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert beside.code == 2
    assert "another process" in beside.err
    left = rows.read_bytes()
    assert 7 <= left.count(b"\n") < 41
    rows.write_bytes(left[:-5])
    resumed = cli(*asked)
    assert resumed.code == 0, resumed.err
    killed = pd.read_csv(rows)
    whole = cohort.root / "whole"
    assert cli(*asked, "--out", whole).code == 0
    pd.testing.assert_frame_equal(
        killed.drop(columns="seconds"),
        pd.read_csv(whole / "rows.csv").drop(columns="seconds"),
        check_exact=True,
    )
    assert len(killed) == 40


# --- parquet -------------------------------------------------------------------------------------


def test_without_a_parquet_library_there_is_no_parquet(ask, tmp_path, calls, monkeypatch):
    def no_library(*_arguments, **_options):
        raise ImportError("Unable to find a usable engine; tried using: 'pyarrow', 'fastparquet'.")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", no_library)
    assert len(ask().rows) == 16
    assert not list((tmp_path / "out").glob("*parquet*"))


def test_parquet_has_the_rows_of_the_table(ask, tmp_path, calls):
    pytest.importorskip("pyarrow")
    found = ask(cohort_of(c3=drawn(3, (1, 1))))
    table = pd.read_parquet(tmp_path / "out" / "rows.parquet")
    pd.testing.assert_frame_equal(table, found.rows, check_dtype=False)


# --- mean and spread -----------------------------------------------------------------------------


def test_the_spread_is_that_of_the_draws_means():
    def row(case, draw, value):
        scores = dict.fromkeys(SCORES.columns, value)
        return {"case": case, "class": "a", "size": 2, "draw": draw, "seconds": 1.0,
                "note": "", "error": ""} | scores  # fmt: skip

    # Draw 0: cases 0.2 and 0.4, mean 0.3; draw 1: 0.6 and 0.8, mean 0.7.
    rows = [row("x", 0, 0.2), row("y", 0, 0.4), row("x", 1, 0.6), row("y", 1, 0.8)]
    (line,) = summarise(pd.DataFrame(rows), SCORES).to_dict("records")
    assert line["dice"] == pytest.approx(0.5)
    assert line["dice_std"] == pytest.approx(0.4 / math.sqrt(2))
    assert (line["cases"], line["draws"], line["errors"], line["noted"]) == (2, 2, 0, 0)


def test_the_dashed_line_is_the_mean_label(ask, calls):
    from matplotlib.figure import Figure

    summary = ask().summary
    axes = Figure().subplots()
    draw_curve(axes, summary, SCORES)
    ours, baseline = axes.lines[:2]
    first = summary[summary["class"] == "class 1"]
    assert list(ours.get_ydata()) == list(first["dice"])
    assert list(baseline.get_ydata()) == list(first["mean_label_dice"])
    assert baseline.get_linestyle() == "--"


# --- the command ---------------------------------------------------------------------------------


def evaluate_arguments(cohort, weights, *more):
    arguments = (
        "evaluate", cohort.images, cohort.labels, "--out", cohort.out, "--model", weights,
        "--device", "cpu", "--test", 1, "--draws", 2, *more,
    )  # fmt: skip
    return [str(argument) for argument in arguments]


def run_cli(cli, cohort, weights, *more):
    return cli(*evaluate_arguments(cohort, weights, *more))


def test_the_command_writes_and_prints(cli, cohort, tiny_weights):
    outcome = run_cli(cli, cohort, tiny_weights, "--json")
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)["summary"]
    assert [(line["class"], line["size"]) for line in summary] == [
        ("class 1", 1), ("class 2", 1), ("class 1", 2), ("class 2", 2),
    ]  # fmt: skip
    table = run_cli(cli, cohort, tiny_weights)
    assert table.code == 0
    assert "class 2" in table.out
    assert "curve.png" in table.out
    named = run_cli(cli, cohort, tiny_weights, "--classes=block=1+2", "--sizes=1")
    assert named.code == 2
    assert "another evaluation" in named.err
    assert "Traceback" not in named.err


def test_the_command_scores_an_image_task(cli, cohort, tiny_weights):
    outcome = run_cli(cli, cohort, tiny_weights, "--task", "image")
    assert outcome.code == 0, outcome.err
    assert "PSNR dB" in outcome.out
    table = pd.read_csv(cohort.out / "rows.csv")
    assert set(table["class"]) == {"image"}
    assert table[["psnr", "ssim", "target_psnr", "target_ssim"]].notna().all(axis=None)
    other = run_cli(cli, cohort, tiny_weights)
    assert other.code == 2
    assert "another evaluation: task" in other.err


def test_the_command_tells_bad_cases(cli, cohort, tiny_weights):
    name = split_cohort(["one", "two", "three"], 2).test[0]
    path = cohort.labels / f"{name}.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    outcome = run_cli(cli, cohort, tiny_weights, "--test", 2, "--sizes", "1")
    assert outcome.code == 1
    assert f"error: {name}" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sizes", "few"], "--sizes"),
        (["--sizes", "9"], "1..2"),
        (["--draws", "0"], "draws"),
        (["--test", "3"], "context"),
        (["--classes", "7"], "no pair"),
        (["--tolerance", "-1"], "tolerance"),
    ],
)
def test_the_command_refuses(cli, cohort, tiny_weights, more, message):
    outcome = run_cli(cli, cohort, tiny_weights, *more)
    assert outcome.code == 2
    assert message in outcome.err
    assert not cohort.out.exists()
