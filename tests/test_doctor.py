import json

import nibabel as nib
import numpy as np
import pytest

from medverse_nb.evaluation.doctor import Finding, Report, examine
from medverse_nb.io import VolumeWarning, read_volume
from medverse_nb.pair import make_pair

SHAPE = (10, 12, 8)


def scan(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


def block(shape=SHAPE):
    label = np.zeros(shape, np.uint8)
    label[2:5, 3:6, 1:4] = 1
    return label


def affine(spacing=(1, 1, 1), origin=(0, 0, 0), degrees=0.0):
    turn = np.radians(degrees)
    tilt = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = tilt @ np.diag(spacing), origin
    return matrix


def pair(name="a", seed=1, image=None, label=None, place=None, task="segmentation"):
    image = scan(seed) if image is None else image
    label = block(image.shape) if label is None else label
    place = affine() if place is None else place
    return make_pair(image, label, name=name, affine=place, task=task)


def target(image=None, place=None):
    return read_volume(scan() if image is None else image, affine() if place is None else place)


def found(pairs, volume=None, align="box"):
    """Ask about one or two pairs at a time; that they are few is told in a test of its own."""
    findings = examine(pairs, volume, align).findings
    return {(f.severity, f.code, f.pair) for f in findings if f.code != "few-pairs"}


@pytest.mark.parametrize("align", ["box", "center", "world"])
def test_a_sound_context_is_left_alone(align):
    pairs = [pair("a", 1), pair("b", 2), pair("c", 3)]
    for volume in (None, target()):
        report = examine(pairs, volume, align)
        assert report.findings == ()
        assert report.ok


def test_no_pairs():
    assert found([]) == {("error", "no-context", "context")}
    assert found([], target()) == {("error", "no-context", "context")}


def test_no_foreground_in_any_pair():
    empty = np.zeros(SHAPE, np.uint8)
    pairs = [pair("a", 1, label=empty), pair("b", 2, label=empty)]
    assert found(pairs) == {("error", "no-foreground", "context")}
    assert not examine(pairs, None, "box").ok


def test_one_empty_label_among_others():
    pairs = [pair("a", 1), pair("b", 2, label=np.zeros(SHAPE, np.uint8))]
    assert found(pairs) == {("warning", "empty-label", "b")}
    assert examine(pairs, None, "box").ok


def test_an_image_task_needs_no_foreground():
    assert found([pair(label=np.zeros(SHAPE, np.float32), task="image")]) == set()


def test_what_reading_changed():
    holes = scan(1)
    holes[0, 0, 0] = np.nan
    with pytest.warns(VolumeWarning):
        pairs, volume = (
            [pair("a", image=holes), pair("b", 2)],
            target(np.where(holes > 0, holes, np.nan)),
        )
    assert found(pairs[:1]) == {("warning", "changed-on-reading", "a")}
    assert ("warning", "changed-on-reading", "target") in found(pairs[1:], volume)


def test_a_label_that_lost_its_affine():
    image, label = nib.Nifti1Image(scan(1), affine((2, 1, 1))), nib.Nifti1Image(block(), np.eye(4))
    with pytest.warns(VolumeWarning):
        lost = make_pair(image, label, name="a")
    finding = examine([lost], None, "box").findings[0]
    assert (finding.severity, finding.code, finding.pair) == ("warning", "label-grid", "a")
    assert "affine differs" in finding.evidence
    assert "9 mm apart" in finding.evidence


@pytest.mark.parametrize(("degrees", "expected"), [(4, False), (-4, False), (6, True), (-30, True)])
def test_oblique_axes(degrees, expected):
    tilted = affine(degrees=degrees)
    note = {("note", "oblique", "a")} if expected else set()
    assert found([pair(place=tilted)]) == note
    assert found([pair(place=tilted)], align="world") == set()
    note = {("note", "oblique", "target")} if expected else set()
    assert found([pair()], target(place=tilted)) == note


def test_the_angle_is_told():
    finding = examine([pair(place=affine(degrees=17))], None, "box").findings[-1]
    assert "17 degrees" in finding.evidence


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [(1, ""), (1.25, ""), (1 / 1.25, ""), (1.4, "note"), (2.1, "warning"), (0.45, "warning")],
)
def test_stretch_by_box(spacing, expected):
    codes = found([pair()], target(place=affine((1, 1, spacing))))
    assert codes == ({(expected, "stretched", "a")} if expected else set())
    assert not [
        c
        for c in found([pair()], target(place=affine((1, 1, spacing))), "center")
        if c[1] == "stretched"
    ]


def test_stretch_compares_the_same_anatomical_axis():
    turned = nib.Nifti1Image(scan(3), affine((1, 2, 3))).as_reoriented(
        np.array([[2, -1], [0, 1], [1, 1.0]])
    )
    notes = found([pair(place=affine((1, 2, 3)))], read_volume(turned))
    assert "stretched" not in {code for _, code, _ in notes}


@pytest.mark.parametrize(
    ("align", "shift", "expected"),
    [
        ("world", 0, set()),
        ("world", 4, set()),
        ("world", 7, {("warning", "little-overlap", "a")}),
        ("world", 400, {("error", "little-overlap", "a")}),
        ("center", 400, set()),
        ("box", 400, set()),
    ],
)
def test_little_overlap(align, shift, expected):
    assert found([pair(place=affine(origin=(shift, 0, 0)))], target(), align) == expected


def test_a_small_pair_covers_little_of_a_large_target():
    small = pair(image=scan(1, (4, 5, 4)), label=block((4, 5, 4)))
    assert found([small], target(), "center") == {
        ("warning", "little-overlap", "a"),
        ("warning", "field-of-view", "target"),
    }


def test_a_pair_twice():
    pairs = [pair("a", 1), pair("b", 2), pair("again", 1)]
    assert found(pairs) == {("warning", "duplicate", "again")}
    (finding,) = examine(pairs, None, "box").findings
    assert "'a'" in finding.evidence


def test_a_pair_twice_in_another_orientation():
    turned = nib.Nifti1Image(scan(1), affine()).as_reoriented(np.array([[1, -1], [0, 1], [2, 1.0]]))
    other = make_pair(turned, nib.Nifti1Image(block(), affine()), name="b")
    assert ("warning", "duplicate", "b") in found([pair("a", 1), other])


def test_the_target_among_the_context():
    pairs = [pair("a", 1), pair("b", 0)]
    assert found(pairs, target(scan(0))) == {("warning", "target-in-context", "b")}


def test_a_constant_target():
    assert found([pair()], target(np.full(SHAPE, 7.0))) == {("error", "constant-image", "target")}


def test_intensities_far_from_every_pair():
    bright = scan(5) ** 0.05  # nearly all of it at the top of its range
    bright[0] = 0
    dark = scan(6) ** 8
    other = scan(7) ** 0.05
    other[-1] = 0
    assert found([pair("a", image=dark)], target(bright)) == {
        ("warning", "intensity-far", "target")
    }
    assert found([pair("a", image=dark), pair("b", image=other)], target(bright)) == set()


def test_other_units_are_not_far():
    assert found([pair("a", 1)], target(scan(0) * 40 - 1000)) == set()


def test_a_report_puts_errors_first_and_speaks_every_format():
    finding = Finding("note", "odd", "<b>", "5 & 6", "look")
    report = Report((finding,))
    assert report.ok
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["code"] == "odd"
    assert "odd" in str(report)
    assert "&lt;b&gt;" in report._repr_html_()
    assert "5 &amp; 6" in report._repr_html_()
    assert "sound" in str(Report(()))
    assert "sound" in Report(())._repr_html_()
    mixed = examine(
        [pair("a", 1, place=affine(degrees=20)), pair("b", 1)], target(np.full(SHAPE, 1.0)), "box"
    )
    severities = [each.severity for each in mixed.findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    assert severities[0] == "error"
    assert severities[-1] == "note"
    assert not mixed.ok
