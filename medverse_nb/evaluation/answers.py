"""One target answered from different contexts: asking, counting the questions, comparing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial.distance import braycurtis

from ..errors import Cancelled, ContextError, InputError
from ..geometry import Align
from ..inference.autoregressive import OnProgress, run
from ..inference.inputs import PairInputs, Values
from ..inference.recipe import Settings
from ..model.network import ICLNetwork
from ..pair import ContextPair, Task
from ..placement import CanonicalVolume
from ..regions import read
from ..views import clipped
from ..volume import with_data
from .metrics import dice, psnr

Measure = Literal["dice", "psnr", "agreement", "difference"]

MEANING: dict[Measure, str] = {
    "dice": "Dice with the truth",
    "psnr": "peak signal-to-noise ratio against the truth, in dB",
    "agreement": "Dice with the answer from all pairs: how settled the answer is, not how right",
    "difference": "mean absolute difference from the answer from all pairs: how settled the "
    "answer is, not how right",
}

# A target's answer from these pairs. Of a segmentation the probabilities in [0, 1],
# (K, X, Y, Z) for K classes or (X, Y, Z) for one; of an image task the image (X, Y, Z).
# NumPy, or a `DataArray` whose `class` names the classes. K stays the same for every context,
# also for one in which no pair has some class.
PredictFrom = Callable[[Sequence[ContextPair]], Any]
OnPrediction = Callable[[str, int, int], None]  # what is being predicted, done, of how many


def predictor(
    network: ICLNetwork,
    target: xr.DataArray,
    wanted: Sequence[Values],
    *,
    names: Sequence[str] = (),
    align: Align = "box",
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> PredictFrom:
    """Return what answers one target from any pairs; each call is one run of the network.

    Parameters
    ----------
    target : (x, y, z) as it was read; an answer is on its grid, in its axis order.
    wanted : label values of each class, or `[None]` for an image task. Of the whole context:
        pairs without a class are empty examples of it.
    names : of the classes; answers then carry them.
    on_progress : called with scale, scales, windows done, and of how many; may raise to end it.

    Returns
    -------
    A callable from pairs to (K, X, Y, Z) float32 in [0, 1]; of an image task the label's
    intensities scaled to it. With `names` a `DataArray` (class, x, y, z) on the target's grid.

    Examples
    --------
    With a session and a scan::

        classes = session.resolve(None)
        predict = predictor(
            session.network,
            mv.read_volume("sub-09_T1w.nii.gz"),
            [spec.values for spec in classes],
            names=[spec.name for spec in classes],
            align=session.align,
            settings=Settings(precision=session.precision),
        )
        influence(predict, session.context.pairs)
    """
    canonical = CanonicalVolume.of(target).scaled()

    def predict(pairs: Sequence[ContextPair]) -> Any:
        inputs = PairInputs(canonical.view, canonical.grid, pairs, align, wanted)
        last = run(network, inputs, settings or Settings(), on_progress=on_progress)[-1]
        views = map(clipped, last.predictions)
        answer = np.stack([canonical.reorientation.undo(read(view)) for view in views])
        return with_data(target, answer, "probability", {"class": list(names)}) if names else answer

    return predict


@dataclass(frozen=True)
class Answer:
    """What was answered, or is known to be true: one volume a class, or one image.

    volumes : (K, X, Y, Z).
    """

    names: tuple[str, ...]
    volumes: NDArray[Any]
    task: Task

    @classmethod
    def of(cls, volumes: Any, task: Task) -> Answer:
        """Take an answer as `PredictFrom` describes it; a truth has masks for probabilities.

        Raises
        ------
        InputError : not K volumes, or, of an image task, more than one.
        """
        array = np.asarray(volumes)
        stack = array[None] if array.ndim == 3 else array
        if stack.ndim != 4 or not stack.size or (task == "image" and len(stack) != 1):
            expected = "(X, Y, Z)" if task == "image" else "(K, X, Y, Z) or (X, Y, Z)"
            raise InputError(f"an answer or truth must be {expected}, got {array.shape}")
        if task == "image":
            return cls(("image",), stack, task)
        if isinstance(volumes, xr.DataArray) and "class" in volumes.dims:
            return cls(tuple(map(str, volumes["class"].values)), stack, task)
        return cls(tuple(str(number + 1) for number in range(len(stack))), stack, task)

    @property
    def measure(self) -> Measure:
        """How `score` compares with a truth."""
        return "psnr" if self.task == "image" else "dice"

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(K, X, Y, Z): the likeliest class of each voxel, none where no class exceeds 0.5."""
        likeliest = self.volumes.argmax(axis=0)
        numbers = np.arange(len(self.volumes)).reshape(-1, 1, 1, 1)
        return (likeliest == numbers) & (self.volumes > 0.5)

    def score(self, truth: Answer) -> list[float]:
        """Return the Dice of each class's mask, or the PSNR in dB.

        Raises
        ------
        InputError : another shape or other classes.
        """
        self._check(truth)
        if self.task == "image":
            return [psnr(self.volumes[0], truth.volumes[0])]
        return [dice(ours, theirs) for ours, theirs in zip(self.masks, truth.masks, strict=True)]

    def change(self, other: Answer) -> list[float]:
        """Return how far each class's answer is from another: 0 where both are equal.

        Segmentation: 1 - soft Dice, in [0, 1]; with `2 sum(min) / sum(p + q)` for soft Dice it
        is the Bray-Curtis distance, 0 for equal probabilities and 1 - Dice for masks. Image:
        mean absolute difference, in the answer's units.

        Raises
        ------
        InputError : another shape or other classes.
        """
        self._check(other)
        both = zip(self.volumes, other.volumes, strict=True)
        if self.task == "image":
            return [float(np.abs(a - b).mean(dtype=np.float64)) for a, b in both]
        return [_soft_dice_distance(a.ravel(), b.ravel()) for a, b in both]

    def _check(self, other: Answer) -> None:
        if self.volumes.shape != other.volumes.shape:
            raise InputError(
                "answers and truth must be of one shape (classes, x, y, z), got "
                f"{self.volumes.shape} and {other.volumes.shape}"
            )


@dataclass
class Asking:
    """Asks for a known number of answers; tells before each one, and stops when it is asked to."""

    predict: PredictFrom
    task: Task
    count: int
    on_progress: OnPrediction | None = None
    cancel: Event | None = None
    done: int = 0

    def __call__(self, what: str, pairs: Sequence[ContextPair]) -> Answer:
        """Return the answer from these pairs; `what` names it in the progress.

        Raises
        ------
        Cancelled : by `cancel`.
        """
        if self.cancel and self.cancel.is_set():
            raise Cancelled(f"cancelled after {self.done} of {self.count} predictions")
        if self.on_progress:
            self.on_progress(what, self.done, self.count)
        answer = Answer.of(self.predict(pairs), self.task)
        self.done += 1
        if self.on_progress and self.done == self.count:
            self.on_progress("", self.done, self.count)
        return answer


def check_pairs(pairs: Sequence[ContextPair]) -> None:
    """Raise a `ContextError` for no pairs, or two of one name."""
    if not pairs:
        raise ContextError("there are no context pairs; add_context a labelled pair first")
    names = [pair.name for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ContextError(f"context pairs need names of their own; taken twice: {twice}")


def _soft_dice_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    if not (a.any() or b.any()):  # two empty answers agree; Bray-Curtis has 0 / 0 there
        return 0.0
    return float(braycurtis(a.astype(np.float64), b.astype(np.float64)))
