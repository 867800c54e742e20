import copy
from pathlib import Path

import pytest
import yaml

from medverse_nb.errors import InputError
from medverse_nb.model.config import NetworkConfig
from medverse_nb.training.config import (
    OptimizerConfig,
    StageConfig,
    TaskConfig,
    TrainingConfig,
    ValidationConfig,
    read_config,
)

CONFIGS = Path(__file__).parents[1] / "configs"
SMALLEST = {
    "name": "toy",
    "licence": "Apache-2.0",
    "description": "random shapes",
    "network": {"channels": [4, 8], "window": 16, "output": "sigmoid"},
    "data": [{"kind": "shapes"}],
}


@pytest.fixture
def read(tmp_path):
    """Write settings, or text as it is, and read them back."""

    def written(settings: object) -> TrainingConfig:
        path = tmp_path / "run.yaml"
        if isinstance(settings, bytes):
            path.write_bytes(settings)
        else:
            path.write_text(yaml.safe_dump(settings))
        return read_config(path)

    return written


@pytest.fixture
def refusal(read):
    """Return the one line that settings are refused with."""

    def refused(settings: object) -> str:
        with pytest.raises(InputError) as error:
            read(settings)
        message = str(error.value)
        assert "\n" not in message
        assert "run.yaml" in message
        return message

    return refused


def changed(**settings: object) -> dict:
    """Change settings; `a__b=1` reaches into a part, the first of a list."""
    result = copy.deepcopy(SMALLEST)
    for key, value in settings.items():
        *parents, last = key.split("__")
        place = result
        for parent in parents:
            place = place.setdefault(parent, [{}] if parent == "stages" else {})
            place = place[0] if isinstance(place, list) else place
        place[last] = value
    return result


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.yaml")])
def test_a_shipped_configuration_is_read_as_it_is_written(name):
    config = read_config(CONFIGS / name)
    written = yaml.safe_load((CONFIGS / name).read_text())
    told = config.model_dump(mode="json", exclude_unset=True)
    told["data"][0]["folder"] = written["data"][0]["folder"]
    if config.windows:
        told["windows"] = config.windows  # JSON has no numbers for keys
    assert told == written
    assert config.data[0].folder == (CONFIGS / written["data"][0]["folder"]).resolve()
    assert config.data[0].never_foreground == (17, 53)
    assert config.name == f"medverse-{Path(name).stem}"
    assert TrainingConfig.model_validate(config.model_dump()) == config


def test_the_network_of_the_shipped_model():
    assert read_config(CONFIGS / "tiny.yaml").network_config == NetworkConfig(
        channels=(16, 32, 64, 64),
        window=64,
        partition="contiguous",
        position_bias="relative",
        norm="group",
        output="sigmoid",
    )


def test_what_is_left_out_has_its_default(read):
    config = read(SMALLEST)
    assert config.seed == 1
    assert (config.loss, config.augmentation) == ("bce_dice", "none")
    assert config.tasks == TaskConfig(
        enhancement=0.15,
        autoregressive=0.4,
        own_prediction=0.5,
        padded=0.3,
        group=0.5,
        largest_group=10,
    )
    assert config.stages == (StageConfig(share=1.0, context_size=(1, 4)),)
    assert config.optimizer == OptimizerConfig()
    assert config.validation == ValidationConfig()
    assert config.data[0].rate == 1
    assert config.data[0].folder is None


def test_a_configuration_cannot_be_changed(read):
    with pytest.raises(ValueError, match="frozen"):
        read(SMALLEST).seed = 2


def test_folders_are_taken_from_where_the_file_lies(read, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wanted = {
        "maps": tmp_path / "maps",
        "../maps": tmp_path.parent / "maps",
        str(tmp_path / "else"): tmp_path / "else",
        "~/maps": tmp_path / "home" / "maps",
    }
    data = [{"kind": "label_maps", "folder": folder} for folder in wanted]
    assert [part.folder for part in read(changed(data=data)).data] == list(wanted.values())


@pytest.mark.parametrize("kind", ["nnunet", "label_maps"])
def test_files_need_a_folder_and_shapes_have_none(refusal, kind):
    assert f"data.0: {kind} needs a folder" in refusal(changed(data__kind=kind))
    assert "data.0: shapes needs no folder" in refusal(changed(data__folder="maps"))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "where", "nearest"),
    [
        (changed(sead=2), "'sead'", "'seed'"),
        (changed(data__valdation=2), "'data.0.valdation'", "'validation'"),
        (changed(tasks__enhancment=0.1), "'tasks.enhancment'", "'enhancement'"),
        (changed(stages__context=[1, 2]), "'stages.0.context'", "'context_size'"),
        (changed(optimizer__peek_rate=1.0), "'optimizer.peek_rate'", "'peak_rate'"),
        (changed(validation__every_minute=1.0), "'validation.every_minute'", "'every_minutes'"),
        (changed(network__chanels=[4, 8]), "'network.chanels'", "'channels'"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(refusal, settings, where, nearest):
    assert f"no setting {where}; did you mean {nearest}?" in refusal(settings)


def test_a_setting_like_no_other_is_told_all_there_are(refusal):
    told = refusal(changed(validation__qqq=1))
    assert told.endswith("there are every_minutes, tasks, context_sizes")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (changed(name=["toy"]), "name: "),
        (changed(name="../toy"), "name: "),
        (changed(name=""), "name: "),
        (changed(seed="first"), "seed: "),
        (changed(seed=-1), "seed: "),
        (changed(seed=2**64), "seed: "),
        (changed(seed=1.5), "seed: "),
        (changed(data=[]), "data: "),
        (changed(data={"kind": "shapes"}), "data: "),
        (changed(data=["shapes"]), "data.0: "),
        (changed(data__kind="dicom"), "data.0.kind: "),
        (changed(data__rate=0), "data.0.rate: "),
        (changed(data__rate="often"), "data.0.rate: "),
        (changed(data__validation=-1), "data.0.validation: "),
        (changed(data__never_foreground=[1.5]), "data.0.never_foreground.0: "),
        (changed(tasks__padded=1.01), "tasks.padded: "),
        (changed(tasks__padded=-0.01), "tasks.padded: "),
        (changed(tasks__own_prediction=float("nan")), "tasks.own_prediction: "),
        (changed(tasks__largest_group=1), "tasks.largest_group: "),
        (changed(stages=[]), "stages: "),
        (changed(stages__context_size=[0, 4]), "stages.0.context_size.0: "),
        (changed(stages__context_size=[4]), "stages.0.context_size.1: "),
        (changed(stages__context_size=[4, 1]), "stages.0: "),
        (changed(stages__share=0), "stages.0.share: "),
        (changed(optimizer__schedule="linear"), "optimizer.schedule: "),
        (changed(optimizer__average_decay=1.0), "optimizer.average_decay: "),
        (changed(optimizer__accumulate=0), "optimizer.accumulate: "),
        (changed(optimizer__peak_rate=[1]), "optimizer.peak_rate: "),
        (changed(validation__context_sizes=[1, 0]), "validation.context_sizes.1: "),
        (changed(validation__every_minutes=0), "validation.every_minutes: "),
        (changed(loss="l2"), "loss: "),
        (changed(augmentation="some"), "augmentation: "),
        (changed(network=[4, 8]), "network: "),
        ({k: v for k, v in SMALLEST.items() if k != "network"}, "network: Field required"),
        ({k: v for k, v in SMALLEST.items() if k != "licence"}, "licence: Field required"),
    ],
)
def test_a_value_of_another_type_or_range_is_named(refusal, settings, where):
    assert f"run.yaml: {where}" in refusal(settings)


def test_everything_wrong_is_told_at_once(refusal):
    told = refusal(changed(seed=-1, loss="l2", tasks__qqq=1))
    assert told.count("run.yaml: ") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed(network__window=15), "window=15 must be a multiple"),
        (changed(network__window="wide"), "network config: "),
        (changed(windows={16: 1, 20: 1}), "windows: 20 is no multiple of 8"),
        (changed(network__channels=[4]), "two stages or more"),
        (changed(network__channels=4), "network config: "),
        (changed(network__norm="batch"), "norm='batch' is not one of"),
        (changed(network__output="identity"), 'loss "bce_dice" needs network.output "sigmoid"'),
        (
            changed(network__architecture="neuroverse3d"),
            "neuroverse3d has no autoregressive branch; set tasks.autoregressive to 0",
        ),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(refusal, settings, message):
    assert message in refusal(settings)


def test_the_papers_losses_and_networks_are_not_refused(read):
    assert read(changed(network__output="identity", loss="smooth_l1")).loss == "smooth_l1"
    plain = changed(network__architecture="neuroverse3d", tasks__autoregressive=0)
    assert not read(plain).network_config.autoregressive


# --- what is no configuration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold keys and values, not NoneType"),
        (b"# nothing but a comment\n", "must hold keys and values, not NoneType"),
        (b"- name: toy\n", "must hold keys and values, not list"),
        (b"toy", "must hold keys and values, not str"),
        (b"name: [toy\nseed: 1\n", "not YAML"),
        (b"name: toy\n  seed: 1\n", "not YAML"),
        (b"name: toy\n\tseed: 1\n", "not YAML"),
        (b"{[1]: 2}\n", "not YAML"),
        (b"a: 2020-13-45\n", "not YAML"),  # PyYAML's ValueError
        (b"[" * 3000, "not YAML"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "not YAML"),
        (b"PK\x03\x04\x00\x00", "not YAML"),
        (b"name: to\x00y\n", "not YAML"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(refusal, content, message):
    assert message in refusal(content)


def test_a_tag_that_asks_for_an_object_is_refused_and_does_nothing(refusal, tmp_path):
    made = tmp_path / "made"
    told = refusal(f"x: !!python/object/apply:pathlib.Path.mkdir [{made}]".encode())
    assert "not YAML" in told
    assert "python/object" in told
    asked = f"x: !!python/object/apply:os.mkdir ['{made}']".encode()
    yaml.unsafe_load(asked)  # it would have
    assert made.is_dir()
    made.rmdir()
    refusal(asked)
    assert not made.exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^cannot read .*none.yaml: No such file") as error:
        read_config(tmp_path / "none.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^cannot read .*: Is a directory"):
        read_config(tmp_path)


def test_the_command_line_shows_one_line(cli, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("name: [toy\n")
    outcome = cli("train", "--config", path, "--run", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
