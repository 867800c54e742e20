"""Training tasks, each a pure, seeded function: `(volumes, generator) -> (inputs, outputs)`.

    from medverse_nb import tasks
    inputs, outputs = tasks.inpainting(tasks.Volumes(images), torch.Generator().manual_seed(1))

Inputs and outputs are (N, S, S, S) float32 in [0, 1], in the order of the volumes: one is the
target, the others its context. What defines the task (noise level, classes) is the same for
all volumes; noise, fields and holes are each volume's own. Nothing is changed in place.
"""

from .anatomy import segmentation, skull_stripping
from .enhancement import (
    bias_field,
    gaussian_noise,
    inpainting,
    modality_transform,
    salt_and_pepper,
    slices_to_volume,
    super_resolution,
)
from .registry import TASKS, Task
from .volumes import LabelDraw, Volumes

__all__ = [
    "TASKS",
    "LabelDraw",
    "Task",
    "Volumes",
    "bias_field",
    "gaussian_noise",
    "inpainting",
    "modality_transform",
    "salt_and_pepper",
    "segmentation",
    "skull_stripping",
    "slices_to_volume",
    "super_resolution",
]
