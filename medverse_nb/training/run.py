"""A whole training run: data, trainer, callbacks, export."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from ..model.weights import save_network
from ..tasks.draw import TaskDraw
from .config import TrainingConfig
from .module import ICLModule
