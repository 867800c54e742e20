"""A tutorial's grades reject an exercise that was left open; nbval shows that solutions pass."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))


def tags_of(cell):
    return cell.metadata.get("tags", [])


def without_solutions(notebook):
    """Take the solutions out."""
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags_of(cell)]
    return notebook


def verdicts(notebook, folder):
    """Run a notebook; return the name of each grade's exception, None where it passed.

    What builds on an answer that is missing may raise as well.
    """
    NotebookClient(
        notebook,
        allow_errors=True,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return [
        next((out.ename for out in cell.outputs if out.output_type == "error"), None)
        for cell in notebook.cells
        if "grade" in tags_of(cell)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_grade_fails_without_its_solution(path):
    found = verdicts(without_solutions(nbformat.read(path, as_version=4)), path.parent)
    assert found
    assert set(found) == {"AssertionError"}, found


def test_a_grade_that_cannot_fail_is_noticed(tmp_path):
    new = nbformat.v4
    notebook = new.new_notebook(
        cells=[
            new.new_code_cell("answer_1 = None", metadata={"tags": ["exercise"]}),
            new.new_code_cell("answer_1 = 3", metadata={"tags": ["solution"]}),
            new.new_code_cell("assert answer_1 == 3", metadata={"tags": ["grade"]}),
            new.new_code_cell("assert True", metadata={"tags": ["grade"]}),
        ]
    )
    assert verdicts(without_solutions(notebook), tmp_path) == ["AssertionError", None]
