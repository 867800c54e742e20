import json

import numpy as np
import pytest

from medverse_nb.classes import (
    PALETTE,
    ClassSpec,
    ClassTable,
    drawn_classes,
    likeliest,
    read_class_table,
    resolve_classes,
)
from medverse_nb.errors import ContextError, InputError

TABLE = ClassTable({1: "anterior", 2: "posterior"}, {2: (1, 2, 3)})
FREESURFER = """#No. Label Name:                R   G   B   A
0   Unknown                         0   0   0   0
17  Left-Hippocampus                220 216 20  0
53  Right-Hippocampus               220 216 20  0

2   Left-Cerebral-White-Matter      245 245 245
"""
ITK_SNAP = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "Left kidney"
    7     0  255    9     0.35  1  0    "tumour, solid"
"""


def brief(specs):
    return [(spec.number, spec.name, spec.values) for spec in specs]


def resolve(request, found=(1, 2, 5)):
    return brief(resolve_classes(request, found, TABLE))


def test_none_means_every_value_found():
    assert resolve(None, (5, 1, 2, 2)) == [
        (1, "anterior", (1,)),
        (2, "posterior", (2,)),
        (5, "class 5", (5,)),
    ]


@pytest.mark.parametrize("request_", [[5, 1], (5, 1), np.array([5, 1]), np.array([5, 1], np.uint8)])
def test_a_list_keeps_its_values_in_its_order(request_):
    assert resolve(request_) == [(5, "class 5", (5,)), (1, "anterior", (1,))]


def test_a_dict_names_unions_numbered_from_one():
    asked = {"whole": (1, 2), "rest": 5, "tail": [2]}
    assert resolve(asked) == [(1, "whole", (1, 2)), (2, "rest", (5,)), (3, "tail", (2,))]


def test_a_single_value_takes_its_tables_colour_and_a_union_the_palettes():
    single, union = resolve_classes({"a": 2, "b": (1, 2)}, (1, 2), TABLE)
    assert single.colour == (1, 2, 3)
    assert union.colour == PALETTE[1]
    repeated = resolve_classes([8], [8], ClassTable())
    assert repeated[0].colour == PALETTE[0]  # seven colours, then from the front


def test_a_spec_becomes_plain_json():
    (spec,) = resolve_classes({"a": (1, 2)}, (1, 2), TABLE)
    assert json.loads(json.dumps(spec.to_dict())) == {
        "number": 1,
        "name": "a",
        "label_values": [1, 2],
        "colour": list(PALETTE[0]),
    }


@pytest.mark.parametrize("request_", [None, [1], {"a": 1}])
def test_no_foreground_anywhere_is_an_error(request_):
    with pytest.raises(ContextError, match="no pair has any foreground"):
        resolve(request_, ())


@pytest.mark.parametrize(
    ("request_", "missing"), [([9], "9"), ({"a": (1, 7)}, "7"), ([1, 2, 3], "3")]
)
def test_a_class_in_no_pair_is_an_error_that_tells_what_there_is(request_, missing):
    with pytest.raises(ContextError, match=rf"\[{missing}\]; found: \[1, 2, 5\]"):
        resolve(request_)


@pytest.mark.parametrize(
    "request_",
    [
        [], {}, "1,2", b"1", 5, 1.0, [0], [-1], [1.5], ["1"], ["hippocampus"], [None], [1, 1],
        [(1, 2)], [float("nan")], [float("inf")], {"a": ()}, {"a": 0}, {"a": "1"}, {"a": 1.5},
        {"a": None}, {"a": [1, "2"]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_malformed_request_is_an_error(request_):
    with pytest.raises(InputError, match="class"):
        resolve(request_)


def save(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "Anterior": 1, "Posterior": 2},
        {"0": "background", "1": "Anterior", "2": "Posterior"},
        {"background": "0", "Anterior": "1", "Posterior": "2"},
    ],
    ids=["nnunet-v2", "msd", "text"],
)
def test_dataset_json_of_both_generations(tmp_path, labels):
    table = read_class_table(save(tmp_path / "dataset.json", {"labels": labels}))
    assert table.names == {1: "Anterior", 2: "Posterior"}
    assert table.colours == {}


def test_regions_of_dataset_json_have_no_single_name(tmp_path):
    labels = {"background": 0, "whole tumour": [1, 2, 3], "core": 2}
    table = read_class_table(save(tmp_path / "dataset.json", {"labels": labels}))
    assert table.names == {2: "core"}


def test_a_freesurfer_table(tmp_path):
    table = read_class_table(save(tmp_path / "LUT.txt", FREESURFER))
    assert table.names == {
        17: "Left-Hippocampus",
        53: "Right-Hippocampus",
        2: "Left-Cerebral-White-Matter",
    }
    assert table.colours[17] == (220, 216, 20)
    assert table.colours[2] == (245, 245, 245)


def test_an_itk_snap_table(tmp_path):
    table = read_class_table(save(tmp_path / "labels.label", ITK_SNAP))
    assert table.names == {1: "Left kidney", 7: "tumour, solid"}
    assert table.colours == {1: (255, 0, 0), 7: (0, 255, 9)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", "{not json"),
        ("dataset.json", []),
        ("dataset.json", {"channel_names": {}}),
        ("dataset.json", {"labels": ["a"]}),
        ("dataset.json", {"labels": {"background": 0}}),
        ("labels.txt", "just some prose\n"),
        ("labels.txt", ""),
    ],
)
def test_what_is_no_table_is_an_error(tmp_path, name, content):
    with pytest.raises(InputError, match=name):
        read_class_table(save(tmp_path / name, content))


def test_a_missing_or_binary_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_class_table(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x9d")
    with pytest.raises(InputError, match="cannot be read"):
        read_class_table(tmp_path / "binary.txt")


def test_a_later_table_wins():
    table = ClassTable({1: "a", 2: "b"}, {1: (0, 0, 0)})
    table.update(ClassTable({2: "c"}, {2: (9, 9, 9)}))
    assert table.names == {1: "a", 2: "c"}
    assert table.colours == {1: (0, 0, 0), 2: (9, 9, 9)}


def test_classes_of_a_mask_are_named_numbered_or_given():
    given = (ClassSpec(7, "seven", (7,), (1, 2, 3)),)
    assert brief(drawn_classes({"liver": 1, "spleen": 4})) == [
        (1, "liver", (1,)), (4, "spleen", (4,)),
    ]  # fmt: skip
    assert brief(drawn_classes([3, 1])) == [(3, "class 3", (3,)), (1, "class 1", (1,))]
    assert drawn_classes(given) == list(given)
    assert drawn_classes(()) == []


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("liver", "must be a dict"),
        (5, "must be a dict"),
        ({"liver": (1, 2)}, "'liver' has 2 numbers"),
        ({"liver": 0}, "positive integers"),
        ({"liver": 1.5}, "positive integers"),
        ({"liver": 1, "spleen": 1}, "a number twice"),
        ([2, 2], "a number twice"),
    ],
)
def test_classes_no_mask_can_have_are_refused(request_, told):
    with pytest.raises(InputError, match=told):
        drawn_classes(request_)


def test_a_probability_that_is_not_a_number_is_no_class():
    probability = np.array([[0.9, 0.5, np.nan, np.nan], [0.2, 0.1, np.nan, 0.9]])
    found = likeliest(probability.reshape(2, 4, 1, 1), np.array([3, 5], np.uint8))
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [3, 0, 0, 0]
