"""New contrasts from random shallow networks.

Source: GIN of Ouyang et al. 2022, "Causality-inspired single-source domain generalization
for medical image segmentation"; used by Neuroverse3D B.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .fields import integer, rescale_quantiles, uniform

LAYERS, WIDTH = 4, 2


def random_contrast(images: Tensor, generator: Generator) -> Tensor:
    """Draw one network and give every volume its contrast: (N, S, S, S) in [0, 1], as given.

    Four convolutions of 1 or 3 voxels an edge and two channels, normal weights and biases,
    leaky ReLU between them; the answer is mixed with the image, a random share of each.

    Two deviations: edges repeat, because zeros around a volume would draw its outline; and
    the mixture gets the quantile scaling of every image of ours, which makes the paper's
    scaling to the norm of the input of no effect.
    """
    features = images[:, None].double()  # what is constant has to come out constant
    channels = [1, *[WIDTH] * (LAYERS - 1), 1]
    for layer, (before, after) in enumerate(pairwise(channels)):
        if layer:
            features = F.leaky_relu(features)
        radius = integer(generator, 0, 1)
        weight = torch.randn(after, before, *[2 * radius + 1] * 3, generator=generator).double()
        bias = torch.randn(after, generator=generator).double()
        features = F.conv3d(F.pad(features, [radius] * 6, mode="replicate"), weight, bias)
    share = uniform(generator, 0, 1)
    mixed = share * features[:, 0] + (1 - share) * images
    return torch.stack([rescale_quantiles(volume) for volume in mixed.float()])
