"""Every finding of the context doctor: a planted case that it catches, a sound one that it leaves."""

import ast
import base64
import random
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage

from medverse_nb.datasets import demo_cohort, phantom_cohort
from medverse_nb.evaluation import doctor
from medverse_nb.evaluation.doctor import Finding, Report, examine
from medverse_nb.evaluation.doctor.report import MOST_PICTURES
from medverse_nb.io import VolumeWarning, read_volume, write_volume
from medverse_nb.pair import make_pair
from medverse_nb.pair_folder import find_pairs

ROOT = Path(__file__).parents[1]
SIDE = 32
BLOCK = (slice(10, 20), slice(12, 22), slice(8, 16))


def head(seed, side=SIDE):
    """A textured ellipsoid of its own size, and in it a brighter block: image, label."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, side) / size for size in rng.uniform(0.8, 0.95, 3)]
    body = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0) < 1
    label = np.zeros((side,) * 3, np.uint8)
    label[BLOCK] = 1
    texture = ndimage.gaussian_filter(rng.normal(size=body.shape), 2)
    image = body * (40 + 10 * texture / texture.std()) + 40.0 * label
    image += rng.uniform(0, 1, body.shape)
    return image.astype(np.float32), label


def pair(seed, image=None, label=None, affine=None, name=None):
    ours, mark = head(seed)
    return make_pair(
        ours if image is None else image, mark if label is None else label,
        name=name or f"p{seed}", affine=np.eye(4) if affine is None else affine,
    )  # fmt: skip


def context(*others, size=4):
    return [*(pair(seed) for seed in range(1, size)), *others]


def target(image=None, affine=None):
    return read_volume(
        head(0)[0] if image is None else image, np.eye(4) if affine is None else affine
    )


def found(pairs, volume=None, align="box"):
    return {(f.severity, f.code, f.pair) for f in examine(pairs, volume, align).findings}


def moved(spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def nifti(array, sform=None, qform=None, units=2):
    """An image with the affines asked for; None leaves one out, its code 0."""
    image = nib.Nifti1Image(array, None)
    image.header["xyzt_units"] = units
    for place, put in ((sform, image.header.set_sform), (qform, image.header.set_qform)):
        put(place, code=0 if place is None else 1)
    return type(image).from_bytes(image.to_bytes())


def pair_of(image, label, name="odd"):
    return make_pair(image, label, name=name)


@pytest.mark.parametrize("align", ["box", "center", "world"])
def test_sound_heads_are_left_alone(align):
    assert found(context(), target(), align) == set()


# headers


def test_sform_and_qform():
    image, label = head(9)
    plain = moved()

    def code_of(sform, qform, align="box"):
        odd = pair_of(nifti(image, sform, qform), nifti(label, sform, qform))
        return {(s, c) for s, c, p in found([*context(), odd], align=align) if p == "odd"}

    assert code_of(plain, plain) == set()
    assert code_of(plain, None) == set()
    assert code_of(plain, moved(origin=(0.3, 0, 0))) == set()
    assert code_of(plain, moved(origin=(9, 0, 0))) == {("note", "sform-qform")}
    assert code_of(plain, moved(origin=(9, 0, 0)), "world") == {("warning", "sform-qform")}
    assert code_of(plain, moved((1, 1, 2))) == {("warning", "sform-qform")}
    assert code_of(plain, moved((-1, 1, 1))) == {("error", "sform-qform")}
    assert code_of(None, None) >= {("warning", "no-orientation")}


def test_the_sform_is_used():
    image, label = head(9)
    both = moved(origin=(50, 0, 0)), moved()
    report = examine([pair_of(nifti(image, *both), nifti(label, *both))], None, "box")
    (conflict,) = [f for f in report.findings if f.code == "sform-qform"]
    assert "50 mm apart" in conflict.evidence
    assert "sform is used" in conflict.done


@pytest.mark.parametrize(("units", "expected"), [(0, False), (2, False), (1, True), (3, True)])
def test_units_of_the_header(units, expected):
    image, label = head(9)
    odd = pair_of(nifti(image, moved(), moved(), units), nifti(label, moved(), moved()))
    assert found([*context(), odd]) == ({("warning", "units", "odd")} if expected else set())


def test_a_body_of_impossible_size():
    for scale in (0.001, 1000):
        odd = pair(9, affine=moved((scale,) * 3))
        assert ("warning", "units", "p9") in found([*context(), odd])


def test_handedness():
    image, label = head(9)
    left = pair(9, image[::-1], label[::-1], moved((-1, 1, 1), (SIDE - 1, 0, 0)))
    assert found([*context(), left]) == {("note", "handedness", "context")}
    assert found([left], None) == {("note", "few-pairs", "context")}


def test_a_label_stored_otherwise_than_its_image():
    image, label = head(9)
    turned = nib.Nifti1Image(label[::-1], moved((-1, 1, 1), (SIDE - 1, 0, 0)))
    straight = nib.Nifti1Image(image, moved())
    assert found([*context(), pair_of(straight, turned)]) == {("note", "label-orientation", "odd")}
    with pytest.warns(VolumeWarning, match="affine differs"):
        odd = pair_of(straight, nib.Nifti1Image(label, moved((-1, 1, 1), (7, 0, 0))))
    assert found([*context(), odd]) == {("warning", "label-grid", "odd")}


# fit


def test_foreground_outside_of_the_target():
    corner = np.zeros((SIDE,) * 3, np.uint8)
    corner[:6, :6, :6] = 1
    far, small = pair(9, label=corner), target(head(0)[0][4:28, 4:28, 4:28])
    assert ("warning", "label-outside", "p9") in found([far], small, "center")
    assert ("warning", "label-outside", "p9") not in found([far], small, "box")
    assert found(context(), small, "center") == set()


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, False), (1.8, False), (2.2, True), (0.4, True)]
)
def test_field_of_view_of_the_target(size, expected):
    codes = {code for _, code, _ in found(context(), target(affine=moved((size, 1, 1))), "center")}
    assert ("field-of-view" in codes) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, False), (2.8, False), (3.2, True), (0.3, True)]
)
def test_spacing_of_the_target(size, expected):
    codes = {code for _, code, _ in found(context(), target(affine=moved((1, size, 1))))}
    assert ("spacing-far" in codes) == expected


# labels


def test_few_pairs():
    few = {("note", "few-pairs", "context")}
    assert found(context(size=3)) == few
    assert found(context(size=4)) == set()


def test_a_tiny_label():
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[14:16, 16:18, 11:13] = 1
    assert ("warning", "tiny-label", "p9") in found([*context(), pair(9, label=label)])
    label[14:17, 16:19, 11:14] = 1
    assert ("warning", "tiny-label", "p9") not in found([*context(), pair(9, label=label)])


@pytest.mark.parametrize("shift", [(4, 0, 0), (0, -4, 0), (3, 3, 0), (0, 0, 5)])
def test_a_label_off_its_image(shift):
    off = pair(9, label=np.roll(head(9)[1], shift, (0, 1, 2)))
    assert ("warning", "label-off-image", "p9") in found([*context(), off])
    report = examine([off], None, "box")
    (told,) = [f for f in report.findings if f.code == "label-off-image"]
    back = [float(step) for step in re.search(r"\((.*)\)", told.evidence)[1].split(", ")]
    assert np.allclose(np.add(back, shift), 0, atol=1)


def test_a_label_one_voxel_off_is_a_matter_of_hands():
    off = pair(9, label=np.roll(head(9)[1], 1, 0))
    assert found([*context(), off]) == set()


def test_a_label_on_noise_is_no_evidence():
    rng = np.random.default_rng(0)
    noisy = [pair(n, image=rng.uniform(0, 100, (SIDE,) * 3)) for n in range(1, 5)]
    assert found(noisy) == set()


# agreement


def test_foreground_of_another_size_place_value_and_brightness():
    image, label = head(9)
    large = np.zeros_like(label)
    large[4:28, 4:28, 4:28] = 1
    elsewhere = np.zeros_like(label)
    elsewhere[18:28, 18:28, 22:30] = 1
    bright = image + 200.0 * label
    dark = image - 75.0 * label
    cases = {
        "foreground-volume": pair(9, label=large),
        "foreground-place": pair(9, label=elsewhere),
        "other-values": pair(9, label=255 * label),
        "foreground-intensity": pair(9, image=dark),
    }
    sound = pair(9, image=bright)
    for code, odd in cases.items():
        assert ("warning", code, "p9") in found([*context(), odd]), code
        assert code not in {each for _, each, _ in found([*context(), sound])}


def test_swapped_values_lie_elsewhere():
    def two(seed, order):
        image, label = head(seed)
        label = np.zeros_like(label)
        label[2:12, 12:20, 12:20], label[20:30, 12:20, 12:20] = order
        return pair(seed, label=label, image=image + 30 * (label > 0))

    straight = [two(seed, (1, 2)) for seed in (1, 2, 3, 4)]
    assert not [c for c in found(straight) if c[1] == "foreground-place"]
    assert ("warning", "foreground-place", "p9") in found([*straight, two(9, (2, 1))])


def test_two_pairs_cannot_outvote_one_another():
    image, label = head(9)
    assert found([pair(1), pair(9, image=image - 75.0 * label)]) == {
        ("note", "few-pairs", "context")
    }


# images


def test_a_constant_image_in_the_context():
    flat = pair(9, image=np.full((SIDE,) * 3, 7.0))
    assert ("warning", "constant-image", "p9") in found([*context(), flat])


def test_clipped_intensities():
    image = head(9)[0]
    cut = np.minimum(image, np.quantile(image, 0.9))
    assert found([*context(), pair(9, image=cut)]) == {("warning", "clipped", "p9")}
    assert found(context(), target(cut)) == {("warning", "clipped", "target")}
    drawn = (image > 20) * 3.0 + head(9)[1]
    assert not [c for c in found([*context(), pair(9, image=drawn)]) if c[1] == "clipped"]


def test_ct_among_mr():
    image = head(9)[0]
    ct = np.where(image > 10, 2 * image - 60, -1000).astype(np.float32)
    ct[1, 1, :] = 900  # bone
    assert ("warning", "modality", "p9") in found([*context(), pair(9, image=ct)])
    assert ("warning", "modality", "target") in found(context(), target(ct))
    cts = [pair(n, image=ct + head(n)[0]) for n in range(1, 5)]
    assert not [c for c in found(cts, target(ct)) if c[1] == "modality"]
    assert ("warning", "modality", "p9") in found([*cts, pair(9)])


def test_inverted_contrast():
    image = head(9)[0]
    negative = image.max() - image
    assert ("warning", "inverted", "p9") in found([*context(), pair(9, image=negative)])
    assert ("warning", "inverted", "target") in found(context(), target(negative))
    assert ("warning", "inverted", "p9") not in found([*context(), pair(9, image=image * 3 + 50)])


# copies


def test_the_same_image_with_another_label():
    other = pair(1, label=ndimage.binary_dilation(head(1)[1]).astype(np.uint8), name="again")
    assert found([*context(), other]) == {("warning", "conflicting-labels", "again")}


@pytest.mark.parametrize("change", ["finer", "rescaled", "gamma"])
def test_near_copies(change):
    image, label = head(1)
    affine = moved()
    if change == "finer":
        image, label = (a.repeat(2, 0).repeat(2, 1).repeat(2, 2) for a in (image, label))
        affine = moved((0.5, 0.5, 0.5), (-0.25, -0.25, -0.25))
    else:
        image = 7 * image - 30 if change == "rescaled" else np.maximum(image, 0) ** 0.8
    copy = pair(9, image, label, affine)
    assert ("warning", "near-duplicate", "p9") in found([*context(), copy])
    assert ("warning", "target-copy", "p1") in found(context(), target(image, affine))


def test_a_few_voxels_have_no_fingerprint():
    small = head(1)[0][8:23, 8:23, 8:23], head(1)[1][8:23, 8:23, 8:23]
    rescaled = pair(9, small[0] * 7, small[1])
    assert "near-duplicate" not in {c for _, c, _ in found([pair(1, *small), rescaled])}


# real and virtual cohorts


def worse_than_notes(report):
    return [str(f) for f in report.findings if f.severity != "note"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_hippocampi_are_sound(shared, seed):
    folder = shared / "data" / "hippocampus"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    files = find_pairs(folder / "imagesTr", folder / "labelsTr")
    *names, last = random.Random(seed).sample(sorted(files), 9)
    pairs = [make_pair(*files[name], name=name) for name in names]
    for align in ("box", "center"):
        assert worse_than_notes(examine(pairs, read_volume(files[last][0]), align)) == []


def test_a_real_abdomen_is_sound(shared):
    folder = shared / "data" / "body_mr"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    body = make_pair(folder / "image.nii.gz", folder / "labels.nii.gz", name="body")
    assert worse_than_notes(examine([body], None, "box")) == []


@pytest.mark.parametrize("what", ["brains", "abdomens"])
def test_cohorts_of_the_package_are_sound(what):
    if what == "brains":
        pytest.importorskip("nilearn")
    *cases, new = demo_cohort(4, spacing_mm=3.0) if what == "brains" else phantom_cohort(5)
    pairs = [make_pair(case.image, case.label, name=case.name) for case in cases]
    assert worse_than_notes(examine(pairs, read_volume(new.image), "box")) == []


# large volumes, pictures, page


def test_lazy_volumes_give_the_same_report(tmp_path, monkeypatch):
    odd = np.roll(head(9)[1], 4, 0)
    whole = examine([*context(), pair(9, label=odd)], target(), "center")
    arrays = {f"p{n}": head(n) for n in (1, 2, 3)} | {"p9": (head(9)[0], odd), "t": head(0)}
    for name, (image, label) in arrays.items():
        for kind, array in (("image", image), ("label", label)):
            write_volume(read_volume(array, np.eye(4)), tmp_path / f"{name}_{kind}.nii")
    monkeypatch.setattr("medverse_nb.stored.LARGEST_LOADED", 1)
    monkeypatch.setattr("medverse_nb.regions.SLAB_VOXELS", 5 * SIDE**2)
    pairs = [
        make_pair(tmp_path / f"{n}_image.nii", tmp_path / f"{n}_label.nii", name=n)
        for n in arrays if n != "t"
    ]  # fmt: skip
    assert not isinstance(pairs[0].image.data, np.ndarray)
    lazy = examine(pairs, read_volume(tmp_path / "t_image.nii"), "center")
    assert {(f.code, f.pair) for f in lazy.findings} == {(f.code, f.pair) for f in whole.findings}
    assert [f.code for f in whole.findings] == ["label-off-image"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))


def test_pictures_of_the_pairs_concerned():
    name = '<script>"&'
    empty = np.zeros((SIDE,) * 3, np.uint8)
    report = examine([*context(), pair(9, label=empty, name=name), pair(8)], None, "box")
    page = Tags(report._repr_html_())
    assert "script" not in page.tags
    (image,) = page.images
    assert image["alt"] == name
    off = pair(9, label=np.roll(head(9)[1], 4, 0))
    (image,) = Tags(examine([*context(), off], None, "box")._repr_html_()).images
    content = base64.b64decode(image["src"].partition("base64,")[2])
    assert len(content) < 10_000
    picture = imread(BytesIO(content))[..., :3]
    coloured = (picture[..., 0] - picture[..., 2] > 0.5).sum()
    assert 0 < coloured < 0.1 * picture.shape[0] * picture.shape[1]  # an outline, not an area


def test_no_more_pictures_than_a_page_bears():
    pairs = [pair(n) for n in range(MOST_PICTURES + 3)]
    findings = [Finding("note", "odd", p.name, "", "") for p in pairs for _ in range(2)]
    shown = Report(tuple(findings), tuple(pairs))._repr_html_()
    assert len(Tags(shown).images) == MOST_PICTURES
    assert "img" not in str(Report(tuple(findings), tuple(pairs)))


def codes_in_the_code():
    for path in Path(doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                severities = {
                    n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)
                }
                levels = severities & {"error", "warning", "note"}
                assert isinstance(node.args[1], ast.Constant), "a code is a literal"
                yield node.args[1].value, levels


def test_the_page_has_every_code_and_no_other():
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    told = {}
    for row in re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE):
        told[row[0]] = set(row[1].split(", "))
    assert told == dict(codes_in_the_code())


def test_every_code_stands_in_a_test():
    texts = [(ROOT / "tests" / f"{n}.py").read_text() for n in ("test_doctor", Path(__file__).stem)]
    for code, _ in codes_in_the_code():
        assert any(f'"{code}"' in text for text in texts), code
