"""What a training run is asked for: one YAML file, checked before anything starts."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError, WeightsError
from ..model.config import NetworkConfig
from .losses import SegmentationLoss

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Part(BaseModel):
    """A part of the configuration: nothing it does not know, nothing of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Part):
    """One source of volumes, and how often it is drawn from.

    kind : "label_maps" (FreeSurfer heads, synthetic contrast), "shapes" (random label maps,
        synthetic contrast) or "nnunet" (real volumes: imagesTr, labelsTr).
    folder : of the files; none for "shapes". Relative to the configuration file.
    validation : how many cases, the last by name, are kept out of training.
    never_foreground : label values that no task may ask for; anatomy they remain.
    """

    kind: Literal["label_maps", "shapes", "nnunet"]
    rate: Positive = 1.0
    folder: Path | None = None
    validation: Annotated[int, Field(ge=0)] = 0
    never_foreground: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _has_its_folder(self) -> DataConfig:
        if (self.folder is None) != (self.kind == "shapes"):
            raise ValueError(f"{self.kind} needs {'no folder' if self.folder else 'a folder'}")
        return self


class TaskConfig(Part):
    """What is asked of the volumes.

    enhancement : share of the tasks that have an image as their label.
    autoregressive : share with an autoregressive context.
    own_prediction : share of these where it is the network's own coarser prediction, not an
        imitation of one.
    padded : share that fills only a part of the window, as thin volumes do.
    group, largest_group : share of foregrounds of more than one class, and of how many.
    """

    enhancement: Probability = 0.15
    autoregressive: Probability = 0.4
    own_prediction: Probability = 0.5
    padded: Probability = 0.3
    group: Probability = 0.5
    largest_group: Annotated[int, Field(ge=2)] = 10


class StageConfig(Part):
    """A stretch of the run, `share` of its time, with context sizes drawn from `context_size`."""

    share: Positive = 1.0
    context_size: tuple[Count, Count] = (1, 4)

    @model_validator(mode="after")
    def _goes_upwards(self) -> StageConfig:
        low, high = self.context_size
        if low > high:
            raise ValueError(f"context_size is [smallest, largest], not [{low}, {high}]")
        return self


class OptimizerConfig(Part):
    """AdamW and its learning rate: warm-up by steps, then by the clock.

    batch : tasks of a step in each process; more pay on a GPU.
    accumulate : steps whose gradients are added up.
    schedule : "cosine" down to 1% at the end of the run, or "plateau" (halved whenever
        `patience` validations bring nothing).
    """

    peak_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warm_up_steps: Count = 300
    schedule: Literal["cosine", "plateau"] = "cosine"
    patience: Count = 20
    clip: Positive = 1.0
    batch: Count = 1
    accumulate: Count = 1
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class ValidationConfig(Part):
    """When held-out subjects are looked at, and on how many tasks."""

    every_minutes: Positive = 15.0
    tasks: Count = 60
    context_sizes: tuple[Count, ...] = (1, 8)


class TrainingConfig(Part):
    """All of a run, apart from how long, where, and where to.

    windows : sides of the cubes that are drawn, and how often each; none for the network's own.
        Small ones are quick and teach detail, large ones show whole structures.
    """

    name: FileName
    licence: str
    description: str
    network: dict[str, Any]
    data: Annotated[tuple[DataConfig, ...], Field(min_length=1)]
    seed: Seed = 1
    loss: SegmentationLoss = "bce_dice"
    augmentation: Literal["none", "paper"] = "none"
    tasks: TaskConfig = TaskConfig()
    windows: dict[Count, Positive] = {}
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)] = (StageConfig(),)
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def network_config(self) -> NetworkConfig:
        """The network to build."""
        return NetworkConfig.from_dict(self.network)


def read_config(path: str | Path, *, seed: int | None = None) -> TrainingConfig:
    """Read and check a YAML file; folders in it are taken relative to it.

    `seed` replaces the file's.

    Raises
    ------
    InputError : no such file, not YAML, an unknown key (with the nearest known one), a
        value of another type or range.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of day 40, say
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold keys and values, not {type(values).__name__}")
    if seed is not None:
        values["seed"] = seed
    try:
        config = TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(
            "; ".join(_explain(path, problem) for problem in error.errors())
        ) from error
    _check_network(path, config)
    return config.model_copy(
        update={"data": tuple(_with_absolute_folder(part, path.parent) for part in config.data)}
    )


PARTS: dict[str, type[Part]] = {
    "data": DataConfig,
    "tasks": TaskConfig,
    "stages": StageConfig,
    "optimizer": OptimizerConfig,
    "validation": ValidationConfig,
}


def _check_network(path: Path, config: TrainingConfig) -> None:
    """Raise for a network that cannot be built, or not be trained as the rest asks."""
    known = [field.name for field in fields(NetworkConfig)]
    for key in config.network:
        if key not in known:
            raise InputError(f"{path}: no setting 'network.{key}'{_nearest(key, known)}")
    try:
        network = config.network_config
    except WeightsError as error:
        raise InputError(f"{path}: {error}") from error
    for side in config.windows:
        if side % network.multiple:
            raise InputError(
                f"{path}: windows: {side} is no multiple of {network.multiple}, as the network asks"
            )
    if config.loss == "bce_dice" and network.output != "sigmoid":
        raise InputError(f'{path}: loss "bce_dice" needs network.output "sigmoid"')
    if config.tasks.autoregressive and not network.autoregressive:
        raise InputError(
            f"{path}: {network.architecture} has no autoregressive branch; set "
            "tasks.autoregressive to 0"
        )


def _explain(path: Path, problem: Any) -> str:
    place = [str(key) for key in problem["loc"]]
    where = ".".join(place) or "the file"
    if problem["type"] != "extra_forbidden":
        return f"{path}: {where}: {problem['msg'].removeprefix('Value error, ')}"
    part = PARTS[place[0]] if len(place) > 1 else TrainingConfig
    return f"{path}: no setting {where!r}{_nearest(place[-1], list(part.model_fields))}"


def _nearest(key: str, known: list[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(known)}"


def _with_absolute_folder(part: DataConfig, base: Path) -> DataConfig:
    if part.folder is None:
        return part
    return part.model_copy(update={"folder": (base / part.folder.expanduser()).resolve()})
