"""Take the pictures of docs/viewers.md: its own cells in JupyterLab, and the app, in use.

python tests/browser/screenshots.py
"""

import re
import tempfile
from pathlib import Path

import nibabel as nib
from app_server import serve_app
from conftest import open_chromium
from lab import Lab, Notebook
from watched import Watched

from medverse_nb import datasets

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "viewers.md"


def read_cells(page: Path = PAGE) -> list[str]:
    """Return the page's Python blocks, as cells."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


class Pictures:
    """The page's notebook, and where its pictures go."""

    def __init__(self, notebook: Notebook, folder: Path) -> None:
        self.notebook, self.folder = notebook, folder
        self.cells = read_cells()

    def cell(self, code: str):
        """Return the output of the cell that holds this code."""
        (number,) = [n for n, cell in enumerate(self.cells) if code in cell]
        cell = self.notebook.page.locator(".jp-CodeCell").nth(number)
        cell.scroll_into_view_if_needed()
        return cell.locator(".jp-OutputArea-output").first

    def take(self, code: str, name: str) -> None:
        """Save the picture of a cell's output."""
        self.notebook.page.mouse.move(0, 0)
        self.notebook.page.wait_for_timeout(1000)
        self.cell(code).screenshot(path=self.folder / f"viewers_{name}.png")


def take_all(notebook: Notebook, folder: Path) -> None:
    """Use every viewer of the page and take its picture."""
    pictures, page = Pictures(notebook, folder), notebook.page
    out = pictures.cell("mv.view(target.image, prediction.mask)")
    out.locator("canvas").first.wait_for()
    page.wait_for_timeout(5000)  # WebGL without a GPU
    pictures.take("mv.view(target.image, prediction.mask)", "view")

    out = pictures.cell("explore_steps")
    out.get_by_role("button", name="windows").click()
    out.locator(".mv-box").first.wait_for()
    pictures.take("explore_steps", "steps")

    out = pictures.cell("explore_attention")
    plane = out.locator(".mv-plane").nth(2)
    box = plane.bounding_box()
    plane.click(position={"x": 0.35 * box["width"], "y": 0.55 * box["height"]})
    page.wait_for_timeout(1000)
    pictures.take("explore_attention", "attention")

    out = pictures.cell("explore_context")
    for label in ("run as A", "influence", "run as B"):
        if label == "run as B":
            out.get_by_role("checkbox").nth(0).uncheck()
        out.get_by_role("button", name=label, exact=True).click()
        cancel = out.get_by_role("button", name="cancel")
        cancel.wait_for()
        cancel.wait_for(state="hidden")
    out.locator(".mv-view").first.wait_for()
    pictures.take("explore_context", "context")

    out = pictures.cell("edit=True)\nviewer")
    out.get_by_role("button", name="Brush", exact=True).click()
    out.get_by_label("Class to draw").select_option("white matter")
    box = out.locator(".mv-plane").nth(2).bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.35 * box["height"], steps=8)
    page.mouse.up()
    pictures.take("edit=True)\nviewer", "edit")


def take_app(browser, study: Path, picture: Path) -> None:
    """Predict a phantom in the app and take the page's picture."""
    scan, *context = datasets.phantom_cohort(5)
    datasets.write_cohort(context, study)
    nib.save(scan.image, study / "new_scan.nii.gz")
    with serve_app(study, "--device=cpu") as address:
        watched = Watched(browser, height=1800)
        watched.page.goto(address)
        watched.press("add folders")
        watched.told("4 pairs added")
        watched.fill("scan", "new_scan.nii.gz")
        watched.press("predict")
        watched.told("predicted")
        watched.page.locator(".mv-plane").first.wait_for()
        shorten = "(line, place) => (line.innerHTML = line.innerHTML.replace(place, ''))"
        line = watched.page.locator(".widget-html-content", has_text="Folder:")
        line.evaluate(shorten, f"{study.parent}/")
        watched.page.wait_for_timeout(1000)
        watched.page.screenshot(path=picture)
        watched.close()


def main() -> None:
    """Write all pictures beside the page."""
    with tempfile.TemporaryDirectory() as place, open_chromium() as browser:
        take_app(browser, Path(place) / "my_study", DOCS / "viewers_app.png")
        (Path(place) / "lab").mkdir()
        lab = Lab(Path(place) / "lab")
        try:
            notebook = lab.open(browser, "viewers.ipynb", read_cells(), width=1100, height=6000)
            take_all(notebook, DOCS)
            notebook.close()
        finally:
            lab.close()


if __name__ == "__main__":
    main()
