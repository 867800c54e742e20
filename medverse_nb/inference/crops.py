"""What windows read: the volumes of one scale, and the crops of a batch of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..geometry import Shape
from ..model.memory import release_memory
from ..regions import View, read
from ..resampling import FloatArray
from ..scratch import set_aside
from .read_ahead import CropsAhead, ReadAhead
from .windows import Window, cut, cut_all

LARGEST_KEPT = 2**28  # bytes of a scale's volumes that are read once and kept in memory
LARGEST_COARSE = 2**25  # of a coarser scale's; more is read once into scratch files
LARGEST_READ = 2**23  # of a batch's context images, or labels, that are read before they are used
MOST_SHARED = 4  # times that, of images that several questions share: else each reads them anew


class Place(StrEnum):
    """Where the volumes of a scale lie while its windows run."""

    MEMORY = "read once, kept in memory"
    SCRATCH = "read once, kept in scratch files"
    SOURCE = "read window by window"


def place_of(count: int, shape: Shape, *, coarse: bool) -> tuple[Place, int]:
    """Return where so many volumes are read from, and the bytes that takes there.

    Windows of a coarser scale see so much of the volumes at once that reading them window by
    window would read the full resolution several times over.
    """
    size = volume_bytes(count, shape)
    if size <= (LARGEST_COARSE if coarse else LARGEST_KEPT):
        return Place.MEMORY, size
    return (Place.SCRATCH, size) if coarse else (Place.SOURCE, 0)


def volume_bytes(count: int, shape: Shape) -> int:
    """Return the bytes of so many volumes in float32."""
    return 4 * count * math.prod(shape)


@dataclass(frozen=True)
class ScaleVolumes:
    """What the windows of one scale read, all of one shape.

    images : L; labels : K lists of L; feedback : the coarser image and its K predictions.
    """

    target: View
    images: Sequence[View]
    labels: Sequence[Sequence[View]]
    feedback: tuple[View, Sequence[View]] | None = None

    @property
    def shape(self) -> Shape:
        """The shape the windows run on."""
        x, y, z = self.target.shape
        return x, y, z

    @property
    def count(self) -> int:
        """How many volumes these are."""
        fed = 1 + len(self.feedback[1]) if self.feedback else 0
        return 1 + len(self.images) + sum(map(len, self.labels)) + fed

    def kept(self, *, coarse: bool) -> ScaleVolumes:
        """Return the same volumes where `place_of` says they are best read from.

        Raises
        ------
        OutputError : no space for scratch files.
        """
        place, _ = place_of(self.count, self.shape, coarse=coarse)
        if place is Place.SOURCE:
            return self

        def keep(view: View) -> View:
            kept: View = read(view) if place is Place.MEMORY else set_aside(view)
            release_memory()  # of the full resolution that went by
            return kept

        return ScaleVolumes(
            keep(self.target),
            [keep(view) for view in self.images],
            [[keep(view) for view in views] for views in self.labels],
            self.feedback and (keep(self.feedback[0]), [keep(view) for view in self.feedback[1]]),
        )


PairCrops = FloatArray | CropsAhead  # (B, L, X, Y, Z)


@dataclass(frozen=True)
class Crops:
    """The crops of a batch of B windows: target (B, X, Y, Z), for each of K questions images and
    labels (B, L, X, Y, Z), and, fed back, an image (B, X, Y, Z) and predictions (K, B, X, Y, Z)."""

    target: FloatArray
    context: Sequence[tuple[PairCrops, PairCrops]]
    feedback: tuple[FloatArray, FloatArray] | None

    @classmethod
    def read(cls, volumes: ScaleVolumes, windows: Sequence[Window]) -> Crops:
        """Read a batch of windows; what lies beyond a volume's end is zero.

        A context of more than `LARGEST_READ` is read while it is used.
        """
        target, fed = cut(volumes.target, windows), volumes.feedback
        feedback = fed and (cut(fed[0], windows), cut_all(fed[1], windows))
        return cls(target, read_context(volumes, windows), feedback)


def read_context(
    volumes: ScaleVolumes, windows: Sequence[Window]
) -> list[tuple[PairCrops, PairCrops]]:
    """Return images and labels of each question, or what reads them when they are taken."""
    one = volume_bytes(len(windows), windows[0].sides)
    most = LARGEST_READ // one
    ahead = max(1, most)
    pairs, questions = len(volumes.images), len(volumes.labels)

    images: Sequence[PairCrops]
    if pairs > most * min(questions, MOST_SHARED):
        images = ReadAhead([volumes.images] * questions, windows, ahead).questions
    else:
        images = [cut_all(volumes.images, windows, axis=1)] * questions

    labels: Sequence[PairCrops]
    if pairs * questions > most:
        labels = ReadAhead(volumes.labels, windows, ahead).questions
    else:
        labels = [cut_all(views, windows, axis=1) for views in volumes.labels]
    return list(zip(images, labels, strict=True))
