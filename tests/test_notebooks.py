"""How notebooks are saved; `make test-notebooks` runs them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
EXAMPLES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = TUTORIALS + EXAMPLES
PARTS = ("exercise", "solution", "grade")
IMPORT = re.compile(r"(import|from) |%")
WIDGET = "application/vnd.jupyter.widget-view+json"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source_of(cell):
    return "".join(cell["source"])


def tags_of(cell):
    return cell["metadata"].get("tags", [])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def has_picture(cell):
    return any("image/png" in str(output) for output in cell.get("outputs", ()))


@every_notebook
def test_a_notebook_is_saved_light(path):
    notebook = read(path)
    assert path.stat().st_size < 500_000
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}  # no widget state
    assert WIDGET not in path.read_text(encoding="utf-8")
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert any(map(has_picture, code_cells(notebook)))


@every_notebook
def test_a_notebook_was_run_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@every_notebook
def test_saved_outputs_name_no_folder_of_a_machine(path):
    outputs = json.dumps([cell["outputs"] for cell in code_cells(read(path))])
    assert not re.findall(r"(?:/home/|/root/|/tmp/|/Users/|site-packages)[^\"\\]*", outputs)


@every_notebook
def test_errors_are_shown_only_where_they_are_meant_and_checked(path):
    for cell in code_cells(read(path)):
        raised = any(output["output_type"] == "error" for output in cell["outputs"])
        assert raised == ("raises-exception" in tags_of(cell)), source_of(cell)
        if raised:  # else nbval would not notice that it is gone
            assert "nbval-check-output" in tags_of(cell), source_of(cell)


@every_tutorial
def test_a_tutorial_opens_with_goals_run_time_and_a_picture(path):
    cells = read(path)["cells"]
    opening = "\n".join(source_of(cell) for cell in cells[:3] if cell["cell_type"] == "markdown")
    assert opening.startswith("# ")
    for number in "123":
        assert re.search(rf"(^|\s)\(?{number}[.)]\s", opening), f"goal {number} is missing"
    assert re.search(r"\b(second|minute)s?\b", opening)
    assert "Research use only" in opening
    assert any(map(has_picture, cells[:5]))


@every_tutorial
def test_a_tutorial_names_equations_and_ends_with_what_was_learned(path):
    cells = read(path)["cells"]
    text = "\n".join(source_of(cell) for cell in cells if cell["cell_type"] == "markdown")
    assert re.search(r"(Medverse|Neuroverse3D) (Eq|Algorithm|section|Figure)", text)
    assert "what you learned" in source_of(cells[-1]).lower()


@every_example
def test_an_example_opens_with_what_it_does_and_ends_with_where_to_go(path):
    cells = read(path)["cells"]
    opening, closing = source_of(cells[0]), source_of(cells[-1])
    assert opening.startswith("# ")
    assert re.search(r"\b(seconds?|minutes?)\b", opening)
    assert "Research use only; not a medical device." in opening
    assert any(map(has_picture, code_cells(read(path))[:5]))
    assert cells[-1]["cell_type"] == "markdown"
    assert re.search(r"\]\([^)]+\)", closing)


@every_notebook
def test_links_between_pages_lead_somewhere(path):
    text = "\n".join(source_of(c) for c in read(path)["cells"] if c["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


@every_notebook
def test_cells_hold_one_idea(path):
    for cell in code_cells(read(path)):
        lines = [line for line in source_of(cell).splitlines() if line.strip()]
        assert len([line for line in lines if not IMPORT.match(line)]) <= 10, source_of(cell)


@every_notebook
def test_a_notebook_has_outputs_that_are_compared(path):
    assert any("nbval-check-output" in tags_of(cell) for cell in code_cells(read(path)))


@every_tutorial
def test_exercises_have_a_hidden_solution_and_a_grade(path):
    cells = code_cells(read(path))
    kinds = [next((t for t in tags_of(c) if t in PARTS), None) for c in cells]
    starts = [number for number, kind in enumerate(kinds) if kind == "exercise"]
    assert len(starts) >= 2
    assert len(starts) == kinds.count("solution") == kinds.count("grade")
    for number in starts:
        exercise, solution, grade = cells[number : number + 3]
        assert tuple(kinds[number : number + 3]) == PARTS
        (answer,) = set(re.findall(r"^(\w+) = None", source_of(exercise), re.MULTILINE))
        assert solution["metadata"]["jupyter"]["source_hidden"] is True
        assert f"if {answer} is None:" in source_of(solution)
        assert re.search(r"^assert ", source_of(grade), re.MULTILINE)
        assert answer in source_of(grade)


@pytest.mark.parametrize("paths", [TUTORIALS, EXAMPLES], ids=["tutorials", "notebooks"])
def test_the_page_of_a_folder_names_each(paths):
    page = (paths[0].parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in paths if f"]({path.name})" not in page] == []
