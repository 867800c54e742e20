"""The context: image-label pairs of other subjects, checked when they come in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from .classes import ClassTable, read_class_table
from .errors import ContextError, InputError
from .geometry import Align, Grid, Reorientation
from .intensity import IntensityScale, quantile_scale
from .io import Source, nifti_files, read_volume, source_of, stem_of, takes_affine
from .placement import CanonicalVolume, placed
from .provenance import Provenance, now
from .regions import View, slabs
from .stored import LAZY_CHUNK
from .views import Mapped, as_dask, mapped, members, turned
from .volume import affine_of, grid_of, make_volume, view_of

Task = Literal["segmentation", "image"]
ChangeKind = Literal["added", "accepted", "removed"]
INTEGER_TOLERANCE = 1e-4
LARGEST_LABEL = 2**31 - 1
LABEL_GRID_CHANGE = (
    "the label's affine differs from its image's; its voxels were taken in the image's order"
)
MOST_LABELS, VALUES_A_LABEL = 32, 4  # what an image has never, and a label never beside it
MOST_CHANGES = 20  # that can be undone; a removed pair stays in memory as long as its change


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


@dataclass(frozen=True, eq=False)
class Change:
    """One change of a context, and what it takes to undo it.

    position : of the first of the pairs, among those of the context.
    places : of each pair, where several were removed that did not lie side by side; else empty.
    came, replaced : entries of the class table that came in, and those that made room.
    """

    kind: ChangeKind
    pairs: tuple[ContextPair, ...]
    position: int
    when: str
    came: ClassTable = field(default_factory=ClassTable)
    replaced: ClassTable = field(default_factory=ClassTable)
    places: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<Change: {self.kind} {', '.join(pair.name for pair in self.pairs)}>"


@dataclass
class ContextSet:
    """An ordered set of pairs with unique names, and the class table they came with.

    `history` has the last `MOST_CHANGES` changes, the newest at the end; `undo` takes them back.
    """

    pairs: list[ContextPair] = field(default_factory=list)
    table: ClassTable = field(default_factory=ClassTable)
    history: list[Change] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContextPair]:
        return iter(self.pairs)

    def __getitem__(self, name: str) -> ContextPair:
        for pair in self.pairs:
            if pair.name == name:
                return pair
        raise ContextError(f"no context pair is called {name!r}; there are {self.names}")

    def __repr__(self) -> str:
        return "\n".join([f"<ContextSet, {len(self)} pairs>", *(f"  {pair}" for pair in self)])

    @property
    def names(self) -> list[str]:
        """Names of the pairs, in order."""
        return [pair.name for pair in self.pairs]

    @property
    def values(self) -> list[int]:
        """Nonzero label values found in any pair, sorted."""
        return sorted({value for pair in self.pairs for value in pair.values})

    @property
    def sources(self) -> list[str]:
        """Where images and labels of the pairs were read from, as `Provenance` tells."""
        origins = [pair.provenance for pair in self.pairs]
        return [path for origin in origins for path in (origin.image, origin.label)]

    def free_name(self, name: str) -> str:
        """Return `name`, or `name-2`, `name-3`, ... where it is taken."""
        free, number = name, 2
        while free in self.names:
            free, number = f"{name}-{number}", number + 1
        return free

    def add(self, *pairs: ContextPair, table: ClassTable | None = None) -> None:
        """Append pairs, as one change; a name that is taken adds none of them.

        table : class names and colours that come with the pairs.
        """
        self._check_names(pairs)
        came = table or ClassTable()
        replaced = self.table.update(came)
        position = len(self)
        self.pairs.extend(pairs)
        if pairs:
            how = pairs[0].provenance.how
            self._remember(Change(how, pairs, position, now(), came, replaced))

    def remove(self, name: str) -> ContextPair:
        """Take a pair out and return it.

        Raises
        ------
        ContextError : no pair of that name.
        """
        pair = self[name]
        position = self.names.index(name)
        del self.pairs[position]
        self._remember(Change("removed", (pair,), position, now()))
        return pair

    def keep(self, names: Sequence[str]) -> list[ContextPair]:
        """Take all other pairs out, as one change, and return them.

        Raises
        ------
        ContextError : a name that no pair has, or none at all.
        """
        kept = {self[name].name for name in names}
        if not kept:
            raise ContextError("a context needs a pair: name one or more to keep")
        left = [place for place, name in enumerate(self.names) if name not in kept]
        removed = tuple(self.pairs[place] for place in left)
        if removed:
            side_by_side = left[-1] - left[0] == len(left) - 1
            self.pairs = [pair for pair in self.pairs if pair.name in kept]
            places = () if side_by_side else tuple(left)
            self._remember(Change("removed", removed, left[0], now(), places=places))
        return list(removed)

    def undo(self) -> Change:
        """Take back the last change and return it.

        Class names that came with pairs go with them, where nothing else was read since.

        Raises
        ------
        ContextError : nothing to take back, or `pairs` were changed past `add` and `remove`.
        """
        if not self.history:
            raise ContextError("nothing to undo: no change of the context is remembered")
        change = self.history[-1]
        removed, size = change.kind == "removed", len(change.pairs)
        start = change.position
        there = self.pairs[start : start + (0 if removed else size)]
        expected = () if removed else change.pairs
        if start > len(self) or [*map(id, there)] != [*map(id, expected)]:
            raise ContextError(f"{change} cannot be undone: the pairs were changed otherwise")
        if removed:
            self._check_names(change.pairs)
            self._put_back(change)
        else:
            del self.pairs[start : start + size]
            self.table.take_back(change.came, change.replaced)
        return self.history.pop()

    def _put_back(self, change: Change) -> None:
        places = change.places or range(change.position, change.position + len(change.pairs))
        pairs = [*self.pairs]
        for number, place in enumerate(places):
            if len(places) != len(change.pairs) or not 0 <= place <= len(pairs):
                raise ContextError(f"{change} cannot be undone: the pairs were changed otherwise")
            pairs.insert(place, change.pairs[number])
        self.pairs = pairs

    def _check_names(self, pairs: Sequence[ContextPair]) -> None:
        names = [pair.name for pair in pairs]
        taken = sorted({name for name in names if name in self.names or names.count(name) > 1})
        if taken:
            raise ContextError(f"context pairs need names of their own; taken: {taken}")

    def _remember(self, change: Change) -> None:
        self.history = [*self.history, change][-MOST_CHANGES:]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the history behind: a worker undoes nothing and has no use for removed pairs."""
        return {**self.__dict__, "history": []}


def find_pairs(images: str | Path, labels: str | Path) -> dict[str, tuple[Path, Path]]:
    """Match the images and labels of an nnU-Net folder: case name to (image, label).

    `imagesTr/CASE_0000.nii.gz` or `imagesTr/CASE.nii.gz` goes with `labelsTr/CASE.nii.gz`.

    Raises
    ------
    ContextError : a missing or empty folder, a second channel, two files of one name, an
        image or label alone.
    """
    if missing := [str(folder) for folder in (images, labels) if not Path(folder).is_dir()]:
        raise ContextError(f"no such folder: {', '.join(missing)}")
    label_files = by_name(list_volumes(labels), stem_of)

    def name_of(path: Path) -> str:
        stem = stem_of(path)
        name = stem if stem in label_files else case_name(path)
        head, _, channel = stem.rpartition("_")
        if name not in label_files and head in label_files and channel.isdigit():
            raise ContextError(
                f"{path}: is channel {channel}; one channel is used, keep the *_0000 files"
            )
        return name

    image_files = by_name(list_volumes(images), name_of)
    if not set(image_files) & set(label_files):
        raise ContextError(
            f"no image in {images} has a label of its name in {labels}: there are "
            f"{_some(image_files)} and {_some(label_files)}"
        )
    lonely = (
        (set(image_files) - set(label_files), f"an image in {images} but no label in {labels}"),
        (set(label_files) - set(image_files), f"a label in {labels} but no image in {images}"),
    )
    if told := [f"{_some(names)}: {what}" for names, what in lonely if names]:
        raise ContextError("; ".join(told))
    return {name: (image_files[name], label_files[name]) for name in sorted(image_files)}


def _some(names: Iterable[str], most: int = 5) -> str:
    """Return the first few names, in order."""
    ordered = sorted(names)
    more = f", ... ({len(ordered)} in all)" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def by_name(files: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Map names to files; two files of one name are a `ContextError`."""
    found: dict[str, Path] = {}
    for path in files:
        name = name_of(path)
        if name in found:
            raise ContextError(f"two files are the case {name!r}: {found[name]}, {path}; keep one")
        found[name] = path
    return found


def list_volumes(folder: str | Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted; hidden files are passed over."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ContextError(f"no such folder: {folder}")
    files = nifti_files(folder)
    if not files:
        raise ContextError(f"no NIfTI file in {folder}")
    return files


def case_name(path: str | os.PathLike[str]) -> str:
    """Return an image file's case name: no extension, no `_0000`."""
    return stem_of(path).removesuffix("_0000")


def find_class_table(*folders: str | Path) -> ClassTable | None:
    """Read `dataset.json` in one of these folders or beside them, if there is one."""
    for folder in folders:
        for place_ in (Path(folder), Path(folder).parent):
            if (place_ / "dataset.json").is_file():
                try:
                    return read_class_table(place_ / "dataset.json")
                except InputError as error:
                    tell(str(error))
    return None
