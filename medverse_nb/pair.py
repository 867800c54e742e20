"""One labelled volume, read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pandas import unique

from .checks import tell
from .errors import ContextError, InputError
from .geometry import Align, Grid, Reorientation
from .intensity import IntensityScale, quantile_scale
from .io import Source, read_volume, source_of, takes_affine
from .placement import CanonicalVolume, placed
from .provenance import Provenance, now
from .regions import View, slabs
from .stored import LAZY_CHUNK
from .views import Mapped, as_dask, mapped, members, turned
from .volume import affine_of, grid_of, make_volume, view_of

Task = Literal["segmentation", "image"]
INTEGER_TOLERANCE = 1e-4
LARGEST_LABEL = 2**31 - 1
LABEL_GRID_CHANGE = (
    "the label's affine differs from its image's; its voxels were taken in the image's order"
)
MOST_LABELS, VALUES_A_LABEL = 32, 4  # what an image has never, and a label never beside it


@dataclass(frozen=True)
class ContextPair:
    """One labelled volume: image and label on the image's grid.

    Made by `make_pair`, which checks them; `changes` says what it changed, `provenance` where
    the pair came from.
    """

    name: str
    image: xr.DataArray
    label: xr.DataArray
    task: Task
    changes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    @cached_property
    def canonical_image(self) -> CanonicalVolume:
        """The image in canonical axis order, scaled to [0, 1]."""
        return CanonicalVolume.of(self.image).scaled()

    @cached_property
    def canonical_label(self) -> CanonicalVolume:
        """The label in canonical axis order, in its own values."""
        return CanonicalVolume.of(self.label)

    @cached_property
    def label_scale(self) -> IntensityScale:
        """The intensity scale of an image label."""
        return quantile_scale(view_of(self.label))

    @cached_property
    def values(self) -> tuple[int, ...]:
        """Nonzero label values, sorted; empty for image tasks."""
        if self.task == "image":
            return ()
        found = {int(v) for slab in slabs(view_of(self.label)) for v in unique(slab.ravel())}
        return tuple(sorted(found - {0}))

    @cached_property
    def image_hash(self) -> str:
        """Content hash of the image alone, equal for any storage orientation."""
        volume = CanonicalVolume.of(self.image)
        return content_hash(volume.view, volume.grid)

    @cached_property
    def hash(self) -> str:
        """Content hash of image and label."""
        label = self.canonical_label
        both = self.image_hash + content_hash(label.view, label.grid)
        return hashlib.sha256(both.encode()).hexdigest()

    def __repr__(self) -> str:
        told = self.task if self.task == "image" else f"values {list(self.values)}"
        return f"<ContextPair {self.name}: {' x '.join(map(str, self.image.shape))}, {told}>"

    def image_on(self, target: Grid, align: Align) -> View:
        """Return the scaled image on the target's canonical grid."""
        image = self.canonical_image
        return placed(image.view, image.grid, target, align)

    def label_on(self, target: Grid, align: Align, values: Sequence[int] | None = None) -> View:
        """Return the soft mask of these label values, or the scaled label of an image task."""
        label = self.canonical_label
        if values is None:
            return placed(Mapped(label.view, self.label_scale.apply), label.grid, target, align)
        return placed(members(label.view, values), label.grid, target, align)


def content_hash(view: View, grid: Grid) -> str:
    """Return the SHA-256 of voxel values (as float32), shape and affine."""
    shape = tuple(view.shape)
    digest = hashlib.sha256(json.dumps([shape, grid.affine.round(4).tolist()]).encode())
    for slab in slabs(view):
        digest.update(np.ascontiguousarray(slab, dtype=np.float32).tobytes())
    return digest.hexdigest()


def make_pair(
    image: Source,
    label: Source,
    *,
    name: str,
    task: Task = "segmentation",
    affine: Any = None,
    label_threshold: float | None = None,
) -> ContextPair:
    """Read and check one pair.

    Parameters
    ----------
    affine : for arrays and `.npy`; used for image and label.
    label_threshold : turns a fractional label into a mask of what exceeds it.

    Raises
    ------
    InputError : a volume that cannot be read.
    ContextError : label of another shape than its image, or fractional, negative or
        non-finite values.
    """
    what = f"context pair {name!r}"
    with _naming(f"image of {what}"):
        image_volume = read_volume(image, affine if takes_affine(image) else None)
    label_volume, changes = read_label(
        image_volume, label, what=what, task=task, affine=affine, label_threshold=label_threshold
    )
    changes = [*image_volume.attrs.get("changes", ()), *changes]
    origin = Provenance(source_of(image), source_of(label), when=now())
    return ContextPair(name, image_volume, label_volume, task, tuple(changes), origin)


def read_label(
    image: xr.DataArray,
    label: Source,
    *,
    what: str,
    task: Task = "segmentation",
    affine: Any = None,
    label_threshold: float | None = None,
) -> tuple[xr.DataArray, list[str]]:
    """Read and check the label of an image; return it on the image's grid, and what was changed.

    Parameters
    ----------
    what : is being read, as messages call it.
    affine, label_threshold : as in `make_pair`.

    Raises
    ------
    InputError, ContextError : as `make_pair`.
    """
    with _naming(f"label of {what}"):
        volume = read_volume(label, _label_affine(label, affine, image))
    changes = [*volume.attrs.get("changes", ())]
    values, change = _on_image_grid(volume, image, what)
    if change:
        changes.append(change)
        tell(f"{what}: {change}")
    if task == "segmentation":
        _check_order(view_of(image), values, what)
        if count := volume.attrs.get("non_finite", 0):
            raise ContextError(
                f"{what}: label has {count} non-finite values; fill them with 0 "
                "where there is background"
            )
        values = _integer_labels(values, what, label_threshold)
    data = values if isinstance(values, np.ndarray) else as_dask(values, LAZY_CHUNK)
    # where the label said it lies: the doctor compares
    attrs = {"stored_affine": affine_of(volume).tolist()}
    placed = make_volume(data, affine_of(image), name=str(volume.name), attrs=attrs)
    return placed, changes


def make_pairs(
    files: Mapping[str, tuple[Path, Path]],
    *,
    task: Task = "segmentation",
    label_threshold: float | None = None,
) -> list[ContextPair]:
    """Read and check the pairs that `find_pairs` found; all that cannot be used are told at once.

    Raises
    ------
    ContextError : one or more cannot be used.
    """
    pairs, errors = list[ContextPair](), list[str]()
    for name, (image, label) in files.items():
        try:
            pair = make_pair(image, label, name=name, task=task, label_threshold=label_threshold)
        except InputError as error:
            errors.append(str(error))
        else:
            pairs.append(pair)
    if errors:
        count = f"{len(errors)} of {len(files)} pairs cannot be used: " if errors[1:] else ""
        raise ContextError(count + "; ".join(errors))
    return pairs


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put what was being read before the error of reading it."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{what}: {error}") from error


def _check_order(image: View, label: View, what: str) -> None:
    """Refuse an image and a label that were given in each other's place.

    In the middle plane, few whole numbers in the image and many times as many values in the
    label.
    """
    middle = slice(image.shape[2] // 2, image.shape[2] // 2 + 1)
    shown, marked = (np.unique(view[:, :, middle]) for view in (image, label))
    is_label = len(shown) <= MOST_LABELS and (shown == np.rint(shown)).all() and shown[0] >= 0
    if is_label and len(marked) > max(MOST_LABELS, VALUES_A_LABEL * len(shown)):
        raise ContextError(
            f"{what}: the image has {len(shown)} values and the label "
            f"{len(marked)}; are they swapped? It is (image, label)"
        )


def _label_affine(label: Source, affine: Any, image: xr.DataArray) -> Any:
    """Return the affine for a label; an array without one lies on its image's grid."""
    if isinstance(label, np.ndarray) and affine is None:
        return affine_of(image)
    return affine if takes_affine(label) else None


def _on_image_grid(label: xr.DataArray, image: xr.DataArray, what: str) -> tuple[View, str | None]:
    """Return the label's voxels in the image's axis order, and what had to be assumed."""
    ours, theirs = grid_of(image), grid_of(label)
    turn = Reorientation.onto(theirs.affine, theirs.shape, ours.affine)
    view = turned(view_of(label), turn)
    if tuple(view.shape) == ours.shape and np.allclose(
        turn.affine(theirs.affine), ours.affine, atol=1e-2
    ):
        return view, None
    if label.shape == image.shape:
        return view_of(label), LABEL_GRID_CHANGE
    raise ContextError(
        f"{what}: label has shape {label.shape}, its image {image.shape}; "
        "resample the label onto its image first"
    )


def _integer_labels(view: View, what: str, label_threshold: float | None) -> View:
    """Return whole, positive labels; checked in slabs."""
    if label_threshold is not None:
        return mapped(view, partial(_exceeds, threshold=label_threshold))
    for slab in slabs(view):
        _check_labels(slab, what)
    return mapped(view, _round)


def _exceeds(values: NDArray[Any], threshold: float) -> NDArray[np.int32]:
    return (values > threshold).astype(np.int32)


def _round(values: NDArray[Any]) -> NDArray[np.int32]:
    return np.rint(values).astype(np.int32)


def _check_labels(values: NDArray[Any], what: str) -> None:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ContextError(
                f"{what}: label has non-finite values; fill them, such as label.fillna(0)"
            )
        off = np.abs(values - np.rint(values)) > INTEGER_TOLERANCE
        if off.any():
            shown = ", ".join(f"{v:.3g}" for v in np.unique(values[off])[:3])
            raise ContextError(
                f"{what}: label has fractional values ({shown}, ...); pass "
                'label_threshold=0.5 or task="image"'
            )
    least, most = round(float(values.min())), round(float(values.max()))
    if least < 0 or most > LARGEST_LABEL:
        raise ContextError(
            f"{what}: label values reach from {least:g} to {most:g}; class values "
            "must be 0 (background) or positive"
        )
