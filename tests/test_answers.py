"""What the comparisons of contexts share: answers, how far they agree, and asking for them."""

import threading

import numpy as np
import pytest
import xarray as xr

import medverse_nb as mv
from medverse_nb.errors import Cancelled, InputError
from medverse_nb.evaluation.answers import Answer, Asking, predictor
from medverse_nb.inference.recipe import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def voxels(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1)


def segmentation(*classes):
    return Answer.of(np.stack(classes), "segmentation")


def test_masks_take_the_likeliest_class_above_a_half():
    answer = segmentation(voxels(0.9, 0.6, 0.4, 0.5), voxels(0.1, 0.7, 0.3, 0.5))
    assert answer.masks[..., 0, 0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_change_of_masks_is_one_minus_dice():
    one, other = segmentation(voxels(1, 1, 0, 0)), segmentation(voxels(0, 1, 1, 1))
    assert one.change(other) == pytest.approx([1 - 2 / 5])
    assert one.score(other) == pytest.approx([2 / 5])


def test_change_by_hand():
    one, other = segmentation(voxels(0.2, 0.4)), segmentation(voxels(0.3, 0.1))
    assert one.change(other) == pytest.approx([0.4 / 1.0])
    image, darker = (Answer.of(voxels(*v), "image") for v in ((10, 20), (10, 14)))
    assert image.change(darker) == pytest.approx([3])


@pytest.mark.parametrize("level", [0, 0.3, 1])
def test_equal_answers_have_not_changed(level):
    answer = segmentation(voxels(level, level), voxels(0, 0))
    assert answer.change(answer) == [0, 0]


def test_names_come_with_the_answer_or_are_numbers():
    volumes = np.zeros((2, 1, 1, 1))
    named = xr.DataArray(volumes, dims=("class", "x", "y", "z"), coords={"class": ["a", "b"]})
    assert Answer.of(named, "segmentation").names == ("a", "b")
    assert Answer.of(volumes, "segmentation").names == ("1", "2")
    assert Answer.of(volumes[0], "image").names == ("image",)


@pytest.mark.parametrize(
    ("shape", "task"), [((2, 2), "segmentation"), ((2, 3, 3, 3), "image"), ((0, 3, 3), "image")]
)
def test_what_is_no_answer_is_said(shape, task):
    with pytest.raises(InputError, match=r"must be .*\(X, Y, Z\), got"):
        Answer.of(np.zeros(shape), task)


def test_a_truth_of_another_shape_is_said():
    with pytest.raises(InputError, match=r"of one shape .*\(1, 3, 1, 1\) and \(1, 2, 1, 1\)"):
        segmentation(voxels(1, 0, 0)).score(segmentation(voxels(1, 0)))


def test_asking_tells_before_each_answer_and_at_the_end():
    told = []
    ask = Asking(lambda _: voxels(1), "segmentation", 2, lambda *news: told.append(news))
    ask("one", [])
    assert told == [("one", 0, 2)]
    ask("two", [])
    assert told == [("one", 0, 2), ("two", 1, 2), ("", 2, 2)]


def test_asking_ends_before_the_next_answer():
    cancel = threading.Event()
    ask = Asking(lambda _: voxels(1), "segmentation", 3, cancel=cancel)
    ask("one", [])
    cancel.set()
    with pytest.raises(Cancelled, match="after 1 of 3"):
        ask("two", [])


def test_the_predictor_answers_as_the_session_does(session, cohort):
    predict = predictor(
        session.network,
        mv.read_volume(cohort.scan),
        [spec.values for spec in session.resolve(None)],
        align=session.align,
        settings=Settings(precision=session.precision),
    )
    expected = session.predict(cohort.scan, on_progress=None).probability
    assert np.array_equal(predict(session.context.pairs), expected.values)


def test_the_predictor_answers_on_the_scans_own_axes(session, cohort):
    scan = mv.read_volume(cohort.scan)
    turned = scan.transpose("z", "x", "y")[::-1]
    asked = (session.network, [(1,)])
    straight, turned_answer = (
        predictor(asked[0], volume, asked[1])(session.context.pairs) for volume in (scan, turned)
    )
    assert np.array_equal(turned_answer, straight.transpose(0, 3, 1, 2)[:, ::-1])


def test_the_predictor_takes_a_class_that_no_pair_has_as_empty(session, cohort):
    answer = predictor(session.network, mv.read_volume(cohort.scan), [(1,), (9,)])(
        session.context.pairs[:1]
    )
    assert answer.shape == (2, *mv.read_volume(cohort.scan).shape)
