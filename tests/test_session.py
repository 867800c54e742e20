import base64
import io
import itertools
import json
import re
import warnings
from types import SimpleNamespace

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medverse_nb import ICLSession, affine_of, read_volume
from medverse_nb.errors import ContextError, InputError, OutputError, WeightsError
from medverse_nb.io import VolumeWarning
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.weights import weights_hash

pytestmark = pytest.mark.usefixtures("one_thread")

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]
STRAIGHT = np.diag([1.5, 2.0, 1.0, 1.0])


def tilted(spacing=(1.5, 2.0, 1.0), degrees=15.0, origin=(-7.0, 11.0, 3.0)) -> np.ndarray:
    """Return an affine whose axes lie off the scanner's, closest to RAS."""
    a = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def stored(array: np.ndarray, affine: np.ndarray, codes: str) -> nib.Nifti1Image:
    """Store a volume given in RAS order with other array axes, the same place in space."""
    image = nib.Nifti1Image(array, affine)
    there = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), there))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    return turned


def to_ras(array: np.ndarray, codes: str) -> np.ndarray:
    """Undo the axis order of `stored`, by hand: not by the code under test."""
    axes = ["RL".find, "AP".find, "SI".find]
    source = [next(i for i, code in enumerate(codes) if find(code) >= 0) for find in axes]
    moved = np.transpose(array, source)
    flips = [axis for axis, s in enumerate(source) if codes[s] in "LPI"]
    return np.flip(moved, flips)


def draw_case(shape, seed) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and a label with the values 1 and 2, without any symmetry."""
    rng = np.random.default_rng(seed)
    image = rng.random(shape, dtype=np.float32)
    return image, rng.integers(0, 3, shape).astype(np.uint8)


class Stub(nn.Module):
    """A network's interface around a plain function of target, image and label."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.config = NetworkConfig(channels=(4, 4), window=8)
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def target_encoder(self, _target):
        return []

    def forward(self, target, context_image, context_label, *_feedback, **_settings):
        return self.answer(SimpleNamespace(target=target, image=context_image, label=context_label))


@pytest.fixture
def new_session(tiny_weights):
    """Make sessions on the random network, or on a stub in its place."""

    def make(answer=None, **settings) -> ICLSession:
        settings = {"precision": "float32", "device": "cpu", **settings}
        session = ICLSession(tiny_weights, **settings)
        if answer is not None:
            session.network = Stub(answer)
        return session

    return make


def mean_label(given) -> torch.Tensor:
    return given.label.mean(1)


def fill(session: ICLSession, *labels, affine=STRAIGHT, image=None) -> ICLSession:
    """Add labels, each with a noise image, as pairs called pair-1, pair-2, ..."""
    for number, label in enumerate(labels, 1):
        scan = draw_case(label.shape, 50 + number)[0] if image is None else image
        session.add_context(scan, label, name=f"pair-{number}", affine=affine)
    return session


# --- orientation and spacing -----------------------------------------------------------------

TARGET, CASES = draw_case((10, 9, 7), 0)[0], [draw_case((8, 11, 9), 1), draw_case((12, 8, 6), 2)]


def predict_stored(session: ICLSession, target_codes: str, context_codes) -> np.ndarray:
    """Predict with everything stored in these orientations; the probability in RAS order."""
    for number, ((image, label), codes) in enumerate(zip(CASES, context_codes, strict=True)):
        affine = tilted((1.0, 1.5, 2.0 - number))
        session.add_context(
            stored(image, affine, codes), stored(label, affine, codes), name=f"case-{number}"
        )
    target = stored(TARGET, tilted(), target_codes)
    prediction = session.predict(target)
    assert prediction.probability.shape == (2, *target.shape)
    assert np.allclose(affine_of(prediction.probability), target.affine, atol=1e-5)
    assert np.allclose(affine_of(prediction.mask), target.affine, atol=1e-5)
    both = [to_ras(part, target_codes) for part in prediction.probability.values]
    return np.stack([*both, to_ras(prediction.mask.values, target_codes)])


def test_to_ras_undoes_stored():
    for codes in ORIENTATIONS:
        assert np.array_equal(
            to_ras(np.asarray(stored(TARGET, tilted(), codes).dataobj), codes), TARGET
        )


def test_the_answer_stays_in_place_in_all_48_orientations(new_session):
    assert len(set(ORIENTATIONS)) == 48
    expected = predict_stored(new_session(), "RAS", ("RAS", "RAS"))
    assert expected[:2].std() > 1e-3  # an even answer would fit every orientation
    rng = np.random.default_rng(0)
    for codes in ORIENTATIONS:
        others = [ORIENTATIONS[i] for i in rng.integers(0, 48, 2)]
        got = predict_stored(new_session(), codes, others)
        assert np.array_equal(got, expected), (codes, others)


def test_the_order_of_the_contexts_axes_changes_nothing(new_session):
    expected = predict_stored(new_session(), "RAS", ("RAS", "RAS"))
    for codes in ORIENTATIONS[1::5]:
        got = predict_stored(new_session(), "RAS", (codes, codes[::-1]))
        assert np.array_equal(got, expected), codes


@pytest.mark.parametrize("align", ["center", "world"])
@pytest.mark.parametrize(
    "codes", [("LPS", "RAS", "ASR"), ("SRA", "PIL", "LAI"), ("AIR", "IPL", "RAS")]
)
def test_orientations_with_true_millimetres(new_session, align, codes):
    expected = predict_stored(new_session(align=align), "RAS", ("RAS", "RAS"))
    assert expected[:2].std() > 1e-3
    got = predict_stored(new_session(align=align), codes[0], codes[1:])
    assert np.abs(got[:2] - expected[:2]).max() < 1e-5


def test_a_mirrored_target_gives_another_answer(new_session):
    """The property above is not the network's: left and right are told apart."""
    session = new_session()
    expected = predict_stored(session, "RAS", ("RAS", "RAS"))
    mirrored = session.predict(nib.Nifti1Image(np.ascontiguousarray(TARGET[::-1]), tilted()))
    assert np.abs(mirrored.probability.values[:, ::-1] - expected[:2]).max() > 1e-3


def draw_phantom(spacing, extent=(44.0, 48.0, 40.0)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample two organs of one smooth analytic body: image, label, affine; the box is `extent` mm."""
    shape = [round(e / s) for e, s in zip(extent, spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [s / 2 - e / 2 for s, e in zip(spacing, extent, strict=True)]
    index = np.indices(shape).reshape(3, -1)
    mm = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)

    def inside(centre, radii):
        axes = zip(mm, centre, radii, strict=True)
        return sum(((x - c) / r) ** 2 for x, c, r in axes) < 1

    label = np.zeros(shape, np.uint8)
    label[inside((-6, 6, 2), (13, 15, 14))] = 1
    label[inside((9, -11, -4), (11, 11, 12))] = 2
    image = 100 * (label == 1) + 160 * (label == 2) + 10 * np.cos(mm / 9).sum(0)
    return image.astype(np.float32), label, affine


def assert_same_place(mask, truth, spacing=(1, 1, 1)) -> None:
    """Dice 0.95 for each organ, and centres that agree: half a voxel of shift fails."""
    for value in (1, 2):
        a, b = mask == value, truth == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.95
        centres = [np.argwhere(part).mean(0) * spacing for part in (a, b)]
        assert np.abs(centres[0] - centres[1]).max() < 0.2


@pytest.mark.parametrize("align", ["box", "center", "world"])
@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (2, 2, 2), (0.5, 2, 1), (1, 1, 2)])
def test_respacing_the_pairs_hardly_changes_the_answer(new_session, align, spacing):
    scan, truth, affine = draw_phantom((1, 1, 1))
    target = nib.Nifti1Image(scan, affine)
    image, label, other = draw_phantom(spacing)
    pair = stored(image, other, "LSA"), stored(label, other, "LSA")
    session = new_session(mean_label, align=align)
    session.add_context(*pair)
    assert_same_place(session.predict(target).mask.values, truth)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (2, 2, 2), (1, 0.5, 2)])
def test_respacing_the_target_hardly_changes_the_answer(new_session, spacing):
    image, label, affine = draw_phantom((1, 1, 1))
    session = new_session(mean_label)
    session.add_context(nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine))
    scan, truth, other = draw_phantom(spacing)
    mask = session.predict(stored(scan, other, "PIR")).mask.values
    assert_same_place(to_ras(mask, "PIR"), truth, spacing)


def test_box_stretches_and_center_does_not(new_session):
    """A pair of half the size in mm: "box" fills the target, "center" keeps millimetres."""
    label = np.ones((8, 8, 8), np.uint8)
    target = nib.Nifti1Image(draw_case((16, 16, 16), 0)[0], np.eye(4))
    voxels = {}
    for align in ("box", "center"):
        session = fill(new_session(mean_label, align=align), label, affine=np.eye(4))
        voxels[align] = int(session.predict(target).statistics.voxels.iloc[0])
    assert voxels == {"box": 16**3, "center": 8**3}


def test_world_takes_affines_at_their_word(new_session):
    label = np.ones((8, 8, 8), np.uint8)
    shifted = np.eye(4)
    shifted[:3, 3] = 5, 0, 2
    session = fill(new_session(mean_label, align="world"), label, affine=shifted)
    mask = session.predict(nib.Nifti1Image(draw_case((16, 16, 16), 0)[0], np.eye(4))).mask.values
    expected = np.zeros((16, 16, 16), np.uint8)
    expected[5:13, :8, 2:10] = 1
    assert np.array_equal(mask, expected)


def test_a_transposed_data_array_is_predicted_in_its_own_order(new_session):
    scan = read_volume(nib.Nifti1Image(TARGET, tilted()))
    session = fill(new_session(), CASES[0][1], CASES[1][1])
    expected = session.predict(scan).mask
    turned = session.predict(scan.transpose("z", "x", "y")).mask
    assert turned.dims == ("z", "x", "y")
    assert np.array_equal(turned.transpose("x", "y", "z").values, expected.values)


# --- classes -----------------------------------------------------------------------------------


def line(*values: int) -> np.ndarray:
    """Return a label with these values along the first axis, constant across."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None], (len(values), 8, 8)).copy()


SCAN = draw_case((4, 8, 8), 9)[0]


def along(array) -> list:
    """Read one row back, after asserting that the others are alike."""
    values = np.asarray(array)
    assert np.allclose(values, values[..., :1, :1], atol=1e-6)
    return values[..., 0, 0].tolist()


def test_the_likeliest_class_wins_and_half_is_background(new_session):
    """Shares of the pairs: 2/2; 1/2 (not above); 2/2 against 0; none."""
    session = fill(new_session(mean_label), line(1, 1, 2, 0), line(1, 2, 2, 0))
    prediction = session.predict(SCAN, affine=STRAIGHT)
    assert along(prediction.probability) == [[1, 0.5, 0, 0], [0, 0.5, 1, 0]]
    assert along(prediction.mask) == [1, 0, 2, 0]


def test_a_plurality_is_not_enough(new_session):
    session = fill(new_session(mean_label), line(1, 3, 2), line(1, 3, 1), line(2, 0, 3))
    prediction = session.predict(SCAN[:3], affine=STRAIGHT)
    assert along(prediction.mask) == [1, 3, 0]
    assert prediction.mask.dtype == np.uint8
    assert prediction.probability["class"].values.tolist() == ["class 1", "class 2", "class 3"]


def test_the_higher_probability_wins_where_two_exceed_half(new_session):
    """Classes are predicted apart, so two may exceed 0.5; released code takes the last."""
    label = line(1, 2)
    session = fill(
        new_session(lambda g: 0.9 * g.label.mean(1) + 0.6 * (1 - g.label.mean(1))), label
    )
    prediction = session.predict(SCAN[:2], affine=STRAIGHT)
    assert along(prediction.probability) == [
        pytest.approx([0.9, 0.6]),
        pytest.approx([0.6, 0.9]),
    ]
    assert along(prediction.mask) == [1, 2]


def test_probabilities_are_clipped(new_session):
    session = fill(new_session(lambda g: 4 * g.label.mean(1) - 2), line(1, 0))
    assert along(session.predict(SCAN[:2], affine=STRAIGHT).probability) == [[1, 0]]


def test_a_list_keeps_its_values_and_leaves_the_others_out(new_session):
    session = fill(new_session(mean_label), line(1, 2, 7, 0))
    prediction = session.predict(SCAN, classes=[7, 1], affine=STRAIGHT)
    assert [spec.number for spec in prediction.classes] == [7, 1]
    assert along(prediction.mask) == [1, 0, 7, 0]
    assert prediction.statistics.number.to_dict() == {"class 7": 7, "class 1": 1}


def test_a_dict_joins_values_and_numbers_them_in_order(new_session):
    session = fill(new_session(mean_label), line(1, 2, 7, 0), line(2, 1, 0, 0))
    prediction = session.predict(SCAN, classes={"seven": 7, "both": (1, 2)}, affine=STRAIGHT)
    assert along(prediction.probability) == [[0, 0, 0.5, 0], [1, 1, 0, 0]]
    assert along(prediction.mask) == [2, 2, 0, 0]
    assert [(s.number, s.name, s.values) for s in prediction.classes] == [
        (1, "seven", (7,)),
        (2, "both", (1, 2)),
    ]


def test_class_numbers_beyond_a_byte(new_session):
    label = line(1, 0, 1, 0).astype(np.int32) * 2035
    prediction = fill(new_session(mean_label), label).predict(SCAN, affine=STRAIGHT)
    assert prediction.mask.dtype == np.uint16
    assert along(prediction.mask) == [2035, 0, 2035, 0]


def test_a_pair_without_a_class_is_an_empty_example_and_warned_of(new_session):
    session = fill(new_session(mean_label), line(1, 1, 2, 2), line(1, 1, 0, 0), line(2, 2, 2, 0))
    prediction = session.predict(SCAN, affine=STRAIGHT)
    assert along(prediction.probability) == [
        pytest.approx([2 / 3, 2 / 3, 0, 0]),
        pytest.approx([1 / 3, 1 / 3, 2 / 3, 1 / 3]),
    ]
    one, two = prediction.warnings
    assert "class 1: pair-3 without it" in one
    assert "class 2: pair-2 without it" in two
    assert "pair-3 without it" in prediction._repr_html_()
    assert json.loads(json.dumps(prediction.to_dict()))["warnings"] == [one, two]


def test_nothing_to_warn_of(new_session):
    session = fill(new_session(mean_label), line(1, 0, 2, 0))
    assert session.predict(SCAN, affine=STRAIGHT).warnings == ()


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([3], ContextError, r"no pair has the label value \[3\]; found: \[1, 2\]"),
        ({"both": (1, 3)}, ContextError, "both: no pair has"),
        ([], InputError, "classes must be a list"),
        ([0], InputError, "must be positive"),
        ([1, 1], InputError, "twice"),
        ("12", InputError, "classes must be a list"),
        ([1.5], InputError, "must be positive integers"),
    ],
)
def test_classes_that_cannot_be_predicted(new_session, classes, error, message):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    with pytest.raises(error, match=message):
        session.predict(SCAN, classes=classes, affine=STRAIGHT)
    assert session.last is None


def test_no_context_and_no_foreground(new_session):
    with pytest.raises(ContextError, match="no context"):
        new_session().predict(SCAN, affine=STRAIGHT)
    with pytest.raises(ContextError, match="every label is zero"):
        fill(new_session(), line(0, 0, 0, 0)).predict(SCAN, affine=STRAIGHT)


# --- image tasks -------------------------------------------------------------------------------


def test_an_image_task_answers_in_the_labels_range(new_session):
    """The middle of the scaled label is the middle of its range, not 0.5."""
    scan = draw_case((10, 9, 8), 1)[0]
    ramp = np.linspace(-1000, 3000, 720).reshape(10, 9, 8).astype(np.float32)
    session = new_session(lambda g: torch.full_like(g.target, 0.5), task="image")
    session.add_context(scan, ramp, name="one", affine=STRAIGHT)
    session.add_context(scan, ramp + 200, name="two", affine=STRAIGHT)
    prediction = session.predict(scan, affine=STRAIGHT)
    assert prediction.image.dtype == np.float32
    assert prediction.image.shape == scan.shape
    assert prediction.image.values == pytest.approx(1100, abs=1)
    session.network = Stub(lambda g: 9 * torch.ones_like(g.target))  # clipped to the top
    low, high = np.quantile(ramp, [0.02, 0.98]) + 100
    assert session.predict(scan, affine=STRAIGHT).image.values == pytest.approx(high, abs=6)
    session.network = Stub(lambda g: -9 * torch.ones_like(g.target))
    assert session.predict(scan, affine=STRAIGHT).image.values == pytest.approx(low, abs=6)


def test_an_image_task_gives_the_label_back(new_session):
    scan, ramp = draw_case((10, 9, 8), 1)[0], np.arange(720.0).reshape(10, 9, 8)
    session = new_session(mean_label, task="image")
    session.add_context(scan, ramp, affine=STRAIGHT)
    prediction = session.predict(scan, affine=STRAIGHT, truth=ramp)
    inside = (ramp > 20) & (ramp < 700)
    assert np.abs(prediction.image.values - ramp)[inside].max() < 0.1
    with pytest.raises(InputError, match=r"its answer is \.image"):
        _ = prediction.mask
    score = prediction.score.loc["image"]
    assert score.psnr > 35
    wanted = 10 * np.log10(719**2 / np.mean((scan - ramp) ** 2))
    assert score.target_psnr == pytest.approx(wanted, abs=1e-3)
    assert prediction.statistics.empty
    with pytest.raises(InputError, match="classes= is for"):
        session.predict(scan, classes=[1], affine=STRAIGHT)


def test_an_image_answer_is_written_as_float(new_session, tmp_path):
    scan, ramp = draw_case((10, 9, 8), 1)[0], np.arange(720.0).reshape(10, 9, 8)
    session = new_session(mean_label, task="image")
    session.add_context(scan, ramp, affine=STRAIGHT)
    prediction = session.predict(nib.Nifti1Image(scan, STRAIGHT))
    written = nib.load(prediction.write(tmp_path / "out.nii.gz"))
    assert written.get_data_dtype() == np.float32
    assert np.allclose(np.asarray(written.dataobj), prediction.image.values)
    assert json.loads((tmp_path / "out.json").read_text())["classes"] == []


# --- what a prediction holds -------------------------------------------------------------------


def test_statistics_by_hand(new_session):
    affine = tilted(spacing=(0.5, 1.2, 3.0))  # 1.8 cubic mm a voxel
    scan = np.zeros((4, 8, 8), np.float32)
    scan[0], scan[1] = 10, 30
    scan[2, 0, 0] = 7
    session = fill(new_session(mean_label), line(1, 1, 0, 2), affine=affine)
    table = session.predict(scan, affine=affine).statistics
    assert list(table.index) == ["class 1", "class 2"]
    one, two = table.loc["class 1"], table.loc["class 2"]
    assert one.voxels == 128
    assert one.millilitres == pytest.approx(128 * 1.8 / 1000, abs=5e-4)
    assert (one["mean"], one.spread) == (20, 10)
    assert (two.voxels, two["mean"], two.spread) == (64, 0, 0)


def test_statistics_of_a_class_that_is_nowhere(new_session):
    session = fill(new_session(lambda g: 0 * g.target), line(1, 0, 0, 0))
    row = session.predict(SCAN, affine=STRAIGHT).statistics.iloc[0]
    assert (row.voxels, row.millilitres) == (0, 0)
    assert np.isnan(row["mean"])
    assert np.isnan(row.spread)


def test_score_stands_beside_the_mean_label(new_session):
    """Half of the class found by the stub; the mean label finds all of it and as much more."""
    scan = line(0, 1, 0, 0).astype(np.float32) * 100
    session = fill(new_session(lambda g: (g.target > 0.5).float()), line(1, 1, 1, 1))
    score = session.predict(scan, affine=STRAIGHT, truth=line(1, 1, 0, 0)).score
    assert score.loc["class 1", "dice"] == pytest.approx(2 / 3)  # 2 * 1 / (1 + 2)
    assert score.loc["class 1", "mean_label_dice"] == pytest.approx(2 / 3)  # 2 * 2 / (4 + 2)
    again = session.predict(scan, affine=STRAIGHT, truth=line(0, 1, 0, 0)).score
    assert again.loc["class 1"].tolist() == pytest.approx([1, 0.4])


def test_score_of_a_union_and_of_a_turned_truth(new_session):
    scan, truth = stored(SCAN, tilted(), "PLI"), stored(line(1, 2, 0, 0), tilted(), "SAR")
    session = fill(new_session(mean_label), line(1, 2, 2, 0), line(2, 1, 1, 0))
    prediction = session.predict(scan, classes={"both": (1, 2)}, truth=truth)
    assert prediction.score.loc["both"].tolist() == pytest.approx([0.8, 0.8])
    assert session.predict(scan).score is None


def test_a_truth_of_another_shape_is_refused(new_session):
    session = fill(new_session(mean_label), line(1, 2, 2, 0))
    with pytest.raises(ContextError, match=r"shape \(3, 8, 8\)"):
        session.predict(SCAN, affine=STRAIGHT, truth=line(1, 2, 0))


def test_the_manifest_names_everything(new_session, tiny_weights):
    session = fill(new_session(align="center"), line(1, 2, 0, 0), line(2, 1, 0, 0))
    prediction = session.predict(SCAN, classes=[2], affine=STRAIGHT)
    manifest = json.loads(json.dumps(prediction.manifest, allow_nan=False))
    assert manifest == prediction.manifest
    assert manifest["model"]["weights_sha256"] == weights_hash(tiny_weights)
    assert [c["name"] for c in manifest["context"]] == ["pair-1", "pair-2"]
    hashes = [c["sha256"] for c in manifest["context"]]
    assert hashes == [pair.hash for pair in session.context]
    assert len(set(hashes)) == 2
    assert manifest["target"]["shape"] == [4, 8, 8]
    assert manifest["target"]["spacing_mm"] == [1.5, 2, 1]
    assert manifest["settings"]["align"] == "center"
    assert manifest["settings"]["precision"] == "float32"
    assert manifest["settings"]["scales"] == 1
    assert manifest["settings"]["windows"] == [1]
    assert manifest["settings"]["classes"][0]["number"] == 2
    assert manifest["versions"]["medverse_nb"]
    assert manifest["seconds"] >= 0


def test_recorded_steps_lie_where_the_target_lies(new_session):
    """Every scale's box of voxels spans the same box in space."""
    target = stored(draw_case((20, 9, 12), 3)[0], tilted(), "PIR")
    session = fill(new_session(), *(label for _, label in CASES))
    prediction = session.predict(target, record=True)
    assert [(s.class_name, s.scale) for s in prediction.steps] == [
        (name, scale) for name in ("class 1", "class 2") for scale in (1, 2, 3)
    ]
    corners = {scale: [] for scale in (1, 2, 3)}
    for step in prediction.steps:
        assert step.image.shape == step.prediction.shape
        assert np.array_equal(affine_of(step.image), affine_of(step.prediction))
        for corner in itertools.product((0, 1), repeat=3):
            vox = np.array(corner) * step.image.shape - 0.5
            corners[step.scale].append(affine_of(step.image)[:3] @ [*vox, 1])
    assert np.allclose(corners[1], corners[3], atol=1e-4)
    assert np.allclose(corners[2], corners[3], atol=1e-4)
    last = prediction.steps[2]
    assert nib.aff2axcodes(affine_of(last.image)) == ("R", "A", "S")
    wanted = to_ras(prediction.probability.values[0], "PIR")
    assert np.array_equal(np.clip(last.prediction.values, 0, 1), wanted)
    assert session.predict(target).steps == ()


def test_progress_is_told(new_session):
    told = []
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    session.predict(
        draw_case((16, 8, 8), 0)[0], affine=STRAIGHT, on_progress=lambda *s: told.append(s)
    )
    assert [told[0], told[-1]] == [
        ("scale 1 of 2", 1, 1),
        ("scale 2 of 2", told[-1][2], told[-1][2]),
    ]


def test_predicting_twice_gives_the_same(new_session):
    session = fill(new_session(), *(label for _, label in CASES))
    first, again = (session.predict(TARGET, affine=STRAIGHT) for _ in range(2))
    assert np.array_equal(first.probability.values, again.probability.values)
    assert session.last is again


# --- writing -----------------------------------------------------------------------------------


def test_write_keeps_the_targets_grid(new_session, tmp_path):
    target = nib.Nifti1Image(np.zeros((4, 8, 8), np.int16), None)
    target.header.set_qform(tilted(degrees=10), code=2)
    target.header.set_sform(stored(SCAN, tilted(degrees=10), "RAS").affine, code=4)
    target.header.set_xyzt_units("mm", "sec")
    target.header.set_slope_inter(2.0, -7.0)
    target = nib.Nifti1Image((100 * SCAN).astype(np.int16), None, target.header)
    nib.save(target, tmp_path / "sub-09_T1w.nii.gz")
    source = nib.load(tmp_path / "sub-09_T1w.nii.gz")
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    prediction = session.predict(tmp_path / "sub-09_T1w.nii.gz")
    path = prediction.write(tmp_path / "new folder" / "sub-09_pred.nii.gz")
    written = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), line(1, 2, 0, 0))
    assert written.get_data_dtype() == np.uint8
    assert written.shape == source.shape
    assert np.array_equal(written.affine, source.affine)
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "quatern_b", "xyzt_units"):
        assert np.array_equal(written.header[field], source.header[field]), field
    assert int(written.header["qform_code"]) == 2
    assert int(written.header["sform_code"]) == 4
    assert written.header.get_xyzt_units() == ("mm", "sec")
    sidecar = json.loads((path.parent / "sub-09_pred.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in sidecar["classes"]] == ["class 1", "class 2"]
    assert [len(c["colour"]) for c in sidecar["classes"]] == [3, 3]
    assert [row["voxels"] for row in sidecar["statistics"]] == [64, 64]
    assert sidecar["manifest"] == prediction.manifest
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "sub-09_pred.json",
        "sub-09_pred.nii.gz",
    ]


@pytest.mark.parametrize("codes", ["LPS", "SRA", "AIL"])
def test_what_is_written_lies_on_the_scan(new_session, tmp_path, codes):
    nib.save(stored(SCAN, tilted(), codes), tmp_path / "scan.nii")
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    path = session.predict(tmp_path / "scan.nii").write(tmp_path / "mask.nii")
    written, scan = nib.load(path), nib.load(tmp_path / "scan.nii")
    assert np.array_equal(written.affine, scan.affine)
    assert np.array_equal(to_ras(np.asarray(written.dataobj), codes), line(1, 2, 0, 0))


def test_names_from_dataset_json_reach_the_sidecar(new_session, cohort):
    (cohort.root / "dataset.json").write_text(
        '{"labels": {"background": 0, "liver": 1, "cyst": 2}}'
    )
    session = new_session()
    pairs = session.add_context_folder(cohort.images, cohort.labels)
    assert [pair.name for pair in pairs] == ["one", "three", "two"]
    prediction = session.predict(cohort.scan, classes=[2, 1])
    prediction.write(cohort.out / "answer.nii.gz")
    sidecar = json.loads((cohort.out / "answer.json").read_text())
    assert [(c["number"], c["name"]) for c in sidecar["classes"]] == [(2, "cyst"), (1, "liver")]


# --- accept --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*in the context already")
def test_accept_makes_the_answer_a_pair(new_session, tmp_path):
    nib.save(stored(SCAN, tilted(), "PIR"), tmp_path / "sub-09.nii.gz")
    session = fill(new_session(mean_label), line(1, 2, 0, 0), line(1, 2, 0, 0))
    prediction = session.predict(tmp_path / "sub-09.nii.gz")
    pair = session.accept()
    assert session.context.names == ["pair-1", "pair-2", "sub-09"]
    assert pair.values == (1, 2)
    assert np.array_equal(pair.canonical_label.array, line(1, 2, 0, 0))
    assert np.array_equal(affine_of(pair.image), affine_of(prediction.target))
    again = session.predict(tmp_path / "sub-09.nii.gz")
    assert [c["name"] for c in again.manifest["context"]][-1] == "sub-09"
    assert session.accept().name == "sub-09-2"


@pytest.mark.filterwarnings("ignore:.*in the context already")
def test_accept_a_corrected_mask(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    first = session.predict(stored(SCAN, tilted(), "LPI"))
    corrected = first.mask.copy(data=np.where(first.mask == 1, 2, first.mask))
    for mask in (corrected, corrected.values):
        pair = session.accept(first, mask)
        assert np.array_equal(pair.canonical_label.array, line(2, 2, 0, 0))
    after = session.predict(stored(SCAN, tilted(), "LPI"))
    assert along(to_ras(after.mask.values, "LPI")) == [2, 2, 0, 0]
    assert np.array_equal(session.accept(first).canonical_label.array, line(1, 2, 0, 0))


def test_accepting_one_of_several_classes_is_told(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    session.predict(SCAN, classes=[1], affine=STRAIGHT, name="sub-09")
    with pytest.warns(VolumeWarning, match="sub-09: class 2 was not asked for"):
        session.accept()
    session.predict(SCAN / 2, affine=STRAIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.accept()


def test_accepting_a_union_is_told(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    session.predict(SCAN, classes={"both": (1, 2)}, affine=STRAIGHT, name="sub-09")
    with pytest.warns(VolumeWarning, match="1 and 2 were asked for as one, both, and .* has 1"):
        assert session.accept().values == (1,)


def test_accepting_a_scan_twice_is_told(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    session.predict(SCAN, affine=STRAIGHT, name="sub-09")
    session.accept()
    with pytest.warns(VolumeWarning, match="sub-09-2: .* in the context already, as sub-09;"):
        session.accept()
    session.undo()
    assert session.context.names == ["pair-1", "sub-09"]


# --- what an answer was made from ------------------------------------------------------------------


@pytest.fixture
def from_files(new_session, tmp_path):
    """Predict from files: a scan, a truth, and one pair, each in its own file."""
    volumes = {"scan": SCAN, "image": SCAN}
    volumes |= dict.fromkeys(("truth", "label"), line(1, 2, 0, 0))
    for name, array in volumes.items():
        nib.save(nib.Nifti1Image(array, STRAIGHT), tmp_path / f"{name}.nii.gz")
    session = new_session(mean_label)
    session.add_context(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    scan = nib.load(tmp_path / "scan.nii.gz")
    return session.predict(scan, truth=tmp_path / "truth.nii.gz")


@pytest.mark.parametrize("name", ["scan", "truth", "image", "label"])
def test_no_input_is_written_over(from_files, tmp_path, monkeypatch, name):
    before = (tmp_path / f"{name}.nii.gz").read_bytes()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / f"{name}.nii.gz", f"{name}.nii.gz", f"sub/../{name}.nii.gz"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="was made from"):
            from_files.write(path)
    assert (tmp_path / f"{name}.nii.gz").read_bytes() == before
    assert not (tmp_path / f"{name}.json").exists()


def test_no_input_is_written_over_under_another_name(from_files, tmp_path):
    link = tmp_path / "link.nii.gz"
    link.symlink_to(tmp_path / "scan.nii.gz")
    with pytest.raises(OutputError, match="was made from"):
        from_files.with_mask(from_files.mask).write(link)
    assert from_files.write(tmp_path / "mask.nii.gz").is_file()
    assert from_files.write(tmp_path / "mask.nii.gz").is_file(), "an earlier answer may go"


def test_a_scan_in_memory_can_be_named(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    prediction = session.predict(SCAN, affine=STRAIGHT, name="sub-09")
    assert prediction.target.name == "sub-09"
    assert session.accept().name == "sub-09"


@pytest.mark.parametrize("kind", ["array", "nibabel", "fractions", "negative", "empty"])
def test_a_mask_that_does_not_fit_leaves_the_session_unchanged(new_session, kind):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    last = session.predict(SCAN, affine=STRAIGHT)
    masks = {
        "array": line(1, 2, 0),
        "nibabel": nib.Nifti1Image(line(1, 2, 0), STRAIGHT),
        "fractions": 0.3 * line(1, 2, 0, 0),
        "negative": -line(1, 2, 0, 0).astype(np.int16),
        "empty": line(0, 0, 0, 0),
    }
    with pytest.raises(ContextError):
        session.accept(mask=masks[kind])
    assert session.context.names == ["pair-1"]
    assert session.last is last
    assert along(session.predict(SCAN, affine=STRAIGHT).mask) == [1, 2, 0, 0]


@pytest.mark.filterwarnings("ignore:.*were asked for as one")
def test_accepting_a_union_takes_the_contexts_own_values(new_session):
    """Class 1 of the request is the labels' value 5: the new pair must say 5."""
    session = fill(new_session(mean_label), line(5, 7, 2, 0))
    first = session.predict(SCAN, classes={"five or seven": (5, 7), "two": 2}, affine=STRAIGHT)
    assert along(first.mask) == [1, 1, 2, 0]
    assert along(session.accept().label) == [5, 5, 2, 0]
    assert session.context.values == [2, 5, 7]
    with pytest.raises(ContextError, match=r"the mask has \[3\]"):
        session.accept(first, line(1, 3, 0, 0))
    assert len(session.context) == 2


def test_a_mask_with_nan_is_refused(new_session):
    """xarray's `where` leaves NaN, which no integer type can hold."""
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    mask = session.predict(SCAN, affine=STRAIGHT).mask
    with (
        pytest.warns(VolumeWarning, match="replaced"),
        pytest.raises(ContextError, match="non-finite values; fill them"),
    ):
        session.accept(mask=mask.where(mask == 1))
    assert len(session.context) == 1
    assert along(session.accept(mask=mask.where(mask == 1, 0)).label) == [1, 0, 0, 0]


@pytest.mark.filterwarnings("ignore::medverse_nb.io.VolumeWarning")
def test_nan_in_a_label_file_is_not_foreground(new_session):
    label = np.where(line(1, 0, 0, 0) == 1, 1.0, np.nan)
    scan, label = nib.Nifti1Image(SCAN, STRAIGHT), nib.Nifti1Image(label, STRAIGHT)
    with pytest.raises(ContextError):
        new_session().add_context(scan, label)


@pytest.mark.filterwarnings("ignore::medverse_nb.io.VolumeWarning")
def test_the_answer_of_a_mended_target_can_be_accepted(new_session):
    """What was changed in the scan was not changed in its mask."""
    scan = SCAN.copy()
    scan[0, 0, 0] = np.nan
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    prediction = session.predict(scan, affine=STRAIGHT)
    assert not {"changes", "non_finite"} & set(prediction.mask.attrs)
    assert along(session.accept().label) == [1, 2, 0, 0]


def test_nothing_to_accept(new_session):
    with pytest.raises(ContextError, match="predict first"):
        fill(new_session(), line(1, 0)).accept()


@pytest.mark.filterwarnings("ignore:.*in the context already")
def test_an_image_answer_can_be_accepted(new_session):
    scan, ramp = draw_case((10, 9, 8), 1)[0], np.arange(720.0).reshape(10, 9, 8)
    session = new_session(mean_label, task="image")
    session.add_context(scan, ramp, name="first", affine=STRAIGHT)
    prediction = session.predict(scan, affine=STRAIGHT)
    assert np.array_equal(session.accept().label.values, prediction.image.values)
    assert session.predict(scan, affine=STRAIGHT).image.shape == scan.shape


# --- pictures ------------------------------------------------------------------------------------


def decode(png: bytes) -> np.ndarray:
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    assert min(pixels.shape[:2]) > 50
    return pixels


def test_the_notebook_shows_picture_numbers_and_score(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    html = session.predict(SCAN, affine=STRAIGHT, truth=line(1, 2, 0, 0))._repr_html_()
    picture = re.search(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', html)
    pixels = decode(base64.b64decode(picture[1]))
    # class 1 is orange: red well above blue somewhere, which no grey scan has
    assert (pixels[..., 0] - pixels[..., 2]).max() > 0.2
    assert "millilitres" in html
    assert "mean_label_dice" in html
    assert "Warning" not in html


def test_names_are_escaped_in_html(new_session, tmp_path):
    nib.save(nib.Nifti1Image(SCAN, STRAIGHT), tmp_path / "<b>&.nii.gz")
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    request = {"<script>alert(1)</script>": 1}
    html = session.predict(tmp_path / "<b>&.nii.gz", classes=request)._repr_html_()
    assert "<script>" not in html
    assert "<b>&.nii" not in html


@pytest.mark.parametrize("shape", [(1, 9, 8), (9, 1, 1), (1, 1, 1), (40, 3, 2), (2, 2, 60)])
@pytest.mark.parametrize("foreground", [True, False])
def test_pictures_of_thin_and_odd_volumes(new_session, shape, foreground):
    session = new_session(lambda g: torch.full_like(g.target, float(foreground)))
    fill(session, np.ones((8, 8, 8), np.uint8))
    prediction = session.predict(draw_case(shape, 0)[0], affine=np.diag([0.3, 5, 1, 1]))
    assert prediction.mask.shape == shape
    assert (prediction.mask == foreground).all()
    decode(prediction.picture())


def test_picture_of_an_image_task(new_session):
    session = new_session(mean_label, task="image")
    session.add_context(SCAN, 5 * SCAN, affine=STRAIGHT)
    prediction = session.predict(SCAN, affine=STRAIGHT)
    decode(prediction.picture())
    assert "<img" in prediction._repr_html_()


# --- odd targets -----------------------------------------------------------------------------------


def test_non_finite_voxels_are_replaced_and_reported(new_session):
    scan = SCAN.copy()
    scan[0, 0, 0], scan[1, 2, 3] = np.nan, np.inf
    session = fill(new_session(), line(1, 2, 0, 0))
    with pytest.warns(VolumeWarning, match="replaced 2 non-finite voxels by the minimum"):
        prediction = session.predict(scan, affine=STRAIGHT)
    assert np.isfinite(prediction.probability.values).all()
    assert any("replaced 2 non-finite" in text for text in prediction.warnings)
    assert "replaced 2 non-finite" in prediction._repr_html_()
    assert "replaced 2 non-finite" in json.dumps(prediction.manifest)
    filled = np.where(np.isfinite(scan), scan, scan[np.isfinite(scan)].min())
    expected = session.predict(filled, affine=STRAIGHT)
    assert np.array_equal(prediction.probability.values, expected.probability.values)


def test_a_data_array_with_non_finite_voxels_is_mended_aloud(new_session):
    """Arithmetic on a volume can make NaN."""
    volume = read_volume(nib.Nifti1Image(SCAN, STRAIGHT))
    session = fill(new_session(), line(1, 2, 0, 0))
    holed = volume.where(volume > 0.2)
    with pytest.warns(VolumeWarning, match="non-finite"):
        prediction = session.predict(holed)
    filled = holed.fillna(float(holed.min()))
    expected = session.predict(filled)
    assert np.array_equal(prediction.probability.values, expected.probability.values)
    assert np.isnan(holed.values).any()


def test_a_constant_target_is_predicted_and_reported(new_session):
    session = fill(new_session(), line(1, 2, 0, 0))
    flat = np.full((4, 8, 8), 41.0, np.float32)
    target = nib.Nifti1Image(flat, STRAIGHT)
    prediction = session.predict(target)
    assert np.isfinite(prediction.probability.values).all()
    decode(prediction.picture())
    report = session.check(target)
    assert not report.ok
    assert [f.code for f in report.findings if f.severity == "error"] == ["constant-image"]


def test_no_affine_is_assumed_aloud(new_session):
    session = fill(new_session(), line(1, 2, 0, 0))
    with pytest.warns(VolumeWarning, match="no affine given"):
        prediction = session.predict(SCAN)
    assert np.array_equal(affine_of(prediction.mask), np.eye(4))
    assert any("no affine given" in text for text in prediction.warnings)


# --- making a session ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [{"task": "detection"}, {"align": "corner"}, {"precision": "int8"}, {"device": "abacus"}],
)
def test_unknown_settings_are_refused(tiny_weights, setting):
    (name,) = setting
    with pytest.raises(InputError, match=name):
        ICLSession(tiny_weights, **setting)


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no model 'medverse-huge'"):
        ICLSession("medverse-huge")
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"weights are \.safetensors"):
        ICLSession(tmp_path / "net.pth")


def test_representations_name_what_matters(new_session):
    session = fill(new_session(mean_label), line(1, 2, 0, 0))
    assert "1 pairs, values [1, 2]" in repr(session)
    assert "class 1, class 2, (4, 8, 8)" in repr(session.predict(SCAN, affine=STRAIGHT))
