"""The app in a real browser that reaches this machine only: from a folder to a saved answer."""

import nibabel as nib
import pytest
from app_server import serve_app
from watched import Watched

pytest.importorskip("voila", reason="needs voila")


@pytest.fixture
def address(cohort, tiny_weights):
    """Serve the cohort's folder with the random network; end the server afterwards."""
    with serve_app(cohort.root, f"--model={tiny_weights}", "--device=cpu") as address:
        yield address


def test_from_a_folder_to_a_saved_answer_without_the_outside(browser, address, cohort):
    watched = Watched(browser)
    watched.page.goto(address)
    watched.page.get_by_text("1. Labelled scans").wait_for()
    watched.press("add folders")  # imagesTr and labelsTr stand there already
    watched.told("3 pairs added")
    watched.fill("scan", "../secret.nii.gz")
    watched.press("predict")
    watched.told(r"Not done:.*without '\.\.'")
    watched.fill("scan", "scan.nii.gz")
    watched.press("check")
    watched.told("findings")
    watched.press("predict")
    watched.told("predicted")
    assert watched.page.locator(".mv-plane").count() == 3
    watched.press("save mask")
    watched.told("written: results/scan.nii.gz")
    assert nib.load(cohort.root / "results" / "scan.nii.gz").shape == (9, 10, 8)
    assert (cohort.root / "results" / "scan.json").exists()
    watched.press("accept as a pair")
    watched.told("pair scan accepted")
    watched.close()


def test_the_watch_sees_what_goes_out(browser):
    watched = Watched(browser)
    watched.page.set_content('<img src="http://outside.test/a.png">')
    watched.page.wait_for_load_state()
    assert watched.outside == ["http://outside.test/a.png"]
    assert watched.trouble
    watched.page.close()


def test_without_the_token_there_is_no_app(browser, address):
    page = browser.new_page()
    page.goto(address.split("?")[0])
    assert "/login" in page.url
    assert page.get_by_text("1. Labelled scans").count() == 0
    page.close()
