"""A tutorial's grades reject an exercise that was left open, and take its solution."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EARLY = "early"
TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))


def tags_of(cell):
    return cell.metadata.get("tags", [])


def graded_before_solved(notebook):
    """Put a copy of each grade before its solution: that one may raise, nothing else may."""
    cells = []
    for number, cell in enumerate(notebook.cells):
        if "solution" in tags_of(cell):
            early = copy.deepcopy(notebook.cells[number + 1])
            early.metadata["tags"] = [EARLY, "raises-exception"]
            cells.append(early)
        cells.append(cell)
    notebook.cells = cells
    return notebook


def verdicts(notebook, folder):
    """Run a notebook; return the name of each early grade's exception, None where it passed."""
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return [
        next((out.ename for out in cell.outputs if out.output_type == "error"), None)
        for cell in notebook.cells
        if EARLY in tags_of(cell)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_grade_fails_before_its_solution_and_passes_after(path):
    found = verdicts(graded_before_solved(nbformat.read(path, as_version=4)), path.parent)
    assert found
    assert set(found) == {"AssertionError"}, found


def test_a_grade_that_cannot_fail_is_noticed(tmp_path):
    new = nbformat.v4
    notebook = new.new_notebook(
        cells=[
            new.new_code_cell("answer_1 = None", metadata={"tags": ["exercise"]}),
            new.new_code_cell("answer_1 = 3", metadata={"tags": ["solution"]}),
            new.new_code_cell("assert answer_1 == 3", metadata={"tags": ["grade"]}),
            new.new_code_cell("answer_2 = None", metadata={"tags": ["exercise"]}),
            new.new_code_cell("answer_2 = 4", metadata={"tags": ["solution"]}),
            new.new_code_cell("assert True", metadata={"tags": ["grade"]}),
        ]
    )
    assert verdicts(graded_before_solved(notebook), tmp_path) == ["AssertionError", None]
