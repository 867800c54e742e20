import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import __version__
from medverse_nb.cli import parse_classes
from medverse_nb.errors import InputError
from medverse_nb.session import ICLSession


@pytest.fixture
def predict(cli, cohort, tiny_weights):
    """Run `predict` on the cohort with the random network."""

    def run(*targets, **options):
        settings = {
            "images": cohort.images, "labels": cohort.labels, "out": cohort.out,
            "model": tiny_weights, "device": "cpu",
        } | options  # fmt: skip
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        return cli("predict", *(targets or [cohort.scan]), *flags, "--json")

    return run


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_predict_writes_a_mask_on_the_targets_grid(predict, cohort):
    outcome = predict()
    assert outcome.code == 0
    assert written(cohort.out) == ["predictions.json", "scan.json", "scan.nii.gz"]
    mask, scan = nib.load(cohort.out / "scan.nii.gz"), nib.load(cohort.scan)
    assert mask.shape == scan.shape
    assert np.array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert mask.header[field] == scan.header[field]


def test_predict_prints_the_json_it_writes(predict, cohort, tiny_weights):
    summary = json.loads(predict().out)
    assert summary == json.loads((cohort.out / "predictions.json").read_text())
    assert summary["context"] == ["one", "three", "two"]
    (case,) = summary["cases"]
    assert (case["case"], case["output"]) == ("scan", str(cohort.out / "scan.nii.gz"))
    assert [entry["name"] for entry in case["classes"]] == ["class 1", "class 2"]
    assert case["score"] is None
    assert case["manifest"]["model"]["name"] == str(tiny_weights)
    assert case["manifest"]["settings"]["device"] == "cpu"
    mask = np.asarray(nib.load(cohort.out / "scan.nii.gz").dataobj)
    for entry in case["statistics"]:
        count = int((mask == entry["number"]).sum())
        assert entry["voxels"] == count
        assert entry["millilitres"] == pytest.approx(count * 9 / 1000, abs=5e-4)  # 2 x 1.5 x 3 mm
    sidecar = json.loads((cohort.out / "scan.json").read_text())
    assert sidecar["classes"] == case["classes"]


def test_known_labels_are_scored(predict, cohort):
    outcome = predict(cohort.images, context_size=2)
    summary = json.loads(outcome.out)
    (case,) = summary["cases"]
    assert outcome.code == 0
    assert case["case"] not in summary["context"]
    assert {score["class"] for score in case["score"]} == {"class 1", "class 2"}
    for score in case["score"]:
        assert 0 <= score["dice"] <= 1
        assert summary["mean"][score["class"]]["dice"] == score["dice"]


def test_scans_are_scored_with_a_folder_of_truths(predict, cohort):
    truths = cohort.root / "labelsTs"
    truths.mkdir()
    scan = nib.load(cohort.scan)
    label = nib.Nifti1Image((scan.get_fdata() > 0.5).astype(np.uint8), scan.affine)
    nib.save(label, truths / "scan.nii.gz")
    (case,) = json.loads(predict(truths=truths).out)["cases"]
    assert {score["class"] for score in case["score"]} == {"class 1", "class 2"}
    (truths / "scan.nii.gz").rename(truths / "other.nii.gz")
    outcome = predict(truths=truths)
    assert outcome.code == 2
    assert "has the name of a scan, such as scan" in outcome.err


def test_all_bad_pairs_are_told_at_once(cli, cohort):
    damage(cohort.labels / "one.nii.gz")
    two = nib.load(cohort.labels / "two.nii.gz")
    nib.save(two.slicer[:-1], cohort.labels / "two.nii.gz")
    outcome = cli("check", "--images", cohort.images, "--labels", cohort.labels)
    assert outcome.code == 2
    assert "2 of 3 pairs cannot be used: label of context pair 'one': " in outcome.err
    assert "context pair 'two': label has shape" in outcome.err


def test_version(cli):
    outcome = cli("--version")
    assert (outcome.code, outcome.out.strip()) == (0, f"medverse_nb {__version__}")


def test_without_a_command_the_help_is_shown_and_no_empty_error(cli):
    outcome = cli()
    assert outcome.code == 2
    assert "Usage" in outcome.out + outcome.err
    assert "error:" not in outcome.err


def test_classes_seed_and_limit_reach_the_session(predict, cohort):
    summary = json.loads(predict(classes="block=1+2", context_size=1, seed=1).out)
    (case,) = summary["cases"]
    assert case["classes"][0]["name"] == "block"
    assert case["classes"][0]["label_values"] == [1, 2]
    assert len(summary["context"]) == 1
    limited = json.loads(predict(cohort.images, cohort.scan, context_size=1, limit=2).out)
    assert len(limited["cases"]) == 2


def test_class_names_come_from_dataset_json(predict, cohort):
    table = {"labels": {"background": 0, "rim": 1, "core": 2}}
    (cohort.root / "dataset.json").write_text(json.dumps(table))
    (case,) = json.loads(predict().out)["cases"]
    assert [entry["name"] for entry in case["classes"]] == ["rim", "core"]


@pytest.mark.parametrize("align", ["box", "center", "world"])
def test_align_reaches_the_manifest(predict, align):
    (case,) = json.loads(predict(align=align).out)["cases"]
    assert case["manifest"]["settings"]["align"] == align


def test_an_image_task_writes_an_image(predict, cohort):
    outcome = predict(task="image")
    assert outcome.code == 0
    image = nib.load(cohort.out / "scan.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert image.shape == nib.load(cohort.scan).shape


def test_without_json_a_table_is_printed(cli, cohort, tiny_weights):
    outcome = cli(
        "predict", cohort.scan, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights,
    )  # fmt: skip
    assert outcome.code == 0
    assert "class 2" in outcome.out
    assert "written to" in outcome.out
    assert "Dice" not in outcome.out, "no empty column"


def test_a_bad_case_among_good_ones(predict, cohort):
    scans = cohort.root / "scans"
    scans.mkdir()
    for name in ("a", "b", "c"):
        (scans / f"{name}.nii.gz").write_bytes(cohort.scan.read_bytes())
    damage(scans / "b.nii.gz")
    outcome = predict(scans)
    assert outcome.code == 1
    assert [name for name in written(cohort.out) if name.endswith(".nii.gz")] == [
        "a.nii.gz", "c.nii.gz",
    ]  # fmt: skip
    cases = json.loads((cohort.out / "predictions.json").read_text())["cases"]
    assert ["error" in case for case in cases] == [False, True, False]
    assert "damaged" in cases[1]["error"]
    assert "b.nii.gz" in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_keeps_the_finished_case_and_nothing_half_written(predict, cohort, monkeypatch):
    scans = cohort.root / "scans"
    scans.mkdir()
    for name in ("a", "b", "c"):
        (scans / f"{name}.nii.gz").write_bytes(cohort.scan.read_bytes())
    real = ICLSession.predict

    def interrupted(session, target, **options):
        if Path(target).name == "b.nii.gz":
            raise KeyboardInterrupt
        return real(session, target, **options)

    monkeypatch.setattr(ICLSession, "predict", interrupted)
    outcome = predict(scans)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert written(cohort.out) == ["a.json", "a.nii.gz"]
    assert nib.load(cohort.out / "a.nii.gz").shape == (9, 10, 8)


def test_ctrl_c_says_what_became_of_the_results(predict, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ICLSession, "predict", interrupted)
    assert "interrupted; finished cases are kept" in predict().err


def test_ctrl_c_while_a_mask_is_written_leaves_no_part_of_it(predict, cohort, monkeypatch):
    def half(_image, partial):
        Path(partial).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("medverse_nb.io.nib.save", half)
    assert predict().code == 130
    assert written(cohort.out) == []


def test_two_runs_of_one_command_write_the_same_mask(predict, cohort):
    first = predict()
    before = gzip.decompress((cohort.out / "scan.nii.gz").read_bytes())
    second = predict()
    assert (first.code, second.code) == (0, 0)
    assert gzip.decompress((cohort.out / "scan.nii.gz").read_bytes()) == before


# check


def check(cli, cohort, *arguments):
    return cli("check", *arguments, "--images", cohort.images, "--labels", cohort.labels)


def test_check_of_a_sound_context(cli, cohort):
    outcome = check(cli, cohort, cohort.scan)
    assert outcome.code == 0
    assert "3 pairs" in outcome.out
    assert "sound" in outcome.out
    assert json.loads(check(cli, cohort, "--json").out) == {"ok": True, "findings": []}


def test_check_tells_warnings_and_still_succeeds(cli, cohort):
    image = nib.load(cohort.scan)
    nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([8, 1, 1, 1.0])), cohort.scan)
    outcome = check(cli, cohort, cohort.scan, "--json")
    assert outcome.code == 0
    findings = json.loads(outcome.out)["findings"]
    assert {finding["code"] for finding in findings} == {"stretched", "spacing-far"}
    assert [finding["pair"] for finding in findings].count("target") == 1
    assert len(findings) == 4


def test_check_fails_on_an_error_finding(cli, cohort):
    for path in cohort.labels.iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    table = check(cli, cohort)
    assert table.code == 1
    assert "no-foreg" in table.out
    outcome = check(cli, cohort, "--json")
    assert outcome.code == 1
    report = json.loads(outcome.out)
    assert report["ok"] is False
    assert report["findings"][0]["code"] == "no-foreground"


def test_check_of_far_scans_depends_on_align(cli, cohort):
    image = nib.load(cohort.scan)
    far = image.affine.copy()
    far[0, 3] += 1000
    nib.save(nib.Nifti1Image(image.get_fdata(), far), cohort.scan)
    assert check(cli, cohort, cohort.scan).code == 0
    assert check(cli, cohort, cohort.scan, "--align", "world").code == 1


# The rest


def test_info_tells_the_facts(cli, cohort):
    outcome = cli("info", cohort.labels / "one.nii.gz", "--json")
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert facts["shape"] == [9, 10, 8]
    assert facts["spacing_mm"] == [2, 1.5, 3]
    assert facts["orientation"] == "RAS"
    assert facts["affine"][0] == [2, 0, 0, -10]
    assert (facts["dtype"], facts["minimum"], facts["maximum"]) == ("uint8", 0, 2)
    assert facts["changes"] == []
    assert "2.0, 1.5, 3.0" in cli("info", cohort.scan).out


def test_models_lists_what_ships(cli):
    listed = json.loads(cli("models", "--json").out)
    assert "medverse-tiny" in [card["name"] for card in listed]
    for card in listed:
        assert Path(card["path"]).is_file()
        assert card["licence"]
        assert card["training_data"]
    table = cli("models")
    assert table.code == 0
    assert "medverse-tiny" in table.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["predict"], "Missing"),
        (["info"], "Missing"),
        (["info", "a.nii", "--wrong"], "--wrong"),
        (["predict", "a.nii", "--images", "x"], "labels"),
        (["check", "--images", "x", "--labels", "y", "--align", "sideways"], "sideways"),
        (["predict", "a.nii", "--images=x", "--labels=y", "--context-size=few"], "integer"),
    ],
)
def test_wrong_usage(cli, arguments, message):
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["predict", "a.nii", "--images=x"], "--labels"),
        (["predict", "a.nii", "--images=x", "--labels=y", "--limit=few"], "--limit"),
    ],
)
def test_wrong_usage_names_the_option(cli, arguments, option):
    assert option in cli(*arguments).err


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["check", "--help"]])
def test_help_is_no_error(cli, arguments):
    outcome = cli(*arguments)
    assert outcome.code == 0
    assert "Usage" in outcome.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("1,2", [1, 2]),
        (" 2 , 1 ", [2, 1]),
        ("whole=1+2,tail=3", {"whole": (1, 2), "tail": (3,)}),
        ("left side = 1 + 2", {"left side": (1, 2)}),
    ],
)
def test_classes_as_text(text, expected):
    assert parse_classes(text) == expected


@pytest.mark.parametrize("text", ["one", "1+2", "a=1,2", "a=", "a=b", "1.5", "a=1=2"])
def test_classes_that_cannot_be_read(text):
    with pytest.raises(InputError, match="--classes"):
        parse_classes(text)


# A shell, for real.


def shell(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=environment, check=False, **options,
    )  # fmt: skip


def test_the_module_runs_in_a_shell(cohort, tiny_weights):
    done = shell(
        "-m", "medverse_nb", "predict", cohort.scan, "--images", cohort.images,
        "--labels", cohort.labels, "--out", cohort.out, "--model", tiny_weights, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"][0]["case"] == "scan"
    assert (cohort.out / "scan.nii.gz").is_file()


def test_bad_input_in_a_shell(cohort):
    damage(cohort.scan)
    done = shell("-m", "medverse_nb", "info", cohort.scan)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: scan.nii.gz: damaged")


IMPORT = """
import sys, time
start = time.process_time()
import medverse_nb
print(time.process_time() - start)
print(*sorted(sys.modules))
"""


def test_importing_is_quick_and_brings_nothing_heavy():
    runs = [shell("-c", IMPORT).stdout.splitlines() for _ in range(2)]
    assert min(float(seconds) for seconds, _ in runs) < 0.5
    loaded = {name.split(".")[0] for name in runs[0][1].split()}
    heavy = {"torch", "monai", "matplotlib", "nibabel", "xarray", "pandas", "scipy", "numpy"}
    assert "medverse_nb" in loaded
    assert not loaded & heavy


def test_public_names_are_all_there():
    code = "import medverse_nb as mv; print([n for n in dir(mv) if getattr(mv, n) is None])"
    done = shell("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
    assert __version__.count(".") == 2
