"""The file of a bank: a zip of an index, `bank.json`, and the members that it declares.

A bank may come from anyone. Its members are read as streams, under limits and checksums, and
nothing in it is ever unpacked to a path of its own choosing.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError, first_line
from .files import in_words, write_atomically
from .json_fields import Fields, parse_json

FORMAT = 1
INDEX = "bank.json"
LARGEST_BANK = 2**33  # bytes inside
LARGEST_INDEX = 2**25
COMPRESSION_LEVEL = 1  # scans are mostly noise: more effort gains little
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


class BankWriter:
    """An open bank that takes members."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self.members: dict[str, dict[str, Any]] = {}

    def add(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a member from start to end, part by part."""
        digest, size = hashlib.sha256(), 0
        with self._file.open(name, "w", force_zip64=True) as member:
            for part in parts:
                member.write(part)
                digest.update(part)
                size += len(part)
        self.members[name] = {"bytes": size, "sha256": digest.hexdigest()}


def write_bank_file(path: Path, fill: Callable[[BankWriter], dict[str, Any]]) -> Path:
    """Write a bank, whole or not at all; what was at `path` stays until the end.

    fill : adds the members and returns the rest of the index.

    Raises
    ------
    OutputError : the place cannot be written.
    InputError : an index that would be too large to be read again.
    """

    def write(partial: Path) -> None:
        deflated = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(partial, "w", deflated, compresslevel=COMPRESSION_LEVEL) as file:
            writer = BankWriter(file)
            index = {"format": FORMAT, **fill(writer), "members": dict(writer.members)}
            content = json.dumps(index).encode()
            if len(content) > LARGEST_INDEX:
                raise InputError(f"{path}: too many pairs for one bank; save them in several")
            writer.add(INDEX, [content])

    return write_atomically(path, write)


class Member:
    """One member of an open bank, read from start to end; what is read is counted and hashed."""

    def __init__(self, file: IO[bytes], where: str, size: int, sha256: str | None) -> None:
        self.where = where
        self.size = size
        self._file = file
        self._left = size
        self._sha256 = sha256
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes.

        Raises
        ------
        InputError : fewer are left, or they are damaged.
        """
        if size > self._left:
            raise InputError(f"{self.where}: ends too early")
        content = self._read(size)
        if len(content) < size:
            raise InputError(f"{self.where}: cut short")
        self._left -= size
        self._digest.update(content)
        return content

    def finish(self) -> None:
        """Check that all was read and is what was once written.

        Raises
        ------
        InputError : more than was declared, or another checksum.
        """
        if self._left or self._read(1):
            raise InputError(f"{self.where}: is longer than what belongs there")
        if self._sha256 not in (None, self._digest.hexdigest()):
            raise InputError(f"{self.where}: has another checksum than when it was saved")

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except DAMAGE as error:
            raise InputError(f"{self.where}: damaged ({first_line(error)})") from error


class BankFile:
    """An open bank, found sound as far as can be told without reading its members."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self.index = self._read_index()
        self._members = self._declared()

    @property
    def members(self) -> set[str]:
        """Names of all members but the index."""
        return set(self._members)

    @property
    def size(self) -> int:
        """Bytes inside, unpacked."""
        return sum(info.file_size for info in self._file.infolist())

    @contextmanager
    def open(self, name: str) -> Iterator[Member]:
        """Open a declared member for reading.

        Raises
        ------
        InputError : damaged.
        """
        declared = self._members[name]
        with self._stream(name) as file:
            size, sha256 = declared.count("bytes"), declared.get("sha256", str)
            yield Member(file, f"{self.path}: {name}", size, sha256)

    def _read_index(self) -> Fields:
        where = f"{self.path}: {INDEX}"
        if INDEX not in self._file.namelist():
            raise InputError(f"{self.path}: not a bank, it has no {INDEX}")
        with self._stream(INDEX) as file:
            size = self._file.getinfo(INDEX).file_size
            if size > LARGEST_INDEX:
                raise InputError(
                    f"{where} has {in_words(size)}, at most {in_words(LARGEST_INDEX)} are read"
                )
            member = Member(file, where, size, sha256=None)
            content = member.read(size)
            member.finish()
        index = parse_json(content, where)
        version = index.count("format")
        if version != FORMAT:
            raise InputError(
                f"{self.path}: a bank of format {version}, this medverse_nb reads {FORMAT}; "
                f"{'update medverse_nb' if version > FORMAT else 'it was not written by it'}"
            )
        return index

    def _declared(self) -> dict[str, Fields]:
        """Return what the index says of the members: those in the file, no more and no fewer."""
        declared = self.index.fields("members")
        sizes = {info.filename: info.file_size for info in self._file.infolist()}
        del sizes[INDEX]
        if unknown := sorted(set(sizes) - set(declared.value)):
            raise InputError(
                f"{self.path}: has members that its index does not name: {unknown[:5]}"
            )
        if missing := sorted(set(declared.value) - set(sizes)):
            raise InputError(f"{self.path}: lacks members that its index names: {missing[:5]}")
        members = {name: declared.fields(name) for name in sizes}
        for name, fields in members.items():
            if fields.count("bytes") != sizes[name]:
                raise InputError(
                    f"{self.path}: {name} has {sizes[name]} bytes, saved were {fields.count('bytes')}"
                )
        return members

    @contextmanager
    def _stream(self, name: str) -> Iterator[IO[bytes]]:
        try:
            file = self._file.open(name)
        except DAMAGE as error:
            raise InputError(f"{self.path}: {name}: damaged ({first_line(error)})") from error
        with file:
            yield file


@contextmanager
def open_bank_file(path: Path, max_bytes: int = LARGEST_BANK) -> Iterator[BankFile]:
    """Open a bank for reading.

    max_bytes : that all its members may have together, unpacked.

    Raises
    ------
    InputError : missing, no bank, cut short, of a newer version, too large, with a member that
        is declared nowhere, stands there twice or lies outside, or an index that is not one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such bank")
    try:
        file = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"{path}: not a bank, or cut short ({first_line(error)})") from error
    with file:
        _check_directory(file.infolist(), path, max_bytes)
        yield BankFile(path, file)


def _check_directory(members: list[zipfile.ZipInfo], path: Path, max_bytes: int) -> None:
    """Refuse, before anything is unpacked, what no bank has."""
    names = Counter(member.filename for member in members)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise InputError(f"{path}: has two members of one name: {twice[:5]}")
    for member in members:
        name = member.filename
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: member {name!r} is a link")
        parts = re.split(r"[\\/]", name)
        if parts[0] == "" or ".." in parts or ":" in name:
            raise InputError(f"{path}: member {name!r} lies outside the bank")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: member {name!r} is packed in a way that banks are not")
    size = sum(member.file_size for member in members)
    if size > max_bytes:
        raise InputError(
            f"{path}: has {in_words(size)} inside, at most {in_words(max_bytes)} are read; if you "
            f"trust it, pass max_bytes={size}"
        )
