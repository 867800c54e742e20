import base64
import io
import itertools
import json
import re
from types import SimpleNamespace

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import medverse_nb as mv
from medverse_nb import ICLSession, NotBuiltYet, affine_of, read_volume
from medverse_nb.errors import ContextError, InputError, WeightsError
from medverse_nb.io import VolumeWarning
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.weights import weights_hash

ORIENTATIONS = ["".join(codes) for codes in nib.orientations.ALL_ORNTS_CODES] if hasattr(
    nib.orientations, "ALL_ORNTS_CODES"
) else [
    "".join(pick)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for pick in itertools.product(*axes)
]
