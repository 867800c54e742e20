"""Bad input through the command line: exit code 2, one line, nothing written."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medverse_nb.model.weights import load_network

AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])


@pytest.fixture
def refused(cli, cohort, tiny_weights):
    """Run `predict`; assert how it fails; return its one line."""

    def run(*targets, **options) -> str:
        settings = {
            "images": cohort.images, "labels": cohort.labels, "out": cohort.out,
            "model": tiny_weights, "device": "cpu",
        } | options  # fmt: skip
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        before = {path for path in cohort.root.rglob("*") if path != cohort.out}
        outcome = cli("predict", *(targets or [cohort.scan]), *flags)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert outcome.out == ""
        lines = [line for line in outcome.err.splitlines() if line.strip()]
        (line,) = [line for line in lines if not line.startswith("warning:")]
        assert {path for path in cohort.root.rglob("*") if path != cohort.out} == before
        assert not cohort.out.exists(), "not even an empty folder"
        return line

    return run


def save(path: Path, data, affine=AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_volume(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = bytes(6)  # dim[1..3]
    path.write_bytes(gzip.compress(bytes(content)))


def swap_in_pickle(path: Path) -> Path:
    np.save(path.with_name("scan.npy"), np.array([{"a": 1}], object), allow_pickle=True)
    return path.with_name("scan.npy")


TARGETS = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "cut": (cut, "scan.nii.gz"),
    "text": (lambda p: p.write_text("patient,age\n1,54\n"), "not a NIfTI"),
    "empty-file": (lambda p: p.write_bytes(b""), "scan.nii.gz"),
    "empty-volume": (empty_volume, "empty"),
    "2D": (lambda p: save(p, np.ones((9, 10))), "is 2D"),
    "4D": (lambda p: save(p, np.ones((4, 4, 4, 3))), "holds 3 volumes"),
    "5D": (lambda p: save(p, np.ones((4, 4, 4, 1, 3))), "is 5D"),
    "nan": (lambda p: save(p, np.full((4, 4, 4), np.nan)), "no finite voxel"),
    "complex": (lambda p: save(p, np.ones((4, 4, 4), np.complex64)), "not numbers"),
    "pickle": (swap_in_pickle, "refused"),
    "not-an-image": (lambda p: p.rename(p.with_name("scan.png")), "unknown kind"),
}


every_bad_target = pytest.mark.parametrize(
    ("damage", "message"), TARGETS.values(), ids=TARGETS.keys()
)


def damaged_scan(cohort, damage) -> Path:
    moved = damage(cohort.scan)
    return moved if isinstance(moved, Path) else cohort.scan


@every_bad_target
def test_a_target_that_cannot_be_read(cli, cohort, tiny_weights, damage, message):
    outcome = cli(
        "predict", damaged_scan(cohort, damage), "--images", cohort.images,
        "--labels", cohort.labels, "--out", cohort.out, "--model", tiny_weights,
    )  # fmt: skip
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert message in line
    assert not list(cohort.out.rglob("*.nii.gz"))


def test_a_run_without_a_single_result_writes_and_claims_nothing(refused, cohort):
    cut(cohort.scan)
    assert refused().startswith("error: ")


@every_bad_target
@pytest.mark.parametrize("command", ["info", "check"])
def test_the_other_commands_refuse_it_too(cli, cohort, damage, message, command):
    folders = ["--images", cohort.images, "--labels", cohort.labels]
    target = damaged_scan(cohort, damage)
    outcome = cli(command, target, *(folders if command == "check" else []))
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: scan.")
    assert message in line


def relabel(change):
    """Return a damage to the label of case "one"."""

    def damage(cohort):
        path = cohort.labels / "one.nii.gz"
        image = nib.load(path)
        save(path, change(np.asarray(image.dataobj)), image.affine)

    return damage


def clear_all(cohort):
    for path in cohort.labels.iterdir():
        image = nib.load(path)
        save(path, np.zeros(image.shape, np.uint8), image.affine)


CONTEXTS = {
    "shape": (relabel(lambda v: v[:-1]), "label has shape (8, 10, 8), its image (9, 10, 8)"),
    "fractional": (relabel(lambda v: v * np.float32(0.3)), "label_threshold=0.5"),
    "negative": (relabel(lambda v: v.astype(np.int16) - 1), "from -1 to 1"),
    "no-foreground": (clear_all, "no pair has any foreground"),
    "unmatched": (
        lambda c: (c.labels / "one.nii.gz").rename(c.labels / "uno.nii.gz"),
        "but no label in",
    ),
    "no-name-alike": (
        lambda c: [
            path.rename(path.with_name(f"x{n}.nii.gz"))
            for n, path in enumerate([*c.labels.iterdir()])
        ],
        "has a label of its name",
    ),
    "no-labels": (lambda c: shutil.rmtree(c.labels), "no such folder"),
    "empty-folder": (
        lambda c: [path.unlink() for path in c.images.iterdir()],
        "no NIfTI file",
    ),
    "cut-image": (lambda c: cut(c.images / "two_0000.nii.gz"), "two_0000.nii.gz"),
    "text-label": (lambda c: (c.labels / "two.nii.gz").write_text("x"), "two.nii.gz"),
    "channel": (
        lambda c: shutil.copy(c.images / "two_0000.nii.gz", c.images / "two_0001.nii.gz"),
        "channel 0001",
    ),
}


@pytest.mark.parametrize(("damage", "message"), CONTEXTS.values(), ids=CONTEXTS.keys())
def test_a_context_that_cannot_be_used(refused, cohort, damage, message):
    damage(cohort)
    line = refused()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "9"}, "[9]; found: [1, 2]"),
        ({"classes": "all=1+7"}, "[7]; found: [1, 2]"),
        ({"classes": "liver"}, "--classes 'liver'"),
        ({"classes": "0"}, "positive integers"),
        ({"classes": ""}, "classes must be a list"),
        ({"classes": "1", "task": "image"}, "this session transforms images"),
        ({"context_size": 0}, "context_size must be at least 1"),
        ({"context_size": 99}, "99 wanted"),
        ({"limit": -1}, "limit must be at least 1"),
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"device": "warp"}, "device='warp'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_make_no_sense(refused, options, message):
    line = refused(**options)
    assert line.startswith("error: ")
    assert message in line


def test_a_place_that_cannot_be_written(refused, cohort):
    assert "is a file" in refused(out=cohort.scan / "out")
    assert refused(out="/proc/medverse_nb").startswith("error: /proc/medverse_nb")


def test_the_inputs_own_folder_is_no_place_for_results(refused, cohort):
    before = cohort.scan.read_bytes()
    assert "is an input" in refused(out=cohort.root)
    assert cohort.scan.read_bytes() == before


@pytest.mark.parametrize("name", ["scan[bold].nii.gz", "scan[/red].nii.gz"])
def test_brackets_in_a_name_are_printed_as_they_are(cli, cohort, name):
    path = cohort.root / name
    outcome = cli("info", path)
    assert outcome.code == 2
    assert name in outcome.err


# Checkpoints from strangers.


class Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_malicious_pickle_is_never_run(refused, cohort, tmp_path_factory, suffix, how):
    folder = tmp_path_factory.mktemp("stranger")
    ran, path = folder / "ran", folder / f"model{suffix}"
    payload = {"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": Bomb(ran)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "torch")
    line = refused(model=path)
    assert line.startswith("error: ")
    assert path.name in line
    assert not ran.exists()
    with open(path, "rb") as file:  # the bomb is live: unsafe loading does set it off
        if how != "pickle" or suffix != ".ckpt":
            return
        pickle.load(file)
    assert ran.exists()


def checkpoint(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def other_safetensors(path: Path, config, state=None) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(state or {"w": torch.zeros(2)}, path, metadata={"config": text})
    return path


SOUND_CONFIG = {"channels": [4, 4], "window": 8, "output": "sigmoid"}
WEIGHTS = {
    "other-keys": (
        lambda t, _: checkpoint(
            t / "m.ckpt",
            {
                "state_dict": {"net.conv.weight": torch.zeros(2)},
                "hyper_parameters": {"nb_inner_channels": [4, 4]},
            },
        ),
        "another architecture",
    ),
    "bare-state": (
        lambda t, _: checkpoint(t / "m.ckpt", {"net.conv.weight": torch.zeros(2)}),
        "not a Lightning checkpoint",
    ),
    "no-widths": (
        lambda t, _: checkpoint(t / "m.ckpt", {"state_dict": {}, "hyper_parameters": {}}),
        "nb_inner_channels",
    ),
    "text": (lambda t, _: (t / "m.ckpt", (t / "m.ckpt").write_text("weights"))[0], "m.ckpt"),
    "empty": (lambda t, _: (t / "m.ckpt", (t / "m.ckpt").write_bytes(b""))[0], "m.ckpt"),
    "cut": (
        lambda t, w: (t / "m.safetensors", (t / "m.safetensors").write_bytes(w[: len(w) // 2]))[0],
        "not a readable safetensors",
    ),
    "suffix": (lambda t, w: (t / "m.pt", (t / "m.pt").write_bytes(w))[0], "weights are"),
    "foreign": (
        lambda t, _: (t / "m.safetensors", save_file({"w": torch.zeros(2)}, t / "m.safetensors"))[
            0
        ],
        "no network config",
    ),
    "config-text": (lambda t, _: other_safetensors(t / "m.safetensors", "{no"), "not JSON"),
    "config-key": (
        lambda t, _: other_safetensors(t / "m.safetensors", {"depth": 3}),
        "unknown keys",
    ),
    "config-type": (
        lambda t, _: other_safetensors(t / "m.safetensors", {**SOUND_CONFIG, "window": "8"}),
        "network config",
    ),
    "missing-keys": (
        lambda t, _: other_safetensors(t / "m.safetensors", SOUND_CONFIG),
        "missing keys",
    ),
}


@pytest.mark.parametrize(("make", "message"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_are_none_of_ours(refused, tmp_path_factory, tiny_weights, make, message):
    path = make(tmp_path_factory.mktemp("stranger"), tiny_weights.read_bytes())
    line = refused(model=path)
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": [1], "hyper_parameters": {"nb_inner_channels": [4, 4]}},
        {"state_dict": {1: torch.zeros(1)}, "hyper_parameters": {"nb_inner_channels": [4, 4]}},
        {"state_dict": {}, "hyper_parameters": [1]},
    ],
    ids=["state", "key", "settings"],
)
def test_a_checkpoint_of_odd_types(refused, tmp_path_factory, content):
    path = checkpoint(tmp_path_factory.mktemp("stranger") / "m.ckpt", content)
    assert "m.ckpt" in refused(model=path)


@pytest.mark.parametrize(
    "config", [5, None, {**SOUND_CONFIG, "blocks_per_axis": 0}], ids=["number", "null", "no-blocks"]
)
def test_a_config_of_odd_types(refused, tmp_path_factory, config):
    path = other_safetensors(tmp_path_factory.mktemp("stranger") / "m.safetensors", config)
    assert "error: " in refused(model=path)


def test_sound_weights_do_load(tiny_weights):
    assert load_network(tiny_weights).config.channels == (4, 4)
