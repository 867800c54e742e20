"""The bank: a session's context, with its history, in one file.

A bank is a zip of `bank.json` and NIfTI members, `pairs/0001/image.nii` and `label.nii`. The
index, format 1, has

    format, saved      1 and the time
    session            model, weights_sha256, task, align, device, precision, tuning
    classes            [{value, name, colour}], the class table
    pairs              [{name, changes, provenance, image, label}], see `bank_volumes`
    context            numbers of the pairs that are in the context, in order
    history            [{kind, pairs, position, when, came, replaced}], the oldest first; where pairs
                       that did not lie side by side were removed together also `places`
    members            {name: {bytes, sha256}}, every other file of the zip

Pairs that were removed come after those of the context; only `undo` has use for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bank_file import LARGEST_BANK, BankFile, BankWriter, open_bank_file, write_bank_file
from .bank_volumes import Check, StoredVolume, hash_voxels, store_volume
from .checks import tell
from .classes import ClassTable
from .context import Change, ChangeKind, ContextSet
from .errors import ContextError, InputError, OutputError
from .files import check_writable, in_words
from .geometry import ALIGNS, Align, orientation_of, spacing_of
from .json_fields import Fields
from .model.config import PRECISIONS, Precision
from .pair import LARGEST_LABEL, ContextPair, Task
from .provenance import How, Provenance, now

SUFFIX = ".mvctx"
FARTHEST_MM = 1e-2  # between the affines of an image and its label, as when pairs are made


@dataclass(frozen=True)
class SavedSession:
    """What a session was when it was saved, but for its context.

    tuning : `Tuning.to_dict` of a tuned network, which itself is not kept.
    """

    model: str
    weights_sha256: str
    task: Task
    align: Align
    device: str
    precision: Precision
    tuning: dict[str, Any] | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> SavedSession:
        """Read what `asdict` gave.

        Raises
        ------
        InputError : anything that is not as it gives it.
        """
        return cls(
            model=fields.get("model", str),
            weights_sha256=fields.get("weights_sha256", str),
            task=fields.one_of("task", get_args(Task)),
            align=fields.one_of("align", ALIGNS),
            device=fields.get("device", str),
            precision=fields.one_of("precision", PRECISIONS),
            tuning=fields.optional("tuning", dict),
        )

    def precision_on(self, device: str) -> Literal["auto"] | Precision:
        """Return the precision to go on in: the same on the same kind of device, else "auto"."""
        return self.precision if device == self.device else "auto"

    def tell_differences(self, path: Path, weights_sha256: str) -> None:
        """Warn where a session with these weights may not predict as the saved one did."""
        if weights_sha256 != self.weights_sha256:
            tell(
                f"{path}: was saved with other weights, sha256 {self.weights_sha256[:12]}..., now "
                f"{weights_sha256[:12]}...; predictions will differ"
            )
        if self.tuning:
            tell(
                f"{path}: was saved with a tuned network, which a bank does not keep; this session "
                "predicts with the untuned one until you tune() again, or load with model= of the "
                "weights that session.tuning.save wrote"
            )


def lasting_name(model: str) -> str:
    """Return a model's name; of a weights file its whole path, which holds in any folder."""
    path = Path(model)
    return str(path.absolute()) if path.suffix in (".safetensors", ".ckpt") else model


def write_bank(
    path: Path, context: ContextSet, session: SavedSession, *, images: bool, removed: bool
) -> Path:
    """Write a bank, whole or not at all; volumes are read slab by slab.

    Parameters
    ----------
    images : False keeps the labels alone; each image must still be at the path it came from.
    removed : keep removed pairs that `undo` can bring back. Without them, and without images,
        the history begins after the last removal.

    Raises
    ------
    InputError : a volume that cannot be kept, or without images one that is not at its path.
    OutputError : the place cannot be written; what was there is as it was.
    """
    if path.suffix.lower() != SUFFIX:
        raise OutputError(f"{path}: a bank is written as {SUFFIX}, such as {path.stem}{SUFFIX}")
    check_writable(path)
    if session.tuning:
        tell(
            f"{path}: a bank does not keep the tuned network; the session that is loaded from it "
            "predicts with the untuned one. Keep the weights with session.tuning.save(...) and "
            "load with model= of that file"
        )
    history = _history_to_keep(context, removed=removed and images)
    pairs = _all_pairs(context.pairs, history)
    number = {id(pair): position for position, pair in enumerate(pairs)}

    def fill(bank: BankWriter) -> dict[str, Any]:
        return {
            "saved": now(),
            "session": asdict(session),
            "classes": _table_to_list(context.table),
            "pairs": [_store_pair(bank, n, pair, images) for n, pair in enumerate(pairs, 1)],
            "context": [number[id(pair)] for pair in context],
            "history": [
                {
                    "kind": change.kind,
                    "pairs": [number[id(pair)] for pair in change.pairs],
                    "position": change.position,
                    "when": change.when,
                    "came": _table_to_list(change.came),
                    "replaced": _table_to_list(change.replaced),
                    **({"places": list(change.places)} if change.places else {}),
                }
                for change in history
            ],
        }

    return write_bank_file(path, fill)


def _history_to_keep(context: ContextSet, *, removed: bool) -> list[Change]:
    """Return the last changes, back to one that needs a pair not kept or cannot be undone."""
    trial, kept = _copy_of(context.table, context.pairs, context.history), list[Change]()
    while trial.history and (removed or trial.history[-1].kind != "removed"):
        try:
            kept.insert(0, trial.undo())
        except ContextError:  # the pairs were changed past `add` and `remove`
            break
    return kept


def _copy_of(
    table: ClassTable, pairs: Sequence[ContextPair], history: Sequence[Change]
) -> ContextSet:
    context = ContextSet(table=ClassTable({**table.names}, {**table.colours}))
    context.add(*pairs)
    context.history = [*history]
    return context


def _all_pairs(pairs: Sequence[ContextPair], history: Sequence[Change]) -> list[ContextPair]:
    """Return these pairs, then those that only the history knows, each once."""
    remembered = (pair for change in history for pair in change.pairs)
    return list({id(pair): pair for pair in (*pairs, *remembered)}.values())


def _store_pair(bank: BankWriter, number: int, pair: ContextPair, images: bool) -> dict[str, Any]:
    folder = f"pairs/{number:04d}"
    if images:
        image = store_volume(bank, f"{folder}/image.nii", pair.image)
    else:
        image = _left_where_it_is(pair)
    return {
        "name": pair.name,
        "changes": list(pair.changes),
        "provenance": pair.provenance.to_dict(),
        "image": image.to_dict(),
        "label": store_volume(bank, f"{folder}/label.nii", pair.label).to_dict(),
    }


def _left_where_it_is(pair: ContextPair) -> StoredVolume:
    """Describe an image that is not stored; it is looked up, so that a bank can be read again."""
    owner, path = f"context pair {pair.name!r}", pair.provenance.image
    if path == "array":
        raise InputError(
            f"{owner}: its image came from no file where it could be found again; save with "
            "images=True"
        )
    image = StoredVolume.of(pair.image, voxels_sha256=hash_voxels(pair.image))
    image.look_up(path, owner)
    return image


def _table_to_list(table: ClassTable) -> list[dict[str, Any]]:
    return [
        {"value": value, "name": table.names.get(value), "colour": table.colours.get(value)}
        for value in sorted({*table.names, *table.colours})
    ]


def _read_table(entries: Sequence[Fields]) -> ClassTable:
    table = ClassTable()
    for entry in entries:
        value = entry.get("value", int)
        if (name := entry.optional("name", str)) is not None:
            table.names[value] = name
        if entry.optional("colour", list) is not None:
            red, green, blue = entry.list_of("colour", int, 3)
            table.colours[value] = (red, green, blue)
    return table


class SavedPair(NamedTuple):
    """What the index says of one pair."""

    name: str
    changes: tuple[str, ...]
    provenance: Provenance
    image: StoredVolume
    label: StoredVolume

    def to_dict(self) -> dict[str, Any]:
        """Return what to tell of it, as plain JSON values."""
        affine = self.image.geometry.affine
        return {
            "name": self.name,
            "shape": list(self.image.shape),
            "spacing_mm": [round(step, 4) for step in spacing_of(affine)],
            "orientation": orientation_of(affine),
            "image_inside": self.image.member is not None,
            **self.provenance.to_dict(),
        }


class SavedChange(NamedTuple):
    """A change whose pairs are numbers; `change` has none."""

    pairs: list[int]
    change: Change


class Bank:
    """An open bank whose index is sound; voxels are read by `read_context`.

    Raises
    ------
    InputError : an index that is not as this package writes it.
    """

    def __init__(self, file: BankFile) -> None:
        self._file = file
        index = file.index
        self.saved = index.get("saved", str)
        self.session = SavedSession.from_fields(index.fields("session"))
        self.table = _read_table(index.objects("classes"))
        self.pairs = [_read_pair(pair, self.session.task) for pair in index.objects("pairs")]
        self.context = self._numbers(index, "context")
        self.history = [
            SavedChange(self._numbers(change, "pairs"), _read_change(change))
            for change in index.objects("history")
        ]
        self._check_members()
        self._check_history()

    @property
    def names(self) -> list[str]:
        """Names of the pairs in the context, in order."""
        return [self.pairs[number].name for number in self.context]

    def to_dict(self) -> dict[str, Any]:
        """Return what is inside, as plain JSON values."""
        return {
            "saved": self.saved,
            "size": in_words(self._file.size),
            **asdict(self.session),
            "classes": _table_to_list(self.table),
            "pairs": [self.pairs[number].to_dict() for number in self.context],
            "history": [
                {
                    "kind": change.kind,
                    "pairs": [self.pairs[number].name for number in numbers],
                    "when": change.when,
                }
                for numbers, change in self.history
            ],
        }

    def read_context(self) -> ContextSet:
        """Return the context, with its history.

        All voxels are checked before any are kept, so that a bad bank leaves nothing behind.

        Raises
        ------
        InputError : a damaged member, voxels that are no image or label, or an image that is
            not stored and no longer at its path, or another one.
        OutputError : no scratch space for large volumes.
        """
        for pair in self.pairs:
            for volume, check in self._checked_volumes(pair):
                if volume.member:
                    volume.check(self._file, check)
        left = {
            number: pair.image.look_up(pair.provenance.image, f"context pair {pair.name!r}")
            for number, pair in enumerate(self.pairs)
            if not pair.image.member
        }
        made = []
        for number, pair in enumerate(self.pairs):
            (image, check_image), (label, check_label) = self._checked_volumes(pair)
            scan = left[number] if number in left else image.read(self._file, check_image)
            mask = label.read(self._file, check_label)
            task, changes = self.session.task, pair.changes
            made.append(ContextPair(pair.name, scan, mask, task, changes, pair.provenance))
        return self._context_of(made)

    def _context_of(self, pairs: Sequence[ContextPair]) -> ContextSet:
        history = [
            replace(change, pairs=tuple(pairs[number] for number in numbers))
            for numbers, change in self.history
        ]
        return _copy_of(self.table, [pairs[number] for number in self.context], history)

    def _checked_volumes(self, pair: SavedPair) -> tuple[tuple[StoredVolume, Check], ...]:
        """Return image and label, each with what its voxels have to pass."""
        where = f"{self._file.path}: context pair {pair.name!r}"
        finite = partial(_check_finite, where=where)
        if self.session.task == "image":
            return (pair.image, finite), (pair.label, finite)
        return (pair.image, finite), (pair.label, partial(_check_classes, where=where))

    def _numbers(self, fields: Fields, key: str) -> list[int]:
        """Return numbers of pairs, each once."""
        numbers = fields.list_of(key, int)
        if not all(0 <= n < len(self.pairs) for n in numbers) or len({*numbers}) < len(numbers):
            raise fields.wrong(key, f"must be numbers of the {len(self.pairs)} pairs, each once")
        return numbers

    def _check_members(self) -> None:
        """Refuse members that serve no pair, or two of them: sizes are counted by member."""
        labels = [pair.label.member or "" for pair in self.pairs]
        images = [pair.image.member for pair in self.pairs if pair.image.member]
        if sorted(labels + images) != sorted(self._file.members):
            raise InputError(f"{self._file.index.where}: pairs and members do not fit each other")

    def _check_history(self) -> None:
        """Take everything back, on pairs without voxels."""
        nothing, task = xr.DataArray(), self.session.task
        try:
            trial = self._context_of(
                [ContextPair(pair.name, nothing, nothing, task) for pair in self.pairs]
            )
            while trial.history:
                trial.undo()
        except ContextError as error:
            raise InputError(f"{self._file.index.where}: no possible context: {error}") from error


@contextmanager
def open_bank(path: Path, max_bytes: int = LARGEST_BANK) -> Iterator[Bank]:
    """Open a bank and check its index; nothing is unpacked.

    max_bytes : that all its members may have together, unpacked.

    Raises
    ------
    InputError : no bank, damaged, unsafe, of a newer version, or too large.
    """
    with open_bank_file(path, max_bytes) as file:
        yield Bank(file)


def _read_pair(fields: Fields, task: Task) -> SavedPair:
    image = StoredVolume.from_fields(fields.fields("image"))
    label = StoredVolume.from_fields(fields.fields("label"))
    near = np.allclose(image.geometry.affine, label.geometry.affine, atol=FARTHEST_MM)
    if image.shape != label.shape or not near:
        raise InputError(f"{fields.where}: image and label lie on two grids")
    if task == "segmentation" and label.dtype.kind not in "iu":
        raise fields.fields("label").wrong("dtype", "must be of whole numbers")
    return SavedPair(
        fields.get("name", str),
        tuple(fields.list_of("changes", str)),
        _read_provenance(fields.fields("provenance")),
        image,
        label,
    )


def _read_provenance(fields: Fields) -> Provenance:
    return Provenance(
        image=fields.get("image", str),
        label=fields.get("label", str),
        how=fields.one_of("how", get_args(How)),
        when=fields.get("when", str),
        target=fields.optional("target", str),
        model=fields.optional("model", str),
        weights_sha256=fields.optional("weights_sha256", str),
        tuned=fields.optional("tuned", bool),
        corrected=fields.optional("corrected", bool),
    )


def _read_change(fields: Fields) -> Change:
    return Change(
        kind=fields.one_of("kind", get_args(ChangeKind)),
        pairs=(),
        position=fields.count("position"),
        when=fields.get("when", str),
        came=_read_table(fields.objects("came")),
        replaced=_read_table(fields.objects("replaced")),
        places=tuple(fields.list_of("places", int)) if "places" in fields.value else (),
    )


def _check_finite(voxels: NDArray[Any], where: str) -> None:
    if not np.isfinite(voxels).all():
        raise InputError(f"{where}: has voxels that are not finite")


def _check_classes(labels: NDArray[np.integer], where: str) -> None:
    if labels.min() < 0 or labels.max() > LARGEST_LABEL:
        raise InputError(
            f"{where}: has label values from {labels.min()} to {labels.max()}, not 0 to {LARGEST_LABEL}"
        )
