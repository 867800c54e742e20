"""Folders of labelled scans: which files belong together, and what their classes are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .checks import tell
from .classes import ClassTable, read_class_table
from .errors import ContextError, InputError
from .io import nifti_files, stem_of


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
