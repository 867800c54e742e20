"""The context workbench: choosing pairs, measuring them, comparing two choices."""

import threading

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import ICLSession
from medverse_nb.errors import Cancelled, ContextError, InputError
from medverse_nb.evaluation.answers import predictor
from medverse_nb.evaluation.influence import influence
from medverse_nb.evaluation.similarity import similarity
from medverse_nb.inference.recipe import Settings
from medverse_nb.io import read_volume
from medverse_nb.ui.context_explorer import draw_workbench, found_html
from medverse_nb.ui.gallery import SIDE_PIXELS, make_card
from medverse_nb.ui.layers import ZERO_CODE
from medverse_nb.ui.workbench import WorkbenchState

pytestmark = pytest.mark.usefixtures("one_thread")

LONG_S = 60


@pytest.fixture
def truth(cohort):
    """The scan's label, in the file's order."""
    label = np.zeros((9, 10, 8), np.uint8)
    label[2:6, 3:7, 2:6] = 1
    label[2:4, 3:7, 2:6] = 2
    path = cohort.root / "truth.nii.gz"
    nib.save(nib.Nifti1Image(label, nib.load(cohort.scan).affine), path)
    return path


@pytest.fixture
def state(session, cohort, truth):
    return WorkbenchState(session, cohort.scan, truth)


def done(state: WorkbenchState) -> WorkbenchState:
    assert state.job.wait(LONG_S)
    assert (state.job.status, state.job.error) == ("done", "")
    return state


def everything(state: WorkbenchState) -> tuple:
    """Return all traits, and the names in the session's context."""
    names = [name for name in state.trait_names() if not name.startswith("_")]
    return [getattr(state, name) for name in names], state.session.context.names


# --- the gallery and the ticks ---------------------------------------------------------------------


def test_it_opens_with_all_pairs_ticked(state):
    assert state.names == state.used == ("one", "three", "two")
    assert state.class_names == ["class 1", "class 2"]
    assert state.caption == "3 of 3 pairs used, target scan.nii.gz"
    assert (state.influence, state.curve, state.wrong, state.comparing) == (None,) * 4


def test_the_classes_asked_for_are_measured_and_compared(session, cohort, truth):
    state = WorkbenchState(session, cohort.scan, truth, {"both": (1, 2)})
    state.run("A")
    done(state)
    assert state.scores.index.tolist() == ["both"]
    answer = session.predict(cohort.scan, classes={"both": (1, 2)}, truth=truth)
    assert state.scores.loc["both", "A"] == pytest.approx(answer.score.loc["both", "dice"])
    state.check_wrong_context()
    assert done(state).wrong.table["class"].unique().tolist() == ["both"]
    with pytest.raises(ContextError, match=r"\[7\]"):
        session.explore_context(cohort.scan, classes=[7])


def test_thumbnails_show_the_busiest_slice_with_its_label(session):
    classes = session.resolve(None)
    picture = make_card(session.context["one"], classes).picture
    assert picture.dtype == np.uint8
    # 9 voxels of 2 mm by 10 of 1.5 mm: the pixels are square
    assert picture.shape == (round(15 / 18 * SIDE_PIXELS), SIDE_PIXELS, 3)
    spread = np.ptp(picture.astype(int), axis=2)
    assert not spread[:, :10].any()  # left of the block all is grey
    low, high = (round(share * SIDE_PIXELS) for share in (1 / 9, 5 / 9))
    middle = picture.shape[0] // 2
    assert spread[middle, low + 1 : high - 1].all()
    assert not spread[middle, high + 1 :].any()
    for name in ("two", "three"):
        assert not np.array_equal(picture, make_card(session.context[name], classes).picture)


def test_a_thumbnail_of_an_image_task_has_the_label_beside_it(tiny_weights):
    session = ICLSession(tiny_weights, task="image", device="cpu", precision="float32")
    image = np.random.default_rng(0).random((6, 6, 4), np.float32)
    session.add_context(image, 1 - image, name="one", affine=np.eye(4))
    state = WorkbenchState(session)
    rows, columns, _ = state.gallery[0].picture.shape
    assert (rows, columns) == (SIDE_PIXELS, 2 * SIDE_PIXELS)
    left, right = np.split(state.gallery[0].picture.astype(int), 2, axis=1)
    assert np.abs(left + right - 255).max() <= 1


def test_ticks_never_change_the_context(state):
    state.tick("three", False)
    assert state.used == ("one", "two")
    state.used = ("two", "one", "two")
    assert state.used == ("one", "two")  # the context's order, each once
    state.tick("three")
    assert state.used == ("one", "three", "two")
    state.used = ()
    assert state.session.context.names == ["one", "three", "two"]
    assert state.session.context.history[-1].kind == "added"


def test_unknown_names_are_refused(state):
    before = everything(state)
    for act in (
        lambda: setattr(state, "used", ("one", "ghost")),
        lambda: state.tick("ghost"),
        lambda: setattr(state, "shown", "ghost"),
    ):
        with pytest.raises(ContextError, match="ghost"):
            act()
    with pytest.raises(InputError, match="not one of histogram, image, edges, features"):
        state.descriptor = "colour"
    with pytest.raises(InputError, match="no class 'liver'"):
        state.class_name = "liver"
    with pytest.raises(InputError, match="'C' is not one of"):
        state.run("C")
    assert everything(state) == before


def test_keeping_is_one_change_and_can_be_undone(state):
    pairs = list(state.session.context.pairs)
    state.used = ("three",)  # the others do not lie side by side
    state.keep()
    assert state.session.context.names == ["three"]
    assert state.names == state.used == ("three",)
    change = state.session.undo()
    assert [pair.name for pair in change.pairs] == ["one", "two"]
    assert all(a is b for a, b in zip(state.session.context.pairs, pairs, strict=True))
    state.refresh()
    assert state.names == ("one", "three", "two")
    assert state.used == ("three",)


def test_a_bank_keeps_what_was_left_out(state, tmp_path):
    state.used = ("three",)
    state.keep()
    again = ICLSession.load(state.session.save(tmp_path / "bank.mvctx"), device="cpu")
    assert again.context.names == ["three"]
    again.undo()
    assert again.context.names == ["one", "three", "two"]


def test_keeping_all_changes_nothing_and_keeping_none_is_refused(state):
    history = list(state.session.context.history)
    state.keep()
    state.used = ()
    with pytest.raises(ContextError, match="no pair is ticked"):
        state.keep()
    assert state.session.context.history == history
    assert len(state.session.context) == 3


def test_the_pair_that_is_looked_at_cannot_be_left_out(state):
    state.shown = "one"
    assert [panel.title for panel in state.pair.scene.panels] == ["one"]
    state.tick("one", False)
    before = everything(state)
    with pytest.raises(ContextError, match="'one' is being looked at"):
        state.keep()
    assert everything(state) == before
    state.shown = ""
    assert state.pair is None
    state.keep()
    assert state.session.context.names == ["three", "two"]


def test_a_pair_removed_elsewhere_is_noticed(state):
    state.shown = "one"
    state.session.remove_context("one")
    before = everything(state)
    for act in (state.keep, state.run, state.measure_influence, state.measure_how_many):
        with pytest.raises(ContextError, match=r"no longer has one; refresh\(\)"):
            act()
    assert everything(state) == before
    state.refresh()
    assert (state.names, state.used, state.shown, state.pair) == (("three", "two"),) * 2 + (
        "",
        None,
    )


def test_pairs_that_came_in_are_shown_but_not_ticked(state):
    pair = state.session.context["one"]
    state.session.add_context(pair.image, pair.label, name="more")
    cards = state.gallery
    state.refresh()
    assert state.names == ("one", "three", "two", "more")
    assert state.used == ("one", "three", "two")
    assert state.gallery[:3] == cards  # not drawn again


# --- measuring -------------------------------------------------------------------------------------


def test_similarity_goes_by_the_name_of_its_descriptor(state):
    for name in ("image", "histogram", "features"):
        state.descriptor = name
        assert list(state.similarity) == ["one", "three", "two"]
    state.descriptor = "edges"
    table = similarity(state.target, state.session.context.pairs, "edges")
    assert list(state.similarity.values()) == table["similarity"].tolist()


def test_influence_is_that_of_the_ticked_pairs(state):
    state.used = ("one", "two")
    state.measure_influence()
    done(state)
    assert state.influence.names == ("one", "two")
    session = state.session
    wanted = [spec.values for spec in state.classes]
    settings = Settings(precision=session.precision)
    ask = predictor(session.network, state.target, wanted, settings=settings)
    pairs = [session.context[name] for name in ("one", "two")]
    expected = influence(ask, pairs, truth=state.truth.volumes)
    found = state.influence.table
    assert set(found["class"]) == {"class 1", "class 2"}
    assert found["influence"].tolist() == pytest.approx(expected["influence"].tolist())
    assert found["gain"].tolist() == pytest.approx(expected["gain"].tolist())
    assert set(state.influences) == {"one", "two"}
    state.tick("two", False)  # what was measured stays, and says with which pairs
    assert state.influence.names == ("one", "two")
    state.keep()
    assert state.influence is None  # it told of a pair that is gone


def test_the_curve_ends_at_all_ticked_pairs(state):
    state.measure_how_many(draws=2)
    done(state)
    assert sorted(state.curve.table["size"].unique()) == [1, 2, 3]
    assert set(state.curve.table["measure"]) == {"dice"}
    assert draw_workbench(state).axes[-1].get_xlabel() == "pairs, of 3 ticked"


def test_the_wrong_context_exchanges_two_labels_where_there_are_two(state):
    state.check_wrong_context()
    done(state)
    assert list(state.wrong.table.columns) == ["class", "agreement", "dice", "dice_wrong"]
    with pytest.raises(ContextError, match="must name label values"):
        state.check_wrong_context({1: 9})
    state.check_wrong_context({2: 1})
    done(state)


def test_two_choices_are_compared(state):
    state.run("A")
    done(state)
    assert [panel.title for panel in state.comparing.scene.panels] == ["answer A"]
    assert list(state.scores.columns) == ["A"]
    state.used = ("one",)
    state.comparing.cursor = (1, 2, 3)
    state.run("B")
    done(state)
    assert (state.a.names, state.b.names) == (("one", "three", "two"), ("one",))
    titles = [panel.title for panel in state.comparing.scene.panels]
    assert titles == ["answer A", "answer B", "difference B - A, class 1"]
    assert state.comparing.cursor == (1, 2, 3)
    assert list(state.scores.columns) == ["A", "B", "agreement"]
    assert list(state.scores.index) == ["class 1", "class 2"]

    def difference() -> np.ndarray:
        return state.comparing.scene.panels[-1].layers[-1].codes.astype(int) - ZERO_CODE

    first, second = (choice.answer.volumes for choice in (state.a, state.b))
    assert np.array_equal(difference(), np.rint(127 * (second[0] - first[0])))
    state.class_name = "class 2"
    assert np.array_equal(difference(), np.rint(127 * (second[1] - first[1])))
    assert "choice B" in found_html(state)


def test_the_answers_are_those_of_a_prediction(state, cohort):
    state.run("A")
    done(state)
    prediction = state.session.predict(cohort.scan)
    assert np.allclose(state.a.answer.volumes, prediction.probability.values, atol=1e-6)
    mask = state.comparing.scene.panels[0].layers[-1].codes
    assert np.array_equal(mask > 0, prediction.mask.values > 0)
    state.run("B")
    done(state)
    assert state.scores["agreement"].tolist() == [1, 1]


def test_answers_lie_where_a_scan_of_any_axis_order_has_them(session, cohort, monkeypatch):
    turned = nib.load(cohort.scan).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    state = WorkbenchState(session, turned)
    mask = np.random.default_rng(0).integers(0, 3, turned.shape)
    answer = np.stack([mask == 1, mask == 2]).astype(np.float32)
    monkeypatch.setattr(session, "predictor", lambda *_, **__: lambda _pairs: answer)
    state.run("A")
    done(state)
    for voxel in np.ndindex(mask.shape):
        state.comparing.look_at(voxel)
        found = state.comparing.values()["answer A"]["labels"]
        assert found == ("", "class 1", "class 2")[mask[voxel]]


def test_an_image_task_is_compared_by_difference(tiny_weights):
    session = ICLSession(tiny_weights, task="image", device="cpu", precision="float32")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        image = rng.random((6, 6, 4), np.float32)
        session.add_context(image, 100 * image, name=name, affine=np.eye(4))
    scan = read_volume(image, np.eye(4))
    state = WorkbenchState(session, scan, read_volume(100 * image, np.eye(4)))
    assert state.truth.volumes.max() <= 1  # in the answer's units
    state.run("A")
    done(state)
    state.used = ("one",)
    state.run("B")
    done(state)
    assert list(state.scores.columns) == ["A", "B", "difference"]
    assert [panel.title for panel in state.comparing.scene.panels][-1] == "difference B - A, image"


def test_what_an_action_lacks_is_said(state, session):
    alone = WorkbenchState(session)
    assert alone.similarity == {}
    assert alone.caption == "3 of 3 pairs used, no target"
    for act in (
        alone.run, alone.measure_influence, alone.measure_how_many, alone.check_wrong_context,
    ):  # fmt: skip
        with pytest.raises(InputError, match="needs a scan to answer"):
            act()
    state.used = ()
    before = everything(state)
    for act in (state.run, state.measure_influence, state.measure_how_many):
        with pytest.raises(ContextError, match="no pair is ticked"):
            act()
    state.used = ("one",)
    with pytest.raises(ContextError, match="two ticked pairs or more"):
        state.measure_influence()
    state.used = ()
    assert everything(state) == before
    assert state.job.status == "idle"


def test_it_opens_only_on_what_can_be_shown(session, cohort, truth, tiny_weights):
    with pytest.raises(ContextError, match="there are no pairs"):
        ICLSession(tiny_weights, device="cpu").explore_context()
    with pytest.raises(InputError, match="give the target too"):
        session.explore_context(truth=truth)
    with pytest.raises(InputError, match='is not "auto", "canvas" or "static"'):
        session.explore_context(backend="niivue")
    with pytest.raises(ContextError, match="shape"):
        session.explore_context(cohort.scan, np.zeros((2, 2, 2), np.uint8))


def test_one_thing_at_a_time_and_cancelled_work_changes_nothing(state, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def slow(target, *, classes, cancel, on_progress=None):
        def predict(pairs):
            began.set()
            assert go_on.wait(LONG_S)
            if cancel.is_set():
                raise Cancelled("cancelled at scale 1")
            raise AssertionError("was not cancelled")

        return predict

    monkeypatch.setattr(state.session, "predictor", slow)
    before = everything(state)
    state.run("A")
    assert began.wait(LONG_S)
    for act in (state.measure_influence, state.check_wrong_context, state.keep):
        with pytest.raises(InputError, match="under way"):
            act()
    state.job.cancel()
    go_on.set()
    assert state.job.wait(LONG_S)
    assert state.job.status == "cancelled"
    assert everything(state) == before


def test_a_run_that_fails_says_why_and_changes_nothing(state, monkeypatch):
    before = everything(state)
    with monkeypatch.context() as patch:
        patch.setattr(state.session.context, "pairs", [])  # left empty once it runs
        patch.setattr(state, "_ticked", lambda: [card.pair for card in state.gallery])
        for act in (state.run, state.measure_influence):
            act()
            assert state.job.wait(LONG_S)
            assert (state.job.status, state.job.result) == ("failed", None)
            assert "there are no context pairs" in state.job.error
    assert everything(state) == before
    state.run()
    done(state)  # and the next one goes well


def test_a_session_answers_from_any_pairs(session, cohort):
    predict = session.predictor(cohort.scan, classes={"block": (1, 2)})
    answer = predict(session.context.pairs[:1])
    assert answer.shape == (1, 9, 10, 8)
    assert list(answer["class"].values) == ["block"]
    cancel = threading.Event()
    told = []
    predict = session.predictor(
        cohort.scan, cancel=cancel, on_progress=lambda *news: told.append(news)
    )
    predict(session.context.pairs)
    assert told[0][0].startswith("scale 1 of")
    cancel.set()
    with pytest.raises(Cancelled, match="cancelled at scale 1"):
        predict(session.context.pairs)


# --- the widget and its picture --------------------------------------------------------------------


def test_the_picture_has_a_cell_for_each_pair_with_its_numbers(state):
    state.tick("two", False)
    state.measure_influence()
    done(state)
    titles = [axes.get_title() for axes in draw_workbench(state).axes if axes.images]
    assert len(titles) == 3
    assert titles[0].startswith("[x] one\nimage 0.")
    assert "influence" in titles[1]
    assert titles[2].startswith("[  ] two")
    assert "influence" not in titles[2]


def test_without_a_notebook_it_is_a_picture(session, cohort):
    explorer = session.explore_context(cohort.scan)
    assert explorer.backend == "static"
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == "<ContextExplorer: 3 of 3 pairs used, target scan.nii.gz>"


def test_the_widget_and_the_state_say_the_same(session, cohort, truth):
    explorer = session.explore_context(cohort.scan, truth, "canvas")
    state = explorer.state
    caption, gallery, actions, controls, _bar, problem, found, curve, compared, pair = (
        explorer.widget.children
    )
    clicks = {button.description: button.click for button in actions.children}

    def ticks() -> list[bool]:
        return [card.children[1].value for card in gallery.children]

    gallery.children[1].children[1].value = False
    assert state.used == ("one", "two")
    assert "2 of 3" in caption.value
    state.used = ("one",)
    assert ticks() == [True, False, False]
    clicks["influence"]()
    assert "two ticked pairs or more" in problem.value
    assert state.job.status == "idle"
    gallery.children[0].children[3].click()
    assert state.shown == "one"
    assert pair.children[0].state is state.pair
    clicks["run as A"]()
    assert problem.value == ""
    clicks["run as B"]()
    assert "under way" in problem.value
    done(state)
    assert "choice A" in found.value
    assert compared.children[0].state is state.comparing
    state.used = state.names
    clicks["how many"]()
    done(state)
    assert bytes(curve.value[:4]) == b"\x89PNG"
    controls.children[0].value = "edges"
    assert state.descriptor == "edges"
    assert "edges" in gallery.children[0].children[2].value
    state.descriptor, state.class_name = "histogram", "class 2"
    assert [box.value for box in controls.children] == ["histogram", "class 2"]
    state.used = ("one", "two")
    clicks["keep ticked"]()
    assert len(gallery.children) == 2
    session.undo()
    clicks["refresh"]()
    assert ticks() == [True, False, True]
    explorer.close()
    explorer.close()


def test_closing_it_cancels_what_runs(session, cohort):
    explorer = session.explore_context(cohort.scan, backend="canvas")
    explorer.state.run("A")
    explorer.close()
    assert explorer.state.job.wait(LONG_S)
    assert explorer.state.job.status == "cancelled"
    assert explorer.state.a is None
