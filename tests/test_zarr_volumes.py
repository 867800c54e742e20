"""Zarr folders in and out: geometry kept, strangers' stores read as they mean it, or refused."""

import json
import os
import pickle
import shutil
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import zarr

from medverse_nb import stored, zarr_files, zarr_volumes
from medverse_nb.errors import GeometryError, InputError, OutputError
from medverse_nb.io import VolumeWarning, check_output, read_volume, write_volume
from medverse_nb.volume import affine_of, make_volume

SHAPE = (5, 6, 7)
FORMATS = [2, 3] if zarr_files.FORMAT == 3 else [2]
RAS = {"x": "left-to-right", "y": "posterior-to-anterior", "z": "inferior-to-superior"}
ANGLE = np.radians(25)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array(
    [[-np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), -np.cos(ANGLE), 0], [0, 0, 1]]
) @ np.diag([1 / 3, 1, 1.5])
OBLIQUE[:3, 3] = 90.1, 126, -72

both_formats = pytest.mark.parametrize("store_format", FORMATS)


@pytest.fixture(params=[2**28, 0], ids=["loaded", "lazy"])
def size_limit(request, monkeypatch):
    monkeypatch.setattr(stored, "LARGEST_LOADED", request.param)


def voxels(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def put_array(path, data, store_format, chunks=(3, 3, 3, 3, 3), attributes=None, **options):
    """Store an array as a stranger would; options as of zarr.open_array."""
    if zarr_files.FORMAT == 3:
        options["zarr_format"] = store_format
    array = zarr.open_array(
        str(path), mode="w", shape=data.shape, chunks=chunks[: data.ndim], dtype=data.dtype, **options
    )  # fmt: skip
    array[...] = data
    array.attrs.update(attributes or {})
    return path


def axis(name, unit="millimeter", orientation=None):
    kind = {"t": "time", "c": "channel"}.get(name, "space")
    told = {"name": name, "type": kind}
    if kind == "space" and unit:
        told["unit"] = unit
    if orientation:
        told["orientation"] = {"type": "anatomical", "value": orientation}
    return told


def put_image(path, data, store_format, axes, steps=(), image_steps=(), **more):
    """Store an OME-Zarr image as a stranger would."""
    level = {"path": "0", "coordinateTransformations": list(steps)}
    image = {"axes": axes, "datasets": [level], **more}
    if image_steps:
        image["coordinateTransformations"] = list(image_steps)
    if store_format == 2:
        attributes = {"multiscales": [{"version": "0.4", **image}]}
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
    options = {"zarr_format": store_format} if zarr_files.FORMAT == 3 else {}
    zarr.open_group(str(path), mode="w", **options).attrs.update(attributes)
    put_array(path / "0", data, store_format)
    return path


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def translation(*values):
    return {"type": "translation", "translation": list(values)}


def edit(path, change):
    """Change a metadata file; `change` gets its JSON."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def metadata_of(path):
    """Return the file that says what an array or group is, and the one with its attributes."""
    if (path / "zarr.json").is_file():
        return path / "zarr.json", path / "zarr.json"
    return next(path / m for m in (".zarray", ".zgroup") if (path / m).is_file()), path / ".zattrs"


def attributes_of(path):
    found = json.loads(metadata_of(path)[1].read_text())
    return found["attributes"] if "node_type" in found else found


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Our own.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float32])
def test_a_volume_comes_back_as_it_was(tmp_path, dtype, size_limit, recwarn):
    volume = make_volume(voxels(dtype), OBLIQUE, name="scan")
    path = write_volume(volume, tmp_path / "new" / "a.ome.zarr")
    again = read_volume(path)
    assert again.dtype == dtype
    assert np.array_equal(again.values, volume.values)
    assert np.allclose(affine_of(again), OBLIQUE, rtol=0, atol=1e-13)
    assert attributes_of(path)["medverse_nb"]["affine"] == affine_of(volume).tolist()
    assert again.attrs["changes"] == []
    assert again.name == "a.ome.zarr"
    assert not list(recwarn)
    assert names_in(tmp_path / "new") == ["a.ome.zarr"]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([1, -1], repeat=3)))
def test_what_others_read_places_every_orientation_too(tmp_path, order, flips):
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([0.5, 2, 3]) * flips)[:, order]
    affine[:3, 3] = 4, -5, 6
    path = write_volume(make_volume(voxels(), affine), tmp_path / "a.zarr")
    _, attributes = metadata_of(path)
    edit(attributes, lambda found: found.get("attributes", found).pop("medverse_nb"))
    again = read_volume(path)
    assert np.array_equal(again.values, voxels())
    assert np.allclose(affine_of(again), affine)


def test_what_is_written_follows_ome_zarr(tmp_path):
    volume = make_volume(voxels(shape=(130, 3, 140)), np.diag([2.0, 3, 4, 1]), name="scan")
    path = write_volume(volume, tmp_path / "a.zarr")
    ome = attributes_of(path)
    if zarr_files.FORMAT == 3:
        ome = ome["ome"]
        assert ome["version"] == "0.5"
        assert json.loads((path / "0" / "zarr.json").read_text())["dimension_names"] == [
            "z",
            "y",
            "x",
        ]
    (image,) = ome["multiscales"]
    if zarr_files.FORMAT == 2:
        assert image["version"] == "0.4"
        assert json.loads((path / "0" / ".zarray").read_text())["dimension_separator"] == "/"
    assert [one["name"] for one in image["axes"]] == ["z", "y", "x"]
    assert {one["unit"] for one in image["axes"]} == {"millimeter"}
    assert image["axes"][0]["orientation"]["value"] == "inferior-to-superior"
    (level,) = image["datasets"]
    assert level["coordinateTransformations"] == [scale(4, 3, 2), translation(0, 0, 0)]
    array = zarr.open_array(str(path / level["path"]), mode="r")
    assert array.shape == (140, 3, 130)
    assert array.chunks == (128, 3, 128)
    assert np.array_equal(array[...].transpose(), volume.values)


def test_masks_stay_small_and_floats_single(tmp_path):
    for dtype, wanted in ((bool, np.uint8), (np.float64, np.float32), (np.uint16, np.uint16)):
        path = write_volume(make_volume(voxels(dtype), OBLIQUE), tmp_path / "a.zarr")
        assert zarr.open_array(str(path / "0"), mode="r").dtype == wanted
    path = write_volume(make_volume(voxels(), OBLIQUE), tmp_path / "a.zarr", dtype=np.uint8)
    assert read_volume(path).dtype == np.uint8


def test_another_store_is_replaced_and_any_other_folder_never(tmp_path):
    volume = make_volume(voxels(), OBLIQUE)
    put_array(tmp_path / "a.zarr", voxels(np.float32), FORMATS[-1])
    write_volume(volume, tmp_path / "a.zarr")
    assert np.array_equal(read_volume(tmp_path / "a.zarr").values, voxels())
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="no zarr store that could be replaced"):
        write_volume(volume, tmp_path / "b.zarr")
    (tmp_path / "c.zarr").write_text("a file")
    with pytest.raises(OutputError, match="no zarr store that could be replaced"):
        write_volume(volume, tmp_path / "c.zarr")
    assert (tmp_path / "b.zarr" / "thesis.txt").read_text() == "all of it"
    assert names_in(tmp_path) == ["a.zarr", "b.zarr", "c.zarr"]


def test_a_place_below_a_file_is_our_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "a.zarr")
    assert check_output(tmp_path / "new" / "a.zarr") == tmp_path / "new" / "a.zarr"
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_store_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch, stop):
    path = write_volume(make_volume(voxels(), OBLIQUE), tmp_path / "a.zarr")
    replace, before = os.replace, []

    def fail_once(source, target):
        if target == path and not before:
            before.extend(names_in(tmp_path))
            raise stop
        replace(source, target)

    monkeypatch.setattr("medverse_nb.files.os.replace", fail_once)
    with pytest.raises(OutputError if isinstance(stop, OSError) else KeyboardInterrupt):
        write_volume(make_volume(voxels() + 1, OBLIQUE), path)
    assert len(before) == 2, "the old one aside, the new one half-way"
    assert names_in(tmp_path) == ["a.zarr"]
    assert np.array_equal(read_volume(path).values, voxels())


# Plain arrays.


@both_formats
def test_a_plain_array_takes_an_affine_or_has_noted_it(tmp_path, store_format, size_limit):
    path = put_array(tmp_path / "a", voxels(), store_format)
    with pytest.warns(VolumeWarning, match="1 mm voxels"):
        assert np.array_equal(affine_of(read_volume(path)), np.eye(4))
    assert np.array_equal(read_volume(path, OBLIQUE).values, voxels())
    noted = {"medverse_nb": {"affine": np.diag([2.0, 3, 4, 1]).tolist()}}
    path = put_array(tmp_path / "b.zarr", voxels(), store_format, attributes=noted)
    assert np.array_equal(affine_of(read_volume(path)), np.diag([2, 3, 4, 1]))
    assert np.allclose(affine_of(read_volume(path, OBLIQUE)), OBLIQUE)


@both_formats
def test_a_plain_array_has_three_axes(tmp_path, store_format, size_limit):
    volume = read_volume(put_array(tmp_path / "a", voxels()[..., None], store_format), OBLIQUE)
    assert np.array_equal(volume.values, voxels())
    assert volume.attrs["changes"] == ["dropped the fourth axis, of size 1"]
    for shape, message in (((5, 6), "is 2D"), ((5, 6, 7, 2), "holds 2 volumes")):
        path = put_array(tmp_path / "b", voxels(shape=shape), store_format)
        with pytest.raises(InputError, match=message):
            read_volume(path, OBLIQUE)


@both_formats
@pytest.mark.parametrize("dtype", [bool, ">i2", "<u4", "f2", "f8", "i1", "u8"])
def test_numbers_of_every_type(tmp_path, store_format, dtype, size_limit):
    volume = read_volume(put_array(tmp_path / "a", voxels(dtype), store_format), OBLIQUE)
    assert np.array_equal(volume.values, voxels(dtype))
    assert volume.dtype == (np.uint8 if dtype is bool else np.dtype(dtype).newbyteorder("="))


@both_formats
def test_a_singular_affine_is_our_error(tmp_path, store_format):
    path = put_array(tmp_path / "a", voxels(), store_format)
    with pytest.raises(GeometryError, match=r"a: .*singular"):
        read_volume(path, np.diag([1, 0, 1, 1]))


# OME-Zarr images of others.


@both_formats
@pytest.mark.parametrize("order", list(permutations("xyz")))
def test_axes_are_taken_by_name_and_sizes_in_micrometres(tmp_path, store_format, order, size_limit):
    stored_as = voxels().transpose(["xyz".index(name) for name in order])
    spacing = {"x": 500, "y": 250, "z": 2000}
    origin = {"x": 1000, "y": -2000, "z": 3000}
    path = put_image(
        tmp_path / "a.zarr", stored_as, store_format,
        [axis(name, "micrometer", RAS[name]) for name in order],
        [scale(*(spacing[n] for n in order)), translation(*(origin[n] for n in order))],
    )  # fmt: skip
    volume = read_volume(path)
    assert np.array_equal(volume.values, voxels())
    expected = np.diag([0.5, 0.25, 2, 1])
    expected[:3, 3] = 1, -2, 3
    assert np.allclose(affine_of(volume), expected)


@both_formats
def test_time_and_channel_of_size_one_are_dropped(tmp_path, store_format, size_limit):
    axes = [axis(name, orientation=RAS.get(name)) for name in "tczyx"]
    steps = [scale(1, 1, 4, 3, 2)]
    data = voxels().transpose()[None, None]
    volume = read_volume(put_image(tmp_path / "a", data, store_format, axes, steps))
    assert np.array_equal(volume.values, voxels())
    assert np.allclose(affine_of(volume), np.diag([2, 3, 4, 1]))
    assert volume.attrs["changes"] == ["dropped the axes t, c, of size 1"]
    data = np.repeat(data, 3, axis=1)
    path = put_image(tmp_path / "b", data, store_format, axes, steps)
    with pytest.raises(InputError, match="holds 3 volumes along its axis 'c'"):
        read_volume(path)


@both_formats
def test_transformations_of_the_image_come_after_those_of_the_level(tmp_path, store_format):
    axes = [axis(name, orientation=RAS[name]) for name in "zyx"]
    level = [scale(1, 2, 3), translation(10, 20, 30)]
    path = put_image(
        tmp_path / "a", voxels(), store_format, axes, level,
        [scale(2, 2, 2), {"type": "identity"}, translation(1, 1, 1)],
    )  # fmt: skip
    expected = np.diag([6.0, 4, 2, 1])
    expected[:3, 3] = 61, 41, 21
    assert np.allclose(affine_of(read_volume(path)), expected)


@both_formats
def test_without_orientation_the_axes_are_taken_as_ras_aloud(tmp_path, store_format):
    path = put_image(tmp_path / "a", voxels(), store_format, [axis(n) for n in "zyx"])
    with pytest.warns(VolumeWarning, match="says nothing of its orientation"):
        assert np.array_equal(affine_of(read_volume(path)), np.eye(4))
    axes = [axis("z", orientation="inferior-to-superior"), axis("y"), axis("x")]
    path = put_image(tmp_path / "a", voxels(), store_format, axes)
    with pytest.warns(VolumeWarning, match="says nothing of its orientation"):
        read_volume(path)


@both_formats
def test_orientation_is_used(tmp_path, store_format):
    told = {"z": "anterior-to-posterior", "y": "superior-to-inferior", "x": "right-to-left"}
    axes = [axis(name, orientation=told[name]) for name in "zyx"]
    steps = [scale(1, 2, 3), translation(10, 20, 30)]
    volume = read_volume(put_image(tmp_path / "a", voxels(), store_format, axes, steps))
    expected = [[-3, 0, 0, -30], [0, 0, -1, -10], [0, -2, 0, -20], [0, 0, 0, 1]]
    assert np.allclose(affine_of(volume), expected)


@both_formats
def test_units_are_told_or_taken_as_millimetres_aloud(tmp_path, store_format):
    def image(unit):
        axes = [axis(name, unit, RAS[name]) for name in "zyx"]
        return put_image(tmp_path / "a", voxels(), store_format, axes, [scale(1, 1, 1)])

    with pytest.warns(VolumeWarning, match="without a unit"):
        assert np.allclose(affine_of(read_volume(image(None))), np.eye(4))
    assert np.allclose(affine_of(read_volume(image("meter"))), np.diag([1000, 1000, 1000, 1]))
    with pytest.raises(InputError, match="unit 'parsec'"):
        read_volume(image("parsec"))


AXES = [axis(name, orientation=RAS[name]) for name in "zyx"]


def emptied(folder):
    path = put_image(folder / "a", voxels(), FORMATS[-1], AXES)
    shutil.rmtree(path / "0")
    return path


def group_of_arrays(folder):
    put_image(folder / "a", voxels(), FORMATS[-1], AXES)
    edit(metadata_of(folder / "a")[1], lambda d: d.get("attributes", d).clear())
    return folder / "a"


def marked(folder, mark, text):
    (folder / "a.zarr").mkdir()
    (folder / "a.zarr" / mark).write_text(text)
    return folder / "a.zarr"


def image_with(folder, **more):
    return put_image(folder / "a", voxels(), FORMATS[-1], AXES, **more)


BAD = {
    "no-metadata": (lambda t: marked(t, "notes.txt", "x"), "holds no zarr metadata"),
    "empty-json": (lambda t: marked(t, ".zarray", ""), "damaged, .zarray is not JSON"),
    "list-json": (lambda t: marked(t, ".zgroup", "[]"), "holds no metadata"),
    "deep-json": (lambda t: marked(t, ".zarray", "[" * 10**5), "is not JSON"),
    "bytes-json": (lambda t: marked(t, ".zarray", "{}"), "makes no sense"),
    "group": (group_of_arrays, "no OME-Zarr image; give one of its members: 0"),
    "no-level": (emptied, "holds no zarr metadata"),
    "axes-twice": (
        lambda t: put_image(t / "a", voxels(), FORMATS[-1], [axis(n) for n in "zyy"]),
        "do not give x, y and z",
    ),
    "axes-few": (
        lambda t: put_image(t / "a", voxels()[0], FORMATS[-1], [axis(n) for n in "yx"]),
        "do not give x, y and z",
    ),
    "axes-names": (
        lambda t: put_image(t / "a", voxels(), FORMATS[-1], ["z", "y", "x"]),
        "not understood",
    ),
    "outside": (lambda t: image_with(t, datasets=[{"path": "../b/0"}]), "is not inside it"),
    "absolute": (lambda t: image_with(t, datasets=[{"path": "/etc"}]), "is not inside it"),
    "itself": (lambda t: image_with(t, datasets=[{"path": "."}]), "is not inside it"),
    "no-datasets": (lambda t: image_with(t, datasets=[]), "not understood"),
    "matrix": (
        lambda t: image_with(t, steps=[{"type": "affine", "affine": [[1]]}]),
        "not scale or translation",
    ),
    "file": (lambda t: image_with(t, steps=[{"type": "scale", "path": "x"}]), "not scale or"),
    "few": (lambda t: image_with(t, steps=[scale(1, 2)]), "not one number an axis"),
    "singular": (lambda t: image_with(t, steps=[scale(1, 0, 1)]), "singular"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_bad_stores_are_our_error(tmp_path, make, message):
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        read_volume(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_brings_its_own_affine(tmp_path):
    with pytest.raises(InputError, match="brings its own affine"):
        read_volume(put_image(tmp_path / "a", voxels(), FORMATS[-1], AXES), OBLIQUE)


def test_format_3_without_zarr_3_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_volumes, "FORMAT", 2)
    with pytest.raises(InputError, match="needs zarr 3"):
        read_volume(marked(tmp_path, "zarr.json", "{}"))


# Objects and codecs: nothing is decoded.


class Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def v2(**changed):
    return ".zarray", {
        "zarr_format": 2, "shape": [1, 1, 1], "chunks": [1, 1, 1], "dtype": "<f8", "order": "C",
        "compressor": None, "filters": None, "fill_value": 0, **changed,
    }  # fmt: skip


def v3(**changed):
    return "zarr.json", {
        "zarr_format": 3, "node_type": "array", "shape": [1, 1, 1], "data_type": "float64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1]}},
        "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
        "fill_value": 0, "attributes": {}, **changed,
    }  # fmt: skip


PICKLE = {"name": "numcodecs.pickle", "configuration": {}}
SHARD = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1, 1, 1], "codecs": [PICKLE]},
}
OBJECTS = {
    "O": (v2(dtype="|O", filters=[{"id": "pickle", "protocol": 5}]), "refused"),
    "O-json": (v2(dtype="|O", filters=[{"id": "json2"}]), "refused"),
    "O-msgpack": (v2(dtype="|O", filters=[{"id": "msgpack2"}]), "refused"),
    "O-none": (v2(dtype="O"), "refused"),
    "filter": (v2(filters=[{"id": "pickle", "protocol": 5}]), "refused, its codec 'pickle'"),
    "compressor": (v2(compressor={"id": "pickle"}), "refused, its codec 'pickle'"),
    "vlen": (v2(filters=[{"id": "vlen-utf8"}]), "refused"),
    "astype": (
        v2(filters=[{"id": "astype", "encode_dtype": "f8", "decode_dtype": "O"}]),
        "refused",
    ),
    "fields": (v2(dtype=[["a", "<f8"], ["b", "|O"]]), "refused"),
    "fields-text": (v2(dtype="f8,O"), "not numbers"),
    "text": (v2(dtype="<U4"), "not numbers"),
    "stranger": (v2(compressor={"id": "my_codec"}), "refused, its codec 'my_codec'"),
    "chunk": (v2(shape=[4000, 4000, 4000], chunks=[4000, 4000, 4000]), "smaller ones"),
}
if zarr_files.FORMAT == 3:
    OBJECTS |= {
        "v3-codec": (v3(codecs=[PICKLE]), "refused, its codec 'numcodecs.pickle'"),
        "v3-shard": (v3(codecs=[SHARD]), "refused, its codec 'numcodecs.pickle'"),
        "v3-string": (v3(data_type="string", codecs=[{"name": "vlen-utf8"}]), "refused"),
        "v3-type": (v3(data_type={"name": "numpy.void"}), "refused"),
        "v3-vlen": (v3(codecs=[{"name": "vlen-bytes"}]), "refused"),
    }


@pytest.mark.parametrize("where", ["array", "image"])
@pytest.mark.parametrize(("metadata", "message"), OBJECTS.values(), ids=OBJECTS.keys())
def test_objects_are_refused_before_anything_is_decoded(
    tmp_path, metadata, message, where, monkeypatch
):
    mark, document = metadata
    path = tmp_path / "a.zarr"
    if where == "image":
        put_image(path, voxels(), 3 if mark == "zarr.json" else 2, AXES)
        shutil.rmtree(path / "0")
    array = path / "0" if where == "image" else path
    array.mkdir(parents=True)
    (array / mark).write_text(json.dumps(document))
    for chunk in ("0.0.0", "c/0/0/0"):
        (array / chunk).parent.mkdir(parents=True, exist_ok=True)
        (array / chunk).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    monkeypatch.setattr(zarr_volumes, "open_array", None)  # not even opened
    with pytest.raises(InputError, match=message):
        read_volume(path, OBLIQUE if where == "array" else None)
    assert not (tmp_path / "ran").exists()


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@both_formats
def test_common_codecs_are_read(tmp_path, store_format, size_limit):
    if zarr_files.FORMAT == 2 or store_format == 2:
        import numcodecs

        options = [{"compressor": c} for c in (None, numcodecs.Zlib(), numcodecs.Blosc())]
        options.append({"filters": [numcodecs.Delta("<i2")]})
    else:
        from zarr.codecs import BloscCodec, BytesCodec, GzipCodec

        options = [{"codecs": [BytesCodec(), *c]} for c in ([], [GzipCodec()], [BloscCodec()])]
    for number, option in enumerate(options):
        path = put_array(tmp_path / str(number), voxels(), store_format, **option)
        assert np.array_equal(read_volume(path, OBLIQUE).values, voxels())


@pytest.mark.skipif(zarr_files.FORMAT == 2, reason="shards came with zarr 3")
def test_shards_are_read(tmp_path, size_limit):
    array = zarr.create_array(
        str(tmp_path / "a"), shape=SHAPE, chunks=(2, 2, 2), shards=(4, 4, 4), dtype="i2"
    )
    array[...] = voxels()
    assert np.array_equal(read_volume(tmp_path / "a", OBLIQUE).values, voxels())


# Chunks that are damaged or missing.


def chunk_files(path):
    hidden = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in hidden)


@both_formats
@pytest.mark.parametrize("content", [b"", b"garbage" * 9, "cut"])
def test_a_damaged_chunk_is_our_error(tmp_path, store_format, content):
    path = put_array(tmp_path / "a.zarr", voxels(), store_format)
    damaged = chunk_files(path)[-1]
    damaged.write_bytes(damaged.read_bytes()[:9] if content == "cut" else content)
    with pytest.raises(InputError, match=r"a\.zarr: damaged, the voxels \[.*cannot be decoded"):
        read_volume(path, OBLIQUE)


@both_formats
def test_a_damaged_chunk_of_a_lazy_volume_leaves_no_copy(tmp_path, store_format, monkeypatch):
    monkeypatch.setattr(stored, "LARGEST_LOADED", 0)
    path = put_array(tmp_path / "a.zarr", voxels(), store_format)
    chunk_files(path)[-1].write_bytes(b"garbage" * 9)
    volume = read_volume(path, OBLIQUE)
    assert np.array_equal(volume[:3, :3, :3].values, voxels()[:3, :3, :3])
    for name in ("b.nii.gz", "b.zarr"):
        with pytest.raises(InputError, match="cannot be decoded"):
            write_volume(volume, tmp_path / name)
    assert names_in(tmp_path) == ["a.zarr"]
    data = voxels(np.float32)
    path = put_array(tmp_path / "a.zarr", data, store_format)
    chunk_files(path)[-1].write_bytes(b"garbage" * 9)
    with pytest.raises(InputError, match="cannot be decoded"):  # floats are checked at once
        read_volume(path, OBLIQUE)


@both_formats
def test_a_missing_chunk_is_the_fill_value(tmp_path, store_format, size_limit):
    path = put_array(tmp_path / "a.zarr", voxels() + 1, store_format, fill_value=7)
    chunk_files(path)[-1].unlink()
    values = read_volume(path, OBLIQUE).values
    expected = voxels() + 1
    expected[3:, 3:, 6:] = 7
    assert np.array_equal(values, expected)


# Through the command line.


def test_the_command_line_takes_a_zarr_scan(cli, cohort, tiny_weights):
    path = write_volume(read_volume(cohort.scan), cohort.root / "scan.zarr")
    outcome = cli("info", path, "--json")
    assert json.loads(outcome.out)["shape"] == [9, 10, 8]
    outcome = cli(
        "predict", path, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert read_volume(cohort.out / "scan.nii.gz").shape == (9, 10, 8)


# --- decoded chunks that are kept ------------------------------------------------------------------


@pytest.mark.parametrize("largest_box", [0, 400, 2**20])
def test_any_box_is_read_right_by_way_of_chunks_or_not(tmp_path, monkeypatch, largest_box):
    monkeypatch.setattr(zarr_files, "LARGEST_BOX", largest_box)
    data = np.arange(2 * 7 * 9 * 5, dtype=np.int32).reshape(1, 7, 18, 5)
    zarr_files.create_array(tmp_path / "a.zarr", data.shape, (1, 3, 4, 2), ">i4")
    zarr_files.open_array(tmp_path / "a.zarr", writable=True)[:] = data
    view = zarr_files.ZarrVoxels.of(tmp_path / "a.zarr", (3, 1, 2))
    whole = np.transpose(data[0], (2, 0, 1))
    rng = np.random.default_rng(0)
    for _ in range(60):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in view.shape]
        region = tuple(slice(int(a), int(b)) for a, b in ends)
        box = view[region]
        assert np.array_equal(box, whole[region])
        assert box.dtype == np.int32


def test_a_chunk_is_decoded_once_for_the_windows_over_it(tmp_path, monkeypatch):
    zarr_files.create_array(tmp_path / "a.zarr", (8, 8, 8), (4, 4, 4), np.uint8)
    view = zarr_files.ZarrVoxels.of(tmp_path / "a.zarr")
    decoded = []
    native = zarr_files._native
    monkeypatch.setattr(zarr_files, "_native", lambda a: decoded.append(a.shape) or native(a))
    for start in range(5):
        view[start : start + 3, 0:8, 0:2]
    assert decoded == [(4, 4, 4)] * 4
