"""The app: what its state does below one folder, and the command that serves it."""

import json
import os
import shutil
import socket
import sys
import threading
import zipfile
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest

from medverse_nb import ICLSession
from medverse_nb.app import HOST, lay_out, options_of, serve
from medverse_nb.errors import Cancelled, InputError, MedverseError
from medverse_nb.ui.app_state import AppState

pytestmark = pytest.mark.usefixtures("one_thread")

LONG_S = 60
SHOWN = ("pairs", "report", "prediction", "planes", "looking")


@pytest.fixture
def root(cohort):
    """The cohort below a folder of its own, and a secret beside that folder."""
    root = cohort.root / "study"
    root.mkdir()
    for name in ("imagesTr", "labelsTr", "scan.nii.gz"):
        shutil.move(cohort.root / name, root / name)
    shutil.copytree(root / "imagesTr", cohort.root / "secret")
    return root


@pytest.fixture
def state(root, tiny_weights):
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    return AppState(root, session, model=tiny_weights, device="cpu")


@pytest.fixture
def full(state):
    assert state.add_folder("imagesTr", "labelsTr")
    return state


@pytest.fixture
def answered(full):
    assert full.predict("scan.nii.gz")
    assert full.job.wait(LONG_S)
    assert (full.job.status, full.job.error, full.problem) == ("done", "", "")
    return full


def refused(state: AppState, action, *arguments) -> str:
    """Ask for what cannot be done; nothing may change but the message."""
    session = state.session
    before = [getattr(state, name) for name in SHOWN], session.context.names
    assert action(*arguments) is False
    assert ([getattr(state, name) for name in SHOWN], session.context.names) == before
    assert state.session is session
    assert state.problem
    return state.problem


# --- files ---------------------------------------------------------------------------------------


def test_it_lists_what_is_below_the_folder(state, root):
    assert state.folders == (".", "imagesTr", "labelsTr")
    assert state.scans == (
        *(f"imagesTr/{n}_0000.nii.gz" for n in ("one", "three", "two")),
        *(f"labelsTr/{n}.nii.gz" for n in ("one", "three", "two")),
        "scan.nii.gz",
    )
    (root / "series").mkdir()
    (root / "series" / "1.dcm").touch()
    (root / "v.zarr" / "0").mkdir(parents=True)
    (root / ".hidden.nii").touch()
    (root / "old.mvctx").touch()
    assert state.refresh()
    assert {"series", "v.zarr"} <= set(state.scans)
    assert ".hidden.nii" not in state.scans
    assert "v.zarr/0" not in state.folders
    assert state.banks == ("old.mvctx",)


def test_a_large_folder_is_listed_in_part(state, monkeypatch):
    monkeypatch.setattr("medverse_nb.ui.app_state.MOST_LISTED", 4)
    assert state.refresh()
    assert not state.complete
    assert "only 4 entries" in state.said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("../secret", "without '..'"),
        ("imagesTr/../../secret", "without '..'"),
        ("..\\secret", "without '..'"),
        ("/etc/passwd", "below the app's folder"),
        ("link", "leads out"),
        ("link/one_0000.nii.gz", "leads out"),
        ("circle", "circle|leads out|no such|followed"),
        ("nothing", "no such file"),
        ("", "choose a file"),
        ("a\0b", "choose a file"),
    ],
)
def test_nothing_outside_is_reached(state, root, text, reason):
    (root / "link").symlink_to(root.parent / "secret")
    (root / "circle").symlink_to(root / "circle")
    with pytest.raises(InputError, match=reason):
        state.inside(text)
    for action in (
        lambda: state.predict(text),
        lambda: state.draw(text, "lesion"),
        lambda: state.check(text or "nothing"),
        lambda: state.add_pair(text, "labelsTr/one.nii.gz"),
        lambda: state.add_pair("imagesTr/one_0000.nii.gz", text),
        lambda: state.add_folder(text, "labelsTr"),
        lambda: state.open_bank(text),
    ):
        refused(state, action)


def test_links_out_are_not_listed_and_links_inside_are(state, root):
    (root / "link").symlink_to(root.parent / "secret")
    (root / "one.nii.gz").symlink_to(root.parent / "secret" / "one_0000.nii.gz")
    (root / "same.nii.gz").symlink_to(root / "scan.nii.gz")
    assert state.refresh()
    assert "same.nii.gz" in state.scans
    assert not {"one.nii.gz", "link"} & {*state.scans, *state.folders}


def test_a_link_within_a_chosen_folder_is_refused(state, root):
    image = root / "imagesTr" / "two_0000.nii.gz"
    image.unlink()
    image.symlink_to(root.parent / "secret" / "two_0000.nii.gz")
    assert "case 'two'" in refused(state, state.add_folder, "imagesTr", "labelsTr")
    store = root / "v.zarr"
    store.mkdir()
    (store / "0").symlink_to(root.parent / "secret")
    assert "leads out" in refused(state, state.check, "v.zarr")


def test_class_names_come_from_inside_only(root, tiny_weights):
    names = json.dumps({"labels": {"background": 0, "core": 1, "rim": 2}})
    (root.parent / "dataset.json").write_text(names)
    shutil.move(root / "labelsTr" / "one.nii.gz", root / "one.nii.gz")
    shutil.rmtree(root / "labelsTr")
    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    for place in ("two_0000.nii.gz", "three_0000.nii.gz"):
        (root / "imagesTr" / place).unlink()
    (root / "scan.nii.gz").unlink()
    state = AppState(root, session)
    assert state.add_folder("imagesTr", ".")
    assert [spec.name for spec in state.classes] == ["class 1", "class 2"]
    (root / "dataset.json").write_text(names)
    assert state.undo()
    assert state.add_folder("imagesTr", ".")
    assert [spec.name for spec in state.classes] == ["core", "rim"]


# --- context -------------------------------------------------------------------------------------


def test_pairs_come_and_go(state):
    assert state.add_pair("imagesTr/one_0000.nii.gz", "labelsTr/one.nii.gz")
    assert state.pairs == ("one_0000",)
    assert state.remove("one_0000")
    assert state.pairs == ()
    assert state.undo()
    assert state.pairs == ("one_0000",)
    assert "two" in refused(state, state.remove, "two")


def test_a_folder_comes_whole_or_not_at_all(state, root):
    (root / "labelsTr" / "two.nii.gz").write_bytes(b"no image")
    refused(state, state.add_folder, "imagesTr", "labelsTr")
    assert state.pairs == ()


def test_the_doctor_is_asked(full):
    assert full.check()
    assert full.report is not None
    assert full.check("scan.nii.gz")
    assert "findings" in full.said
    assert full.remove("two")
    assert full.report is None  # it was of another context


def test_a_bank_is_saved_and_opened(full, root):
    assert full.save_bank("kept/bank.mvctx")
    assert "kept/bank.mvctx" in full.banks
    assert full.remove("one")
    assert full.open_bank("kept/bank.mvctx")
    assert full.pairs == ("one", "three", "two")
    assert full.save_bank("kept/bank.mvctx")  # its own may be replaced
    (root / "other.mvctx").write_bytes(b"mine")
    assert "there already" in refused(full, full.save_bank, "other.mvctx")
    assert (root / "other.mvctx").read_bytes() == b"mine"
    refused(full, full.open_bank, "other.mvctx")


def test_a_bank_that_names_images_elsewhere_is_refused(full, root):
    full.session.save(root / "paths.mvctx", images=False, removed=False)
    assert "keeps no image" in refused(full, full.open_bank, "paths.mvctx")


def test_a_bank_never_brings_its_model(full, root, tmp_path):
    full.session.save(root / "bank.mvctx")
    changed = root / "changed.mvctx"
    with zipfile.ZipFile(root / "bank.mvctx") as old, zipfile.ZipFile(changed, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith(".json"):
                index = json.loads(data)
                index["session"]["model"] = str(tmp_path / "evil.ckpt")
                data = json.dumps(index).encode()
            new.writestr(member, data)
    assert full.open_bank("changed.mvctx"), full.problem
    assert full.session.model_name == str(full._model)


# --- predict, look, correct, accept, save --------------------------------------------------------


def test_a_prediction_is_looked_at(answered):
    assert answered.looking == "prediction"
    assert answered.said == "predicted"
    assert np.array_equal(answered.mask.values, answered.prediction.mask.values)


def test_some_classes_can_be_asked_for(full):
    assert full.predict("scan.nii.gz", (2,))
    assert full.job.wait(LONG_S)
    assert [spec.number for spec in full.prediction.classes] == [2]
    assert "label value" in refused(full, full.predict, "scan.nii.gz", (7,))


def test_without_pairs_it_says_what_to_do(state):
    assert "draw the first mask" in refused(state, state.predict, "scan.nii.gz")
    assert "no prediction" in refused(state, state.save, "out")
    assert "no mask" in refused(state, state.accept)
    assert "no pairs" in refused(state, state.save_bank, "b.mvctx")


def test_a_prediction_can_be_cancelled_and_nothing_else_runs_beside_it(full, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(_target, *, on_progress, **_others):
        on_progress("scale 1", 1, 4)
        begun.set()
        go_on.wait(LONG_S)
        raise Cancelled("cancelled")

    monkeypatch.setattr(full.session, "predict", slow)
    assert full.predict("scan.nii.gz")
    assert begun.wait(LONG_S)
    full.job.wait(0.1)
    assert full.job.progress == 0.25
    for action in (full.undo, full.accept, lambda: full.predict("scan.nii.gz")):
        assert "under way" in refused(full, action)
    full.job.cancel()
    go_on.set()
    assert full.job.wait(LONG_S)
    assert full.job.status == "cancelled"
    assert full.prediction is None


def test_a_failed_prediction_is_told(full, monkeypatch):
    def fail(*_args, **_named):
        raise MedverseError("no space left")

    monkeypatch.setattr(full.session, "predict", fail)
    assert full.predict("scan.nii.gz")
    assert full.job.wait(LONG_S)
    assert full.problem == "no space left"
    assert full.prediction is None


def correct(state: AppState) -> np.ndarray:
    """Draw a disc of the first class; return the mask then."""
    before = state.mask.values
    number = state.planes.editor.classes[0].number
    state.planes.cursor = (1, 1, 1)
    state.planes.paint([(1, 1, 1)], 2, number, radius_vox=1.0)
    after = state.mask.values
    assert (after != before).any()
    return after


def test_a_corrected_answer_is_saved_on_the_scans_grid(answered, root):
    mask = correct(answered)
    assert answered.save("results", "mine"), answered.problem
    written, scan = nib.load(root / "results" / "mine.nii.gz"), nib.load(root / "scan.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), mask)
    assert np.array_equal(written.affine, scan.affine)
    known = json.loads((root / "results" / "mine.json").read_text())
    assert known["manifest"]["corrected"] is True
    assert [row["voxels"] for row in known["statistics"]] == [
        int((mask == spec.number).sum()) for spec in answered.prediction.classes
    ]
    assert "results/mine.nii.gz" in answered.scans
    assert answered.save("results", "mine")  # once more, over its own


def test_an_answer_as_it_is_says_so(answered, root):
    assert answered.save("results")
    assert (
        json.loads((root / "results" / "scan.json").read_text())["manifest"]["corrected"] is False
    )


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("..", "a"), ("/tmp", "a"), ("out", "../a"), ("out", "a/b"), ("out", "..\\a"),
        ("out", ".."), ("link", "a"), (".", "scan"), ("labelsTr", "one"), ("scan.nii.gz", "a"),
    ],
)  # fmt: skip
def test_results_stay_inside_and_replace_nothing(answered, root, folder, name):
    (root / "link").symlink_to(root.parent / "secret")
    files = {p: p.read_bytes() for p in root.parent.rglob("*") if p.is_file()}
    refused(answered, answered.save, folder, name)
    assert {p: p.read_bytes() for p in root.parent.rglob("*") if p.is_file()} == files


def test_a_corrected_answer_becomes_a_pair(answered):
    mask = correct(answered)
    assert answered.accept(), answered.problem
    assert answered.pairs[-1] == "scan"
    pair = answered.session.context["scan"]
    assert np.array_equal(pair.label.values, mask)
    assert pair.provenance.corrected is True
    assert answered.undo()
    assert "scan" not in answered.pairs


def test_it_starts_from_no_labels(state):
    assert "name the class" in refused(state, state.draw, "scan.nii.gz")
    assert "twice" in refused(state, state.draw, "scan.nii.gz", "a, a")
    assert state.draw("scan.nii.gz", "lesion, rim"), state.problem
    assert state.looking == "drawing"
    assert not state.mask.values.any()
    assert "nothing is drawn" in refused(state, state.accept)
    assert "no prediction" in refused(state, state.save, "out")
    mask = correct(state)
    assert state.accept(), state.problem
    assert state.pairs == ("scan",)
    assert np.array_equal(state.session.context["scan"].label.values, mask)
    assert [spec.name for spec in state.classes] == ["lesion"]
    assert state.predict("imagesTr/one_0000.nii.gz")
    assert state.job.wait(LONG_S)
    assert state.job.status == "done", state.job.error
    assert [spec.name for spec in state.prediction.classes] == ["lesion"]


def test_a_second_drawing_keeps_the_numbers(full):
    assert full.draw("scan.nii.gz", "new, class 2")
    assert {s.name: s.number for s in full.planes.editor.classes} == {"class 2": 2, "new": 3}
    assert full.draw("scan.nii.gz")
    assert [s.name for s in full.planes.editor.classes] == ["class 1", "class 2"]


def test_no_folder_no_app(tmp_path, tiny_weights):
    with pytest.raises(InputError, match="no such folder"):
        AppState(tmp_path / "none", model=tiny_weights)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_refusal_of_the_file_system_is_told(answered, root):
    root.chmod(0o500)
    try:
        refused(answered, answered.save, "results")
    finally:
        root.chmod(0o700)


# --- the page and the command ----------------------------------------------------------------------


def test_the_page_does_what_the_state_can(state, root):
    pytest.importorskip("anywidget")
    from medverse_nb.ui.app_page import make_page

    page = make_page(state)
    widgets = dict(described(page))
    assert widgets["images"].options == state.folders
    widgets["add folders"].click()
    assert widgets["pairs"].options == ("one", "three", "two")
    assert widgets["classes"].options == (("class 1", 1), ("class 2", 2))
    widgets["scan"].value = "../<b>"
    widgets["check"].click()
    message = next(one for one in all_of(page) if "mv-message" in getattr(one, "_dom_classes", ()))
    assert "Not done" in message.value
    assert "<b>&" not in message.value
    assert "&lt;b&gt;" in message.value
    widgets["scan"].value = "scan.nii.gz"
    widgets["predict"].click()
    assert state.job.wait(LONG_S)
    from medverse_nb.ui.canvas import SliceCanvas

    (canvas,) = [one for one in all_of(page) if isinstance(one, SliceCanvas)]
    assert canvas.state is state.planes
    widgets["folder"].value = "kept"
    widgets["save mask"].click()
    assert (root / "kept" / "scan.nii.gz").exists()
    page.close()


def all_of(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_of(child)


def described(page):
    return ((one.description, one) for one in all_of(page) if getattr(one, "description", ""))


@pytest.mark.parametrize("package", ["voila", "ipywidgets", "anywidget"])
def test_the_command_says_which_extra_is_missing(cli, tmp_path, monkeypatch, package):
    monkeypatch.setattr("medverse_nb.app.installed", lambda name: name != package)
    outcome = cli("app", tmp_path, "--no-browser")
    assert outcome.code == 2
    assert f'needs {package}: {sys.executable} -m pip install "medverse_nb[jupyter]"' in outcome.err


def test_the_command_refuses_what_is_no_folder_or_taken(cli, tmp_path, monkeypatch):
    pytest.importorskip("voila")
    monkeypatch.setenv("JUPYTER_PATH", "")
    assert "no such folder" in cli("app", tmp_path / "none").err
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        outcome = cli("app", tmp_path, "--no-browser", f"--port={taken.getsockname()[1]}")
    assert outcome.code == 2
    assert "is taken" in outcome.err


def test_what_is_laid_out_is_ours_and_asks_nobody(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    folder = tmp_path / 'a "quoted" folder'
    notebook = lay_out(place, folder, model="medverse-tiny", device="cpu")
    (cell,) = json.loads(notebook.read_text())["cells"]
    compile(cell["source"], "cell", "exec")
    assert repr(str(folder)) in cell["source"]
    kernel = json.loads((place / "jupyter/kernels/medverse_nb/kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable
    template = (place / "jupyter/voila/templates/medverse_nb/index.html.j2").read_text()
    assert "//" not in template
    assert not any("token" in path.read_text() for path in place.rglob("*") if path.is_file())
    options = options_of(place, "secret", 8000)
    assert {"--Voila.ip=127.0.0.1", "--Voila.token=secret"} <= set(options)


def test_the_address_is_told_on_this_machine_with_a_token(tmp_path, monkeypatch):
    voila = pytest.importorskip("voila.app")
    monkeypatch.setenv("JUPYTER_PATH", "")
    told, opened, started = [], [], []
    monkeypatch.setattr(
        voila.Voila, "start", lambda self: (started.append(self), self.launch_browser())
    )
    monkeypatch.setattr("webbrowser.open", opened.append)
    for browser in (False, True):
        serve(tmp_path, browser=browser, tell=told.append)
    assert len(set(told)) == 2
    for address, server in zip(told, started, strict=True):
        url = urlsplit(address)
        assert url.hostname == server.ip == "127.0.0.1"
        assert url.port == server.port
        (token,) = parse_qs(url.query)["token"]
        assert token == server.token
        assert len(token) > 30
        assert server.voila_configuration.template == "medverse_nb"
        assert any("medverse_nb" in path for path in server.template_paths)
    assert len(opened) == 1
    assert opened[0].startswith("file:")
    assert "token" not in opened[0]


@pytest.mark.parametrize("wrong", [{"model": "nosuch"}, {"device": "abacus"}])
def test_a_model_or_device_that_is_not_there_is_told_before_anything_is_served(tmp_path, wrong):
    with pytest.raises(MedverseError, match=next(iter(wrong.values()))):
        serve(tmp_path, browser=False, **wrong)
