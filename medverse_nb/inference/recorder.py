"""Recording where blocks look: the attention of chosen windows, while a run goes on.

Nothing in the network knows of it: hooks on its attention modules see what they return, for
as long as the run lasts, so that a run that records nothing pays nothing.

Source: Medverse Eqs. 5-9 (attention), Figure 2 (the two directions).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..geometry import Shape
from ..model.network import ICLNetwork
from ..resampling import FloatArray
from ..scratch import new_place, remove_with
from ..zarr_files import create_array, open_array, write_region
from .engine import Predict
from .plan import Batch
from .windows import Window

LARGEST_IN_MEMORY = 2**27  # bytes of recorded attention; more lies in scratch space
SEMANTIC, AUTOREGRESSIVE = "semantic", "autoregressive"
Record = bool | Mapping[str, Sequence[int]]


def windows_of(record: Record) -> Sequence[int] | None:
    """Return the windows `record` asks for by number; None for all of them.

    Raises
    ------
    InputError : it is neither a truth value nor `{"windows": [...]}`.
    """
    if isinstance(record, bool):
        return None
    if not isinstance(record, Mapping) or set(record) != {"windows"}:
        raise InputError(f'record={record!r} is not True, False or {{"windows": [0, 1, ...]}}')
    return record["windows"]


class Recorder:
    """Keeps the attention of chosen windows of one run, in float16.

    Parameters
    ----------
    network : that runs; `has_attention`, and the runner's own.
    plan : the windows of each scale, coarsest first.
    pairs : names of the L context pairs.
    questions : names of the K classes.
    chosen : numbers of windows, counted from 0 through all scales; None for all.

    Raises
    ------
    InputError : a window that the run does not have.
    OutputError : no space for what is to be kept.
    """

    def __init__(
        self,
        network: ICLNetwork,
        plan: Sequence[Sequence[Window]],
        pairs: Sequence[str],
        questions: Sequence[str],
        chosen: Sequence[int] | None = None,
    ) -> None:
        numbered = [(scale, window) for scale, part in enumerate(plan, 1) for window in part]
        numbers = range(len(numbered)) if chosen is None else sorted(set(chosen))
        if wrong := [n for n in numbers if not (isinstance(n, int) and 0 <= n < len(numbered))]:
            raise InputError(
                f"record: no windows {wrong}; this run has {len(numbered)}, counted from 0"
            )
        self.network, self.config = network, network.config
        self.pairs, self.questions = [*pairs, AUTOREGRESSIVE], list(questions)
        self.numbers = list(numbers)
        self.scales = [numbered[n][0] for n in numbers]
        self.windows = [numbered[n][1] for n in numbers]
        self._rows = {
            (scale, window.start): row
            for row, (scale, window) in enumerate(zip(self.scales, self.windows, strict=True))
        }
        self._missing = set(range(len(self.numbers)))
        self._call = _Call()
        stages, tokens = len(self.config.channels), self.config.blocks_per_axis**3
        sizes = len(self.questions), len(self.numbers), stages
        self.target_to_context = _make_array((*sizes, len(self.pairs), tokens, tokens))
        self.context_to_target = _make_array((*sizes, 2, tokens, tokens))

    @contextmanager
    def watching(self, predict: Predict, scale: int) -> Iterator[Predict]:
        """Return `predict` of a scale so that what it runs is recorded, until the block's end.

        Chosen windows that were not run here by then, kept ones and other machines', are run
        then; those that are skipped as empty stay without attention, NaN.
        """
        recording = Recording(
            predict.runner, predict.volumes, predict.skip_empty, recorder=self, scale=scale
        )
        handles = [
            module.register_forward_hook(_at(stage, see))
            for see, modules in (
                (self._see_context, self.network.context_branch.fusions),
                (self._see_target, reversed(self.network.target_decoder.fusions)),
            )
            for stage, module in enumerate(fusion.get_submodule("attention") for fusion in modules)
        ]
        try:
            yield recording
            self._complete(recording)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def of(self, scale: int, windows: Batch) -> Iterator[None]:
        """Take what this thread's network does for a batch of windows of a scale."""
        rows = [self._rows.get((scale, window.start)) for window in windows]
        if any(row is not None for row in rows):
            self._call.begin(rows)
        try:
            yield
            self._missing.difference_update(rows)
        finally:
            self._call.rows = None

    def dataset(self) -> xr.Dataset:
        """Return what was recorded.

        Returns
        -------
        `target_to_context` (class, window, stage, pair, query, key): how much block `query` of
        a pair takes from block `key` of the target, on the encoder's way; the last pair is the
        autoregressive one. `context_to_target` (class, window, stage, source, query, key): how
        much block `query` of the target takes from block `key` of the mean of all pairs
        ("semantic") or of the autoregressive context. `class` only where there are several.
        `scale`, `start` and `sides` (voxels of that scale) belong to a window; stage 0 has full
        resolution. NaN where there is nothing: the first scale has no autoregressive context,
        the last stage no way to the context. Blocks count as x, y, z, row-major.
        """
        dims = ("class", "window", "stage")
        tokens = np.arange(self.config.blocks_per_axis**3)
        dataset = xr.Dataset(
            {
                "target_to_context": (
                    (*dims, "pair", "query", "key"),
                    self.target_to_context.as_data(),
                ),
                "context_to_target": (
                    (*dims, "source", "query", "key"),
                    self.context_to_target.as_data(),
                ),
            },
            coords={
                "class": self.questions,
                "window": self.numbers,
                "stage": np.arange(len(self.config.channels)),
                "pair": self.pairs,
                "source": [SEMANTIC, AUTOREGRESSIVE],
                "query": tokens,
                "key": tokens,
                "axis": list("xyz"),
                "scale": ("window", self.scales),
                "start": (("window", "axis"), _rows_of(w.start for w in self.windows)),
                "sides": (("window", "axis"), _rows_of(w.sides for w in self.windows)),
            },
            attrs={
                "blocks_per_axis": self.config.blocks_per_axis,
                "partition": self.config.partition,
            },
        )
        return dataset if len(self.questions) > 1 else dataset.isel({"class": 0}, drop=True)

    def _complete(self, predict: Recording) -> None:
        mine = [row for row, scale in enumerate(self.scales) if scale == predict.scale]
        for row in mine:
            if row in self._missing:
                predict([self.windows[row]])
        for row in mine:
            if row in self._missing:
                for array in (self.target_to_context, self.context_to_target):
                    for question in range(len(self.questions)):
                        array.write(question, row, np.full(array.shape[2:], np.nan, np.float16))
                self._missing.remove(row)

    def _see_context(self, stage: int, weights: Tensor) -> None:
        """Take a mini-context's attention at a stage: (B, K * T, T) of K pairs."""
        if self._call.rows is not None:
            parts = rearrange(weights, "b (k q) t -> b k q t", q=weights.shape[-1])
            self._call.to_context.setdefault(stage, []).append(_half(parts))

    def _see_target(self, stage: int, weights: Tensor) -> None:
        """Take the target's attention at a stage, (B, T, S * T); stage 0 ends the question."""
        if self._call.rows is None:
            return
        parts = rearrange(weights, "b q (s t) -> b s q t", t=weights.shape[1])
        self._call.to_target[stage] = _half(parts)
        if stage == 0:
            self._write()
            self._call.next()

    def _write(self) -> None:
        to_context = self._call.to_context
        for index, row in enumerate(self._call.rows or ()):
            if row is None:
                continue
            given = np.full(self.target_to_context.shape[2:], np.nan, np.float16)
            taken = np.full(self.context_to_target.shape[2:], np.nan, np.float16)
            for stage, parts in to_context.items():
                seen = np.concatenate([part[index] for part in parts])
                given[stage, : len(seen)] = seen
            for stage, part in self._call.to_target.items():
                taken[stage, : part.shape[1]] = part[index]
            self.target_to_context.write(self._call.question, row, given)
            self.context_to_target.write(self._call.question, row, taken)


@dataclass(frozen=True)
class Recording(Predict):
    """Predicts the windows of a scale and has them recorded.

    Sent to another process it is a plain `Predict`: what runs there runs here once more.
    """

    recorder: Recorder | None = None
    scale: int = 1

    def run(self, windows: Batch) -> FloatArray:
        assert self.recorder is not None
        with self.recorder.of(self.scale, windows):
            return super().run(windows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Predict, (self.runner, self.volumes, self.skip_empty)


def has_attention(network: ICLNetwork) -> bool:
    """Whether a network has blockwise cross-attention to record."""
    return network.codes is not None


class _Call(threading.local):
    """What the network has told of the batch that a thread is at, one question at a time."""

    def __init__(self) -> None:
        self.rows: list[int | None] | None = None

    def begin(self, rows: list[int | None]) -> None:
        self.rows, self.question = rows, -1
        self.next()

    def next(self) -> None:
        self.question += 1
        self.to_context: dict[int, list[NDArray[np.float16]]] = {}
        self.to_target: dict[int, NDArray[np.float16]] = {}


class _MemoryArray:
    """Attention of questions and windows, (K, N, ...), in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.values = np.empty(shape, np.float16)

    def write(self, question: int, row: int, values: NDArray[np.float16]) -> None:
        self.values[question, row] = values

    def as_data(self) -> Any:
        return self.values


class _ScratchArray:
    """The same in scratch space, one chunk a question and window; removed after use."""

    ndim, dtype = 6, np.dtype(np.float16)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        with new_place(2 * math.prod(shape), "attention") as place:
            path = Path(place) / "attention.zarr"
            create_array(path, shape, (1, 1, *shape[2:]), np.float16)
            self.array = open_array(path, writable=True)
        remove_with(self, place)

    def write(self, question: int, row: int, values: NDArray[np.float16]) -> None:
        index = (slice(question, question + 1), slice(row, row + 1), *map(slice, self.shape[2:]))
        write_region(self.array, index, values[None, None])

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        return np.asarray(self.array[index])

    def as_data(self) -> Any:
        return da.from_array(self, (1, 1, *self.shape[2:]), name=False, asarray=False)


def _make_array(shape: tuple[int, ...]) -> _MemoryArray | _ScratchArray:
    small = 2 * math.prod(shape) <= LARGEST_IN_MEMORY
    return _MemoryArray(shape) if small else _ScratchArray(shape)


def _at(stage: int, see: Callable[[int, Tensor], None]) -> Callable[..., None]:
    """Return a forward hook that tells the attention of a stage's module."""

    def hook(_module: torch.nn.Module, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        see(stage, output[1])

    return hook


def _rows_of(places: Iterable[Shape]) -> NDArray[np.int64]:
    return np.array(list(places), np.int64).reshape(-1, 3)


def _half(weights: Tensor) -> NDArray[np.float16]:
    return weights.to(torch.float16).cpu().numpy()
