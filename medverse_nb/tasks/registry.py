"""The tasks of a training, by name, with how often they come and how much they weigh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor

from . import anatomy, enhancement
from .volumes import Volumes

SEGMENTATION = "segmentation"
Need = Literal["labels", "brain", "second"]
TaskFunction = Callable[[Volumes, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """One kind of task: `function(volumes, generator)` gives inputs and outputs.

    Parameters
    ----------
    needs : what the volumes have to bring: "labels", "brain" (labels of heads) or "second".
    rate : how often it is drawn beside the others.
    weight : lambda, the weight of its loss.

    Source: Neuroverse3D Table 3.
    """

    function: TaskFunction
    needs: frozenset[Need] = frozenset()
    rate: float = 1.0
    weight: float = 1.0
    is_segmentation: bool = False


TASKS: dict[str, Task] = {
    SEGMENTATION: Task(
        anatomy.segmentation, frozenset({"labels"}), rate=2, weight=50, is_segmentation=True
    ),
    "bias_field": Task(enhancement.bias_field),
    "gaussian_noise": Task(enhancement.gaussian_noise),
    "salt_and_pepper": Task(enhancement.salt_and_pepper),
    "slices_to_volume": Task(enhancement.slices_to_volume, weight=0.5),
    "inpainting": Task(enhancement.inpainting),
    "super_resolution": Task(enhancement.super_resolution),
    "skull_stripping": Task(anatomy.skull_stripping, frozenset({"brain"})),
    "modality_transform": Task(enhancement.modality_transform, frozenset({"second"})),
}
