"""A volume in a bank: voxels as a NIfTI member, and in the index what NIfTI cannot hold.

NIfTI rounds the affine to float32, knows no bool and no float16, and lays voxels out in one way;
the index keeps geometry, dtype and layout, so that what is read is bit for bit what was saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .bank_file import BankFile, BankWriter, Member
from .errors import GeometryError, InputError, first_line
from .geometry import Shape
from .io import read_volume, takes_affine
from .json_fields import Fields
from .nifti import grid_attrs, nifti_parts
from .regions import read
from .scratch import unpack
from .stored import LAZY_CHUNK, is_large, slab_depth, slabs_along
from .views import as_dask, mapped
from .volume import DIMS, Geometry, view_of

# As what NIfTI holds each dtype; all of them exactly.
STORED = {
    "bool": "uint8", "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16",
    "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
    "float16": "float32", "float32": "float32", "float64": "float64",
}  # fmt: skip
DTYPES = {
    dtype.str for name in STORED for dtype in (np.dtype(name), np.dtype(name).newbyteorder("S"))
}
HEADER_SIZE, VOXELS_AT, LARGEST_SIDE = 348, 352, 32767
Check = Callable[[NDArray[Any]], None]


@dataclass(frozen=True)
class StoredVolume:
    """All that the index says of one volume.

    order : the array's axes as they lie in memory, the slowest first; sums come out different
        in their last bits for another order.
    member : the NIfTI file in the bank, None for an image that stays at its path.
    voxels_sha256 : of the voxels along x, then y, then z, where there is no member.
    """

    name: str
    dtype: np.dtype[Any]
    order: tuple[int, ...]
    geometry: Geometry
    changes: tuple[str, ...]
    member: str | None = None
    voxels_sha256: str | None = None

    @classmethod
    def of(
        cls, volume: xr.DataArray, member: str | None = None, voxels_sha256: str | None = None
    ) -> StoredVolume:
        """Describe a volume.

        Raises
        ------
        InputError : of a dtype that a bank cannot keep.
        """
        if volume.dtype.str not in DTYPES:
            raise InputError(f"{volume.name}: a bank cannot keep {volume.dtype}; pass float64")
        return cls(
            name=str(volume.name or "volume"),
            dtype=volume.dtype,
            order=_memory_order(volume),
            geometry=Geometry.of(volume),
            changes=tuple(volume.attrs.get("changes", ())),
            member=member,
            voxels_sha256=voxels_sha256,
        )

    @classmethod
    def from_fields(cls, fields: Fields) -> StoredVolume:
        """Read what `to_dict` gave.

        Raises
        ------
        InputError : anything that is not as it gives it.
        """
        x, y, z = fields.list_of("shape", int, 3)
        if not 1 <= min(x, y, z) <= max(x, y, z) <= LARGEST_SIDE:
            raise fields.wrong("shape", f"must be from 1 to {LARGEST_SIDE}, as in NIfTI")
        order = fields.list_of("order", int, 3)
        if sorted(order) != [0, 1, 2]:
            raise fields.wrong("order", "must have 0, 1 and 2")
        return cls(
            name=fields.get("name", str),
            dtype=np.dtype(fields.one_of("dtype", DTYPES)),
            order=tuple(order),
            geometry=_read_geometry(fields.fields("geometry"), (x, y, z)),
            changes=tuple(fields.list_of("changes", str)),
            member=fields.optional("member", str),
            voxels_sha256=fields.optional("voxels_sha256", str),
        )

    @property
    def shape(self) -> Shape:
        """Voxels along each axis of the array."""
        x, y, z = self.geometry.shape
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "order": list(self.order),
            "geometry": {
                "dims": list(self.geometry.dims),
                "axes_to_ras": self.geometry.axes_to_ras.tolist(),
                "spacing_mm": self.geometry.spacing_mm.tolist(),
                "positions_mm": [_positions(places) for places in self.geometry.positions_mm],
            },
            "changes": list(self.changes),
            "member": self.member,
            "voxels_sha256": self.voxels_sha256,
        }

    def check(self, bank: BankFile, check: Check) -> None:
        """Read every voxel and keep none.

        check : called with each slab.

        Raises
        ------
        InputError : damaged, not what the index says, or from `check`.
        """
        for _ in self._slabs(bank, check):
            pass

    def read(self, bank: BankFile, check: Check) -> xr.DataArray:
        """Return the volume; a large one lies unpacked in scratch space, with a warning.

        Raises
        ------
        InputError : as `check`.
        OutputError : no scratch space for a large one.
        """
        slabs = self._slabs(bank, check)
        data: Any
        if is_large(self.shape):
            view = unpack(slabs, self.shape, self.dtype.newbyteorder("="), self.name)
            data = as_dask(mapped(view, partial(_laid_out, order=self.order)), LAZY_CHUNK)
        else:
            empty = np.empty([self.shape[axis] for axis in self.order], self.dtype)
            data, start = empty.transpose(np.argsort(self.order)), 0
            for slab in slabs:
                data[:, :, start : start + slab.shape[2]] = slab
                start += slab.shape[2]
        attrs = {"changes": list(self.changes), **self._grid_attrs(bank)}
        return self.geometry.volume(data, name=self.name, attrs=attrs)

    def look_up(self, path: str, owner: str) -> xr.DataArray:
        """Return the volume from the path it once came from.

        owner : told in messages, such as "context pair 'sub-01'".

        Raises
        ------
        InputError : not there any more, unreadable, or not as it was.
        """
        if not Path(path).exists():
            raise InputError(
                f"{owner}: its image is not in the bank and not at {path} any more; put it back there"
            )
        own_affine = not takes_affine(path)
        volume = read_volume(path, None if own_affine else self.geometry.affine, name=self.name)
        same = (
            volume.shape == self.shape
            and volume.dtype.newbyteorder("=") == self.dtype.newbyteorder("=")
            and (not own_affine or Geometry.of(volume) == self.geometry)
            and hash_voxels(volume) == self.voxels_sha256
        )
        if not same:
            raise InputError(
                f"{owner}: the image at {path} is not the one that the bank was saved with; put "
                "that one back, or save the bank with its images"
            )
        return self.geometry.volume(self._in_order(volume), name=self.name, attrs={**volume.attrs})

    def _in_order(self, volume: xr.DataArray) -> Any:
        laid_out = mapped(view_of(volume), partial(_laid_out, order=self.order))
        return laid_out if isinstance(laid_out, np.ndarray) else as_dask(laid_out, LAZY_CHUNK)

    def _grid_attrs(self, bank: BankFile) -> dict[str, Any]:
        assert self.member is not None
        with bank.open(self.member) as member:
            return grid_attrs(_read_header(member))

    def _slabs(self, bank: BankFile, check: Check) -> Iterator[NDArray[Any]]:
        """Yield slabs of planes (X, Y, planes), as they follow each other in the member."""
        assert self.member is not None
        x, y, z = self.shape
        with bank.open(self.member) as member:
            header = _read_header(member)
            stored = header.get_data_dtype()
            expected = np.dtype(STORED[self.dtype.name])
            size = VOXELS_AT + x * y * z * expected.itemsize
            if (header.get_data_shape(), stored.newbyteorder("="), member.size) != (
                self.shape, expected, size,
            ):  # fmt: skip
                raise InputError(
                    f"{member.where}: is {stored} of shape {header.get_data_shape()} in "
                    f"{member.size} bytes, its index says {expected} of shape {self.shape}"
                )
            depth = slab_depth(self.shape, stored.itemsize)
            for start in range(0, z, depth):
                planes = min(depth, z - start)
                content = member.read(x * y * planes * stored.itemsize)
                voxels = np.frombuffer(content, stored).reshape((x, y, planes), order="F")
                with np.errstate(over="ignore"):  # `check` finds what became infinite
                    slab = voxels.astype(self.dtype.newbyteorder("="), copy=False)
                check(slab)
                yield slab
            member.finish()


def store_volume(bank: BankWriter, member: str, volume: xr.DataArray) -> StoredVolume:
    """Write a volume as a member, slab by slab.

    Raises
    ------
    InputError : of a dtype or a size that NIfTI cannot hold, or a lazy one whose file changed.
    """
    described = StoredVolume.of(volume, member)
    try:
        bank.add(member, nifti_parts(volume, np.dtype(STORED[volume.dtype.name])))
    except HeaderDataError as error:
        raise InputError(f"{volume.name}: NIfTI cannot hold it ({first_line(error)})") from error
    return described


def hash_voxels(volume: xr.DataArray) -> str:
    """Return the SHA-256 of a volume's voxels along x, then y, then z; geometry is not in it."""
    digest, native = hashlib.sha256(), volume.dtype.newbyteorder("=")
    depth = slab_depth(volume.shape, volume.dtype.itemsize)
    for _, slab in slabs_along(view_of(volume), 2, depth):
        digest.update(np.asarray(slab, native).tobytes(order="F"))
    return digest.hexdigest()


def _read_header(member: Member) -> nib.Nifti1Header:
    """Read the header, and the four bytes that tell that no extension follows."""
    content, extension = member.read(HEADER_SIZE), member.read(VOXELS_AT - HEADER_SIZE)
    try:
        header = nib.Nifti1Header(content, check=True)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{member.where}: not NIfTI ({first_line(error)})") from error
    plain = header.get_slope_inter() in ((1, 0), (None, None))
    if any(extension) or header.get_data_offset() != VOXELS_AT or not plain:
        raise InputError(f"{member.where}: not NIfTI as banks hold it, scaled or with extensions")
    return header


def _memory_order(volume: xr.DataArray) -> tuple[int, ...]:
    """Return the axes as they lie in memory, the slowest first; of a lazy volume, once read."""
    x, y, z = (slice(0, min(2, side)) for side in volume.shape)
    strides = read(view_of(volume), (x, y, z)).strides
    return tuple(sorted(range(3), key=lambda axis: -abs(strides[axis])))


def _laid_out(voxels: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    """Return the same voxels with their axes in this order in memory."""
    return np.ascontiguousarray(voxels.transpose(order)).transpose(np.argsort(order))


def _positions(places: NDArray[np.float64]) -> Any:
    """Return positions as JSON: start and step where these give every bit of them."""
    start, step = float(places[0]), float(places[1] - places[0]) if len(places) > 1 else 0.0
    even = np.array_equal(start + step * np.arange(len(places)), places)
    return {"start": start, "step": step} if even else places.tolist()


def _read_geometry(fields: Fields, shape: Shape) -> Geometry:
    dims = fields.list_of("dims", str, 3)
    if sorted(dims) != sorted(DIMS):
        raise fields.wrong("dims", "must be x, y and z")
    places = fields.get("positions_mm", list)
    if len(places) != 3:
        raise fields.wrong("positions_mm", "must have 3 entries")
    axes = [
        _read_positions(Fields({"positions": place}, f"{fields.where}.positions_mm[{axis}]"), size)
        for axis, (place, size) in enumerate(zip(places, shape, strict=True))
    ]
    axes_to_ras = fields.numbers("axes_to_ras", (4, 4))
    spacing_mm = fields.numbers("spacing_mm", (3,))
    geometry = Geometry(tuple(dims), axes_to_ras, spacing_mm, tuple(axes))
    try:
        _ = geometry.affine
    except GeometryError as error:
        raise GeometryError(f"{fields.where}: {error}") from error
    return geometry


def _read_positions(fields: Fields, size: int) -> NDArray[np.float64]:
    if type(fields.value["positions"]) is list:
        return fields.numbers("positions", (size,))
    even = fields.fields("positions")
    return even.numbers("start", ()) + even.numbers("step", ()) * np.arange(size)
