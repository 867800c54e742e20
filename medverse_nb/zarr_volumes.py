"""Volumes in zarr folders: a plain array of three axes, or an OME-Zarr image.

The metadata is read here, as JSON, and judged before zarr decodes a single chunk.

Source: OME-Zarr (NGFF) 0.4 and 0.5; its RFC 4 for anatomical orientation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel.orientations as nio
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .checks import (
    FOURTH_DROPPED,
    affine_or_default,
    check_numbers,
    checked,
    checked_shape,
    refuse_affine,
    tell,
)
from .errors import InputError, MedverseError, OutputError, first_line
from .files import check_place, write_atomically
from .geometry import Affine, spacing_of
from .regions import read
from .stored import LAZY_CHUNK, is_large, slab_depth, slabs_along
from .views import as_dask, mapped
from .volume import affine_of, view_of
from .zarr_files import (
    FORMAT,
    ZarrVoxels,
    create_array,
    create_group,
    open_array,
    write_region,
)

MARKS = ("zarr.json", ".zarray", ".zgroup")
OURS = "medverse_nb"  # attribute with what OME-Zarr has no word for: the whole affine
AXES = ("x", "y", "z")
LARGEST_CHUNK = 2**31  # bytes: as much as one decoded chunk may take
MILLIMETRES = {
    "angstrom": 1e-7, "nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0,
    "decimeter": 100.0, "meter": 1000.0, "inch": 25.4,
}  # fmt: skip
DIRECTIONS = {
    "left-to-right": (0, 1), "right-to-left": (0, -1), "posterior-to-anterior": (1, 1),
    "anterior-to-posterior": (1, -1), "inferior-to-superior": (2, 1), "superior-to-inferior": (2, -1),
}  # fmt: skip
WORDS = {direction: words for words, direction in DIRECTIONS.items()}
# Of numbers only. "pickle" could run code; it, "json2", "msgpack2" and "vlen-*" give objects.
CODECS = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "cast_value", "crc32", "crc32c",
    "delta", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma",
    "packbits", "pcodec", "quantize", "scale_offset", "sharding_indexed", "shuffle", "transpose",
    "zfpy", "zlib", "zstd",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """What a folder's metadata says: an array or a group, and its attributes."""

    folder: Path
    format: int
    is_array: bool
    document: dict[str, Any]
    attributes: dict[str, Any]


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr array or group."""
    return any((folder / mark).is_file() for mark in MARKS)


def is_plain_array(folder: Path) -> bool:
    """Whether a folder is a zarr array by itself, not an image with a geometry."""
    return is_zarr(folder) and _node(folder, folder.name).is_array


def read_zarr(folder: Path, affine: Any, name: str) -> xr.DataArray:
    """Read a zarr array, or the first level of an OME-Zarr image, as `io.read_volume` does.

    Axes of an image come in the order x, y, z, whatever the order in the file; time and
    channel axes of size one are left out. Its affine is the one `write_zarr` noted, else
    that of scale, translation and orientation; without an orientation the axes are taken to
    run to the right, to the front and up, with a warning.
    """
    node = _node(folder, name)
    if node.is_array:
        affine = affine if affine is not None else _noted_affine(node)
        shape = _shape(node, name)
        checked_shape(shape, name)
        changes = [FOURTH_DROPPED] if len(shape) == 4 else []
        return _volume(node, (0, 1, 2), affine_or_default(affine, name), name, changes)
    refuse_affine(affine, "an OME-Zarr image")
    try:
        return _read_image(node, name)
    except MedverseError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: its OME-Zarr metadata is not understood ({type(error).__name__}: "
            f"{first_line(error)}); 0.4 and 0.5 are read"
        ) from error


def _node(folder: Path, name: str) -> Node:
    mark = next((mark for mark in MARKS if (folder / mark).is_file()), None)
    if mark is None:
        raise InputError(
            f"{name}: holds no zarr metadata ({', '.join(MARKS)}); give the folder of a zarr "
            "array or of an OME-Zarr image"
        )
    document = _json(folder / mark, name)
    if mark == "zarr.json":
        if FORMAT == 2:
            raise InputError(f"{name}: zarr format 3 needs zarr 3; pip install -U zarr")
        is_array = document.get("node_type") == "array"
        return Node(folder, 3, is_array, document, _mapping(document.get("attributes")))
    attributes = folder / ".zattrs"
    found = _json(attributes, name) if attributes.is_file() else {}
    return Node(folder, 2, mark == ".zarray", document, found)


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: damaged, {path.name} is not JSON ({first_line(error)})"
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"{name}: damaged, {path.name} holds no metadata")
    return document


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _noted_affine(node: Node) -> Any:
    return _mapping(node.attributes.get(OURS)).get("affine")


# The array: refused before anything is decoded.


def _shape(node: Node, name: str) -> tuple[int, ...]:
    """Return an array's shape; an `InputError` unless it is made of plain numbers."""
    try:
        if node.format == 3:
            dtype = _number_type(node.document["data_type"], name)
            chunks = node.document["chunk_grid"]["configuration"]["chunk_shape"]
            codecs = [(codec["name"], codec) for codec in _all_codecs(node.document["codecs"])]
            for _, codec in codecs:  # of a shard, only the chunks inside are decoded
                chunks = _mapping(codec.get("configuration")).get("chunk_shape", chunks)
        else:
            dtype = _number_type(node.document["dtype"], name)
            chunks = node.document["chunks"]
            used = [*(node.document.get("filters") or []), node.document.get("compressor")]
            codecs = [(codec["id"], codec) for codec in used if codec]
        for codec, settings in codecs:
            _check_codec(str(codec), settings, name)
        shape = tuple(int(side) for side in node.document["shape"])
        chunk_bytes = dtype.itemsize * math.prod(int(side) for side in chunks)
    except MedverseError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: damaged, its zarr metadata makes no sense ({error})") from error
    if chunk_bytes > LARGEST_CHUNK:
        raise InputError(f"{name}: chunks of {chunk_bytes} bytes; store it in smaller ones")
    return shape


def _number_type(stored: Any, name: str) -> np.dtype[Any]:
    if not isinstance(stored, str) or stored in ("string", "bytes"):
        raise InputError(f"{name}: refused, voxels of type {stored} are not numbers")
    dtype = np.dtype(stored)
    if dtype.kind == "O":
        raise InputError(f"{name}: refused, it holds pickled or other objects, not numbers")
    check_numbers(dtype, name)
    return dtype


def _all_codecs(codecs: Any) -> list[dict[str, Any]]:
    """Return codecs and those inside of shards."""
    found = []
    for codec in codecs:
        settings = _mapping(codec.get("configuration"))
        inner = [*settings.get("codecs", ()), *settings.get("index_codecs", ())]
        found += [codec, *_all_codecs(inner)]
    return found


def _check_codec(codec: str, settings: dict[str, Any], name: str) -> None:
    if codec.removeprefix("numcodecs.") not in CODECS:
        raise InputError(
            f"{name}: refused, its codec {codec!r} is not one for numbers; store it with zstd, "
            "gzip or blosc"
        )
    for key, value in (settings | _mapping(settings.get("configuration"))).items():
        if key.endswith(("dtype", "astype")) and value is not None:
            _number_type(value, name)


def _volume(
    node: Node,
    axes: tuple[int, int, int],
    affine: Any,
    name: str,
    changes: Sequence[str] = (),
) -> xr.DataArray:
    """Return these axes of an array as a volume, lazy where it is large."""
    try:
        voxels = ZarrVoxels.of(node.folder, axes)
        array = open_array(node.folder)
    except Exception as error:  # zarr's own, its codecs', the file system's
        raise InputError(f"{name}: not a readable zarr array ({first_line(error)})") from error
    check_numbers(array.dtype, name)
    booleans = array.dtype.kind == "b"
    view = mapped(voxels, partial(np.asarray, dtype=np.uint8)) if booleans else voxels
    if not is_large(view.shape):
        return checked(read(view), affine, name, {"changes": changes})
    chunks = [_many(array.chunks[axis], LAZY_CHUNK[0]) for axis in axes]
    return checked(as_dask(view, chunks), affine, name, {"changes": changes})


def _many(chunk: int, wanted: int) -> int:
    """Return as many stored chunks as are no longer than wanted, one at least."""
    return chunk * max(1, wanted // chunk)


# OME-Zarr images.


def _read_image(group: Node, name: str) -> xr.DataArray:
    ome = _mapping(group.attributes.get("ome", group.attributes))
    if not ome.get("multiscales"):
        inside = sorted(part.name for part in group.folder.iterdir() if is_zarr(part))
        raise InputError(
            f"{name}: a zarr group that is no OME-Zarr image; give one of its members: "
            f"{', '.join(inside[:5]) or 'there is none'}"
        )
    image = ome["multiscales"][0]
    level = image["datasets"][0]
    node = _node(_inside(group.folder, level["path"], name), name)
    if not node.is_array:
        raise InputError(f"{name}: {level['path']} is no array")
    shape = _shape(node, name)
    x, y, z = _places(image, shape, name)
    checked_shape((shape[x], shape[y], shape[z]), name)
    affine = _noted_affine(group)
    if affine is None:
        affine = _affine(image, level, (x, y, z), len(shape), name)
    dropped = [str(axis["name"]) for axis in image["axes"] if axis["name"].lower() not in AXES]
    changes = [f"dropped the axes {', '.join(dropped)}, of size 1"] if dropped else []
    return _volume(node, (x, y, z), affine, name, changes)


def _inside(folder: Path, path: str, name: str) -> Path:
    """Return the folder of an array inside a group; never one outside."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or any(p == ".." or "\\" in p or ":" in p for p in parts):
        raise InputError(f"{name}: refused, its array {path!r} is not inside it")
    return folder.joinpath(*parts)


def _places(image: dict[str, Any], shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """Return which stored axes are x, y and z; any other must have size one."""
    names = [str(axis["name"]).lower() for axis in image["axes"]]
    if len(names) != len(shape) or sorted(set(names) & set(AXES)) != list(AXES):
        raise InputError(f"{name}: its axes {names} do not give x, y and z of shape {shape}")
    for axis, size in zip(names, shape, strict=True):
        if axis not in AXES and size != 1:
            raise InputError(
                f"{name}: holds {size} volumes along its axis {axis!r} (shape {shape}); give one "
                "3D volume, such as zarr's array at one index, with affine="
            )
    return names.index("x"), names.index("y"), names.index("z")


def _affine(
    image: dict[str, Any], level: dict[str, Any], places: Sequence[int], count: int, name: str
) -> Affine:
    """Return the affine of an image's axes at these places, from its metadata."""
    axes = [image["axes"][place] for place in places]
    scale, origin = _steps(image, level, count, name)
    units = [_millimetres(axis.get("unit"), name) for axis in axes]
    if None in units:
        tell(f"{name}: has an axis without a unit; taking millimetres")
    directions = [_direction(axis.get("orientation")) for axis in axes]
    if {direction[0] for direction in directions if direction} != {0, 1, 2}:
        tell(
            f"{name}: says nothing of its orientation; taking x to run to the right, y to the "
            "front and z up (RAS)"
        )
        directions = [(0, 1), (1, 1), (2, 1)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (place, unit, direction) in enumerate(zip(places, units, directions, strict=True)):
        assert direction is not None
        world, sign = direction
        size_mm = sign * (1.0 if unit is None else unit)
        affine[world, column] = scale[place] * size_mm
        affine[world, 3] = origin[place] * size_mm
    return affine


def _steps(
    image: dict[str, Any], level: dict[str, Any], count: int, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return spacing and origin of every stored axis: the level's transformations, then all levels'."""
    scale, origin = np.ones(count), np.zeros(count)
    for owner in (level, image):
        for step in owner.get("coordinateTransformations") or ():
            kind = step["type"]
            if kind == "identity":
                continue
            if kind not in ("scale", "translation") or kind not in step:
                raise InputError(f"{name}: its transformation {step} is not scale or translation")
            values = np.asarray(step[kind], np.float64)
            if values.shape != (count,):
                raise InputError(f"{name}: its {kind} {step[kind]} is not one number an axis")
            if kind == "scale":
                scale, origin = scale * values, origin * values
            else:
                origin = origin + values
    return scale, origin


def _millimetres(unit: Any, name: str) -> float | None:
    if unit is not None and unit not in MILLIMETRES:
        raise InputError(f"{name}: unit {unit!r} is no length known here: {', '.join(MILLIMETRES)}")
    return None if unit is None else MILLIMETRES[unit]


def _direction(orientation: Any) -> tuple[int, int] | None:
    """Return world axis (R, A, S) and sign of an axis, None where it is not known."""
    return DIRECTIONS.get(str(_mapping(orientation).get("value", orientation)))


# Writing.


def check_store(path: Path) -> Path:
    """Return `path` if a zarr store could be made there or replaced, else raise `OutputError`."""
    if path.exists() and not is_zarr(path):
        raise OutputError(f"{path}: is there, and no zarr store that could be replaced")
    return check_place(path)


def write_zarr(volume: xr.DataArray, path: Path, dtype: np.dtype[Any]) -> Path:
    """Write a volume as an OME-Zarr image of one level, slab by slab.

    Stored as z, y, x, as viewers expect, with spacing, closest orientation and origin; the
    whole affine, which may be oblique, stands in an attribute of our own.
    """
    view, affine = view_of(volume), affine_of(volume)
    attributes = _attributes(affine, str(volume.name or path.name))

    def write(partial: Path) -> None:
        x, y, z = view.shape
        depth = slab_depth(view.shape, max(dtype.itemsize, volume.dtype.itemsize))
        create_group(partial, attributes)
        level = partial / "0"
        create_array(level, (z, y, x), (depth, *LAZY_CHUNK[:2]), dtype, AXES[::-1])
        array = open_array(level, writable=True)
        for planes, voxels in slabs_along(view, 2, depth):
            slab = np.asarray(voxels, dtype).transpose()
            write_region(array, (planes, slice(None), slice(None)), slab)

    return write_atomically(path, write)


def _attributes(affine: Affine, name: str) -> dict[str, Any]:
    """Return the metadata of an OME-Zarr image (0.4 or 0.5, by the format) stored as z, y, x."""
    spacing = spacing_of(affine)
    axes, scale, origin = [], [], []
    for column, (world, sign) in reversed(list(enumerate(nio.io_orientation(affine).astype(int)))):
        orientation = {"type": "anatomical", "value": WORDS[int(world), int(sign)]}
        axes.append(
            {
                "name": AXES[column],
                "type": "space",
                "unit": "millimeter",
                "orientation": orientation,
            }
        )
        scale.append(spacing[column])
        origin.append(float(sign * affine[world, 3]))
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": origin}]
    image = {
        "name": name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }  # fmt: skip
    ours = {OURS: {"affine": affine.tolist()}}
    if FORMAT == 2:
        return {"multiscales": [{"version": "0.4", **image}], **ours}
    return {"ome": {"version": "0.5", "multiscales": [image]}, **ours}
