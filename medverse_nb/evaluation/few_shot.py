"""What a user would do instead: train a MONAI network on the same pairs for a minute or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..errors import ContextError
from ..geometry import Grid, Shape
from ..model.config import Precision
from ..model.device import autocast
from ..pair import ContextPair
from ..placement import CanonicalVolume, place
from ..regions import read
from ..resampling import FloatArray
from ..training.rates import cosine, warm_up

Kind = Literal["unet", "swin_unetr"]
PATCHES: dict[Kind, int] = {"unet": 32, "swin_unetr": 64}  # sides in voxels; Swin halves five times
BATCH_VOXELS = 4 * 32**3  # at least one patch
PEAK_RATE = 2e-3
WARM_UP_STEPS = 20


def make_network(kind: Kind) -> nn.Module:
    """Return a small MONAI network with one input and one output channel."""
    if kind == "swin_unetr":
        from monai.networks.nets.swin_unetr import SwinUNETR

        return SwinUNETR(in_channels=1, out_channels=1, feature_size=12)
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )


@dataclass
class FewShotNetwork:
    """A network trained on pairs for one class; it works at `spacing_mm`, by patches."""

    network: nn.Module
    patch: int
    spacing_mm: tuple[float, float, float]
    precision: Precision
    steps: int

    @torch.inference_mode()
    def predict(self, target: CanonicalVolume) -> FloatArray:
        """Return the probability of the class on the target's canonical grid.

        Parameters
        ----------
        target : its array scaled to [0, 1].
        """
        from monai.inferers.utils import sliding_window_inference

        work = at_spacing(target.grid, self.spacing_mm, self.patch)
        image = torch.from_numpy(place(target.array, target.grid, work, "box"))[None, None]
        with autocast(self.precision, image.device):
            logits = sliding_window_inference(
                image, (self.patch,) * 3, 4, self.network, overlap=0.5, mode="gaussian"
            )
        assert isinstance(logits, Tensor)
        return place(logits.float().sigmoid()[0, 0].numpy(), work, target.grid, "box")


def train_few_shot(
    pairs: Sequence[ContextPair],
    values: Sequence[int],
    seconds: float,
    *,
    kind: Kind = "unet",
    precision: Precision = "float32",
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FewShotNetwork:
    """Train on patches of the pairs, half of them on the class, flipped and rescaled at random.

    A step whose gradients are not finite is passed over.

    Parameters
    ----------
    values : label values of the class.
    on_step : called before each step; may raise to end it.

    Raises
    ------
    ContextError : no pair has the class.
    """
    from monai.losses.dice import DiceCELoss

    if not any(set(pair.values) & set(values) for pair in pairs):
        raise ContextError(f"no pair has a label in {list(values)}: nothing to train on")
    spacings = np.array([pair.canonical_image.grid.spacing_mm for pair in pairs])
    x, y, z = (float(s) for s in np.median(spacings, axis=0))
    patch = PATCHES[kind]
    cases = [_read(pair, values, (x, y, z), patch) for pair in pairs]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make_network(kind).train()
    loss_of = DiceCELoss(sigmoid=True)
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE)
    generator = Generator().manual_seed(seed)
    started, steps = clock(), 0
    while (used := clock() - started) < seconds:
        if on_step:
            on_step()
        rate = PEAK_RATE * warm_up(steps, WARM_UP_STEPS) * cosine(used / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = _draw_batch(cases, patch, generator)
        with autocast(precision, images.device):
            logits = network(images)
        loss_of(logits.float(), labels).backward()
        if _has_finite_gradients(network):
            optimizer.step()
            steps += 1
        optimizer.zero_grad(set_to_none=True)
    return FewShotNetwork(network.eval(), patch, (x, y, z), precision, steps)


def _has_finite_gradients(network: nn.Module) -> bool:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def at_spacing(grid: Grid, spacing_mm: tuple[float, float, float], patch: int) -> Grid:
    """Return the grid's box cut into voxels of about this size, not smaller than a patch."""
    sides = [
        max(patch, round(extent / step))
        for extent, step in zip(grid.extent_mm, spacing_mm, strict=True)
    ]
    shape: Shape = (sides[0], sides[1], sides[2])
    return grid.resized(shape)


def _read(
    pair: ContextPair, values: Sequence[int], spacing_mm: tuple[float, float, float], patch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, label (X, Y, Z) and the voxels (n, 3) of the class."""
    work = at_spacing(pair.canonical_image.grid, spacing_mm, patch)
    image = torch.from_numpy(read(pair.image_on(work, "box")))
    label = torch.from_numpy(read(pair.label_on(work, "box", values))) > 0.5
    return image, label.float(), label.nonzero()


def _draw_batch(
    cases: Sequence[tuple[Tensor, Tensor, Tensor]], patch: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for _ in range(max(1, BATCH_VOXELS // patch**3)):
        chosen = int(torch.randint(len(cases), (), generator=generator))
        image, label, inside = cases[chosen]
        room = torch.tensor(image.shape) - patch
        start = (torch.rand(3, generator=generator) * (room + 1)).long()
        if len(inside) and torch.rand((), generator=generator) < 0.5:
            voxel = inside[int(torch.randint(len(inside), (), generator=generator))]
            start = voxel - torch.randint(patch, (3,), generator=generator)
            start = torch.minimum(start.clamp_min(0), room)
        box = tuple(slice(int(a), int(a) + patch) for a in start)
        flips = [axis for axis in range(3) if torch.rand((), generator=generator) < 0.5]
        scale, shift = torch.rand(2, generator=generator).tolist()
        changed = image[box] * (0.8 + 0.4 * scale) + 0.2 * (shift - 0.5)
        images.append(changed.flip(flips))
        labels.append(label[box].flip(flips))
    return torch.stack(images)[:, None], torch.stack(labels)[:, None]
