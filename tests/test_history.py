"""What a context remembers: where its pairs came from, what was done to it, and the way back."""

import pickle
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import read_volume
from medverse_nb.classes import ClassTable
from medverse_nb.context import MOST_CHANGES, ContextSet
from medverse_nb.errors import ContextError
from medverse_nb.pair import make_pair

pytestmark = pytest.mark.usefixtures("one_thread")
STRAIGHT = np.diag([1.5, 2.0, 1.0, 1.0])


def pair(name: str, value: int = 1):
    label = np.zeros((3, 4, 5), np.uint8)
    label[1, 1, 1] = value
    return make_pair(label.astype(np.float32), label, name=name, affine=STRAIGHT)


def kinds(context: ContextSet) -> list[str]:
    return [change.kind for change in context.history]


# --- undo -----------------------------------------------------------------------------------------


def test_changes_are_taken_back_one_by_one_the_last_first():
    context = ContextSet()
    context.add(pair("a"))
    context.add(pair("b"), pair("c"))
    context.remove("b")
    context.add(pair("b"))
    assert kinds(context) == ["added", "added", "removed", "added"]
    seen = [context.names]
    while context.history:
        context.undo()
        seen.append(context.names)
    assert seen == [["a", "c", "b"], ["a", "c"], ["a", "b", "c"], ["a"], []]
    with pytest.raises(ContextError, match="nothing to undo"):
        context.undo()


def test_a_removed_pair_comes_back_where_it_was_and_the_same():
    context = ContextSet()
    context.add(pair("a"), pair("b"), pair("c"))
    taken = context.remove("b")
    change = context.undo()
    assert repr(change) == "<Change: removed b>"
    assert context.names == ["a", "b", "c"]
    assert context["b"] is taken


def test_what_is_not_kept_goes_and_comes_back_as_one_change():
    context = ContextSet()
    context.add(*map(pair, "abcde"))
    before = list(context.pairs)
    for kept in ("bd", "abe", "cde", "e"):
        assert "".join(p.name for p in context.keep(list(kept))) == "".join(
            name for name in "abcde" if name not in kept
        )
        assert context.names == list(kept)
        assert kinds(context) == ["added", "removed"]
        assert context.undo().kind == "removed"
        assert [*map(id, context)] == [*map(id, before)]
    assert context.keep(list("edcba")) == []
    assert kinds(context) == ["added"]
    for names, message in ((["a", "z"], "no context pair is called 'z'"), ([], "name one or more")):
        with pytest.raises(ContextError, match=message):
            context.keep(names)
    assert context.names == list("abcde")


@pytest.mark.parametrize("places", [(0,), (0, 2, 4), (-1, 2), (0, 9), (9, 0)])
def test_places_that_cannot_be_are_refused(places):
    context = ContextSet()
    context.add(pair("a"), pair("b"), pair("c"))
    context.keep(["b"])
    context.history[-1] = replace(context.history[-1], places=places)
    with pytest.raises(ContextError, match="changed otherwise"):
        context.undo()
    assert context.names == ["b"]


def test_what_adds_or_removes_nothing_is_no_change():
    context = ContextSet()
    context.add(pair("a"))
    with pytest.raises(ContextError, match="taken"):
        context.add(pair("b"), pair("a"), table=ClassTable({1: "liver"}))
    with pytest.raises(ContextError, match="no context pair is called 'z'"):
        context.remove("z")
    context.add()
    assert kinds(context) == ["added"]
    assert context.table.names == {}


def test_pairs_that_were_changed_otherwise_are_left_alone():
    context = ContextSet()
    context.add(pair("a"))
    context.pairs.append(pair("b"))
    del context.pairs[0]
    with pytest.raises(ContextError, match="changed otherwise"):
        context.undo()
    assert context.names == ["b"]
    assert kinds(context) == ["added"]


def test_old_changes_are_forgotten():
    context = ContextSet()
    for number in range(MOST_CHANGES + 3):
        context.add(pair(f"pair-{number}"))
    while context.history:
        context.undo()
    assert context.names == ["pair-0", "pair-1", "pair-2"]


def test_class_names_go_with_the_pairs_they_came_with():
    context = ContextSet(table=ClassTable({1: "liver", 2: "spleen"}, {1: (1, 2, 3)}))
    context.add(pair("a"), table=ClassTable({1: "kidney", 3: "cyst"}, {1: (9, 9, 9)}))
    assert context.table.names == {1: "kidney", 2: "spleen", 3: "cyst"}
    context.table.update(ClassTable({3: "tumour"}))  # read since: stays
    context.undo()
    assert context.table == ClassTable({1: "liver", 2: "spleen", 3: "tumour"}, {1: (1, 2, 3)})


def test_workers_get_no_removed_pairs():
    context = ContextSet()
    context.add(pair("a"), pair("b"))
    context.remove("b")
    sent = pickle.loads(pickle.dumps(context))
    assert (sent.names, sent.history) == (["a"], [])
    assert len(context.history) == 2


@pytest.mark.filterwarnings("ignore:.*in the context already")
def test_a_session_takes_back_its_changes(session, cohort):
    (cohort.root / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    again = make_pair(cohort.scan, cohort.labels / "one.nii.gz", name="more")
    session.context.add(again)
    assert session.remove_context("two").name == "two"
    session.predict(cohort.scan)
    session.accept()
    told = [session.undo().kind for _ in range(4)]
    assert told == ["accepted", "removed", "added", "added"]
    assert session.context.names == []
    pairs = session.add_context_folder(cohort.images, cohort.labels)
    assert (len(pairs), session.context.table.names) == (3, {1: "liver"})
    session.undo()
    assert (session.context.names, session.context.table.names) == ([], {})
    with pytest.raises(ContextError, match="no context pair is called 'two'"):
        session.remove_context("two")


# --- provenance -----------------------------------------------------------------------------------


def test_added_pairs_remember_their_paths(session, cohort, monkeypatch):
    origin = session.context["one"].provenance
    assert origin.how == "added"
    assert origin.image == str(cohort.images / "one_0000.nii.gz")
    assert origin.label == str(cohort.labels / "one.nii.gz")
    assert origin.when.endswith("+00:00")
    assert (origin.target, origin.weights_sha256, origin.corrected) == (None, None, None)
    monkeypatch.chdir(cohort.root)
    label = cohort.labels / "one.nii.gz"
    scan = np.asarray(nib.load(cohort.scan).dataobj)
    sources = [
        ("scan.nii.gz", str(Path("scan.nii.gz").absolute())),
        (nib.load(cohort.scan), str(cohort.scan)),
        (read_volume(cohort.scan), str(cohort.scan)),
        (nib.Nifti1Image(scan, nib.load(cohort.scan).affine), "array"),
    ]
    for source, told in sources:
        assert make_pair(source, label, name="x").provenance.image == told
    affine = nib.load(cohort.scan).affine
    assert make_pair(scan, label, name="x", affine=affine).provenance.image == "array"


@pytest.mark.filterwarnings("ignore:.*in the context already")
def test_accepted_pairs_remember_what_they_were_predicted_with(session, cohort):
    prediction = session.predict(cohort.scan)
    origin = session.accept().provenance
    assert (origin.how, origin.target, origin.corrected) == ("accepted", "scan.nii.gz", False)
    assert (origin.image, origin.label) == (str(cohort.scan), "prediction")
    assert origin.model == session.model_name
    assert origin.weights_sha256 == session.weights_hash
    assert origin.tuned is False
    same = session.accept(prediction, prediction.mask.copy())
    assert same.provenance.corrected is False  # looked at, nothing changed
    values = prediction.mask.values.copy()
    values[0, 0, 0] = 1 if values[0, 0, 0] != 1 else 2
    other = session.accept(prediction, values)
    assert (other.provenance.corrected, other.provenance.label) == (True, "array")
    assert kinds(session.context)[-3:] == ["accepted"] * 3
