"""Augmentation of a drawn task: of its images, then of what it asks for.

Both functions are pure and take the inputs and outputs of one task, (N, S, S, S) float32 in
[0, 1]: the target and its context in any order. Whatever changes what is asked, or how an
input relates to its output, is the same for all N volumes, since the context has to show it;
a subject's own are only its pose, its shape and its noise.

Source: Neuroverse3D B.2 for the lists and probabilities, none of which has amplitudes there;
those below are ours. MONAI does what it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import InputError
from ..tasks.enhancement import (
    add_bias_field,
    add_gaussian_noise,
    add_salt_and_pepper,
    cut_holes,
    halve_resolution,
)
from ..tasks.fields import chance, integer
from ..tasks.gin import random_contrast
from ..tasks.registry import TASKS

TURN_RAD = 0.26  # 15 degrees about each axis
STRETCH, SHEAR, MOVE = 0.1, 0.05, 0.05  # affine; MOVE is a share of the side
ELASTIC_SIGMA, ELASTIC_SHIFT = 0.125, 0.02  # smoothness and deviation, shares of the side
SHIFT, SCALE, NOISE = 0.1, 0.2, 0.1  # intensities lie in [0, 1]
OVERLAPS: tuple[Callable[[Tensor, Generator], Tensor], ...] = (
    halve_resolution,
    add_bias_field,
    add_gaussian_noise,
    add_salt_and_pepper,
    cut_holes,
)


@dataclass(frozen=True)
class AugmentationRates:
    """Probability of each augmentation, independent of the others; the defaults are the paper's.

    Random foreground, the one that is missing here, is part of `tasks.segmentation`.
    """

    affine: float = 0.05
    elastic: float = 0.05
    flip: float = 0.05
    rotation: float = 0.05
    shift: float = 0.2
    scaling: float = 0.2
    noise: float = 0.1
    inversion: float = 0.05
    contrast: float = 0.05  # GIN
    overlap: float = 0.05  # each of the five
    modality: float = 0.05
    sobel: float = 0.05
    mask_inversion: float = 0.05
    dilation: float = 0.05
    erosion: float = 0.05


def augment_images(
    inputs: Tensor,
    outputs: Tensor,
    generator: Generator,
    rates: AugmentationRates = AugmentationRates(),
) -> tuple[Tensor, Tensor]:
    """Move inputs and outputs alike, then change the contrast of the inputs.

    Affine, elastic and rotation are drawn for each volume, zero coming in from outside. The
    others are drawn once a task: one axis to flip, one GIN, one inversion, factor, offset and
    noise level. Outputs keep their contrast; an image task then asks for both at once.
    """
    _require_task(inputs, outputs)
    both = torch.stack([inputs, outputs], 1)  # (N, 2, S, S, S)
    both = torch.stack([_move(pair, generator, rates) for pair in both])
    if chance(generator, rates.flip):
        both = _run("RandAxisFlip", both.flatten(0, 1), generator).view_as(both)
    inputs, outputs = both[:, 0], both[:, 1]
    if chance(generator, rates.contrast):
        inputs = random_contrast(inputs, generator)
    if chance(generator, rates.inversion):
        inputs = 1 - inputs
    if chance(generator, rates.scaling):
        inputs = _run("RandScaleIntensity", inputs, generator, factors=SCALE)
    if chance(generator, rates.shift):
        inputs = _run("RandShiftIntensity", inputs, generator, offsets=SHIFT)
    if chance(generator, rates.noise):
        inputs = _run("RandGaussianNoise", inputs, generator, std=NOISE)
    return inputs.clamp(0, 1), outputs.clamp(0, 1)


def augment_task(
    name: str,
    inputs: Tensor,
    outputs: Tensor,
    generator: Generator,
    rates: AugmentationRates = AugmentationRates(),
) -> tuple[Tensor, Tensor]:
    """Ask for more than one thing at once, or for another: all volumes of the task alike.

    Any task may get image tasks laid over its inputs. "modality_transform" may get a GIN for
    its inputs and another for its outputs. The masks of "segmentation" may be dilated,
    eroded, inverted and replaced by their edges, in this order; see each for its limits. An
    inverted mask asks for all the rest, hippocampus with it: a training that wants to keep a
    structure out of every foreground sets `mask_inversion` to 0.

    Raises
    ------
    InputError : a name that is not in `tasks.TASKS`.
    """
    _require_task(inputs, outputs)
    if name not in TASKS:
        raise InputError(f"no task {name!r}; there are {', '.join(TASKS)}")
    if name == "modality_transform" and chance(generator, rates.modality):
        inputs = random_contrast(inputs, generator)
        outputs = random_contrast(outputs, generator)
    for spoil in OVERLAPS:
        if chance(generator, rates.overlap):
            inputs = spoil(inputs, generator)
    if TASKS[name].is_segmentation:
        if chance(generator, rates.dilation):
            outputs = dilate(outputs)
        if chance(generator, rates.erosion):
            outputs = erode(outputs)
        if chance(generator, rates.mask_inversion):
            outputs = 1 - outputs
        if chance(generator, rates.sobel):
            outputs = edges(outputs)
    return inputs.clamp(0, 1), outputs.clamp(0, 1)


def dilate(masks: Tensor) -> Tensor:
    """Grow soft masks (N, S, S, S) by one voxel, diagonals included."""
    return F.max_pool3d(masks, 3, stride=1, padding=1)


def erode(masks: Tensor) -> Tensor:
    """Shrink soft masks (N, S, S, S) by one voxel, diagonals included; the volume's edge is kept.

    Where a mask would be left without a voxel above one half, all stay as they are.
    """
    eroded = -dilate(-masks)
    lost = (masks.amax((1, 2, 3)) > 0.5) & (eroded.amax((1, 2, 3)) <= 0.5)
    return masks if lost.any() else eroded


def edges(masks: Tensor) -> Tensor:
    """Return the Sobel gradient's magnitude, 1 on both sides of a flat edge: (N, S, S, S)."""
    from monai.transforms.post.array import SobelGradients

    sobel = SobelGradients(padding_mode="replicate")
    gradients = torch.stack([_plain(sobel(mask[None])) for mask in masks])  # (N, 3, S, S, S)
    return (2 * gradients.norm(dim=1)).clamp(0, 1)


def _move(pair: Tensor, generator: Generator, rates: AugmentationRates) -> Tensor:
    """Change the pose and shape of one volume's input and output, (2, S, S, S), alike."""
    side = pair.shape[-1]
    if chance(generator, rates.affine):
        pair = _run(
            "RandAffine",
            pair,
            generator,
            shear_range=[SHEAR] * 6,
            translate_range=[MOVE * side] * 3,
            scale_range=[STRETCH] * 3,
            padding_mode="zeros",
        )
    if chance(generator, rates.elastic):
        sigma = ELASTIC_SIGMA * side
        # what smoothing by sigma leaves of noise uniform in [-1, 1], brought to the deviation
        magnitude = ELASTIC_SHIFT * side * 3**0.5 * (2 * torch.pi**0.5 * sigma) ** 1.5
        pair = _run(
            "Rand3DElastic",
            pair,
            generator,
            sigma_range=(sigma, sigma),
            magnitude_range=(0.5 * magnitude, 1.5 * magnitude),
            padding_mode="zeros",
        )
    if chance(generator, rates.rotation):
        turn = {f"range_{axis}": TURN_RAD for axis in "xyz"}
        pair = _run("RandRotate", pair, generator, padding_mode="zeros", **turn)
    return pair


def _run(name: str, volumes: Tensor, generator: Generator, **settings: Any) -> Tensor:
    """Apply one of MONAI's random transforms to (C, S, S, S), one draw for all C."""
    from monai import transforms  # takes seconds, so only once something is drawn

    transform = getattr(transforms, name)(prob=1.0, **settings)
    transform.set_random_state(seed=integer(generator, 0, 2**31 - 1))
    return _plain(transform(volumes))


def _plain(x: Any) -> Tensor:
    """Leave MONAI's tensor with metadata behind."""
    return x.as_tensor() if hasattr(x, "as_tensor") else x


def _require_task(inputs: Tensor, outputs: Tensor) -> None:
    if inputs.ndim != 4 or len(set(inputs.shape[1:])) != 1 or inputs.shape != outputs.shape:
        raise InputError(
            "inputs and outputs must be cubes (N, S, S, S) of one shape, not "
            f"{tuple(inputs.shape)} and {tuple(outputs.shape)}"
        )
