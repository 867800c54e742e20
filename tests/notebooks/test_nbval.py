"""What `make test-notebooks` asks of nbval is able to fail."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

SANITIZE = Path(__file__).with_name("sanitize.cfg")
CHECKED = ["nbval-check-output"]


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def error(name, message):
    return nbformat.v4.new_output("error", ename=name, evalue=message, traceback=[])


def nbval(folder, source, output, tags):
    """Save one cell with an output and run nbval on it, with the options of the Makefile."""
    cell = nbformat.v4.new_code_cell(
        source, outputs=[output], execution_count=1, metadata={"tags": tags}
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, folder / "throw_away.ipynb")
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("source", "output", "tags"),
    [
        ("print(1 + 1)", stream("2\n"), CHECKED),
        ("print(1 + 1)", stream("3\n"), []),  # lax: only what is tagged is compared
        ("print(object())", stream("<object object at 0x7f0000000000>\n"), CHECKED),
        ("print('took 0.25 s')", stream("took 17 s\n"), CHECKED),
        ("import tempfile; print(tempfile.mkdtemp())", stream("/tmp/other\n"), CHECKED),
        ("1 / 0", error("ZeroDivisionError", "division by zero"), ["raises-exception", *CHECKED]),
    ],
)
def test_what_may_differ_passes(tmp_path, source, output, tags):
    run = nbval(tmp_path, source, output, tags)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


@pytest.mark.parametrize(
    ("source", "output", "tags"),
    [
        ("print(1 + 1)", stream("3\n"), CHECKED),  # a wrong number that was saved
        ("print('Dice 0.912')", stream("Dice 0.913\n"), CHECKED),
        ("1 / 0", stream("2\n"), []),
        ("1 / 1", error("ZeroDivisionError", "division by zero"), ["raises-exception", *CHECKED]),
    ],
)
def test_a_wrong_output_fails(tmp_path, source, output, tags):
    run = nbval(tmp_path, source, output, tags)
    assert run.returncode == 1, run.stdout
    assert "1 failed" in run.stdout


def test_why_an_expected_error_is_checked_too(tmp_path):
    # Alone, raises-exception also passes where nothing is raised: tests/test_notebooks.py asks for both.
    run = nbval(tmp_path, "pass", error("ValueError", "gone"), ["raises-exception"])
    assert run.returncode == 0


def test_why_execution_counts_are_saved(tmp_path):
    # nbval compares nothing in a cell that was never run.
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("2", metadata={"tags": CHECKED})]
    )
    nbformat.write(notebook, tmp_path / "other.ipynb")
    run = nbval(tmp_path, "print(1)", stream("1\n"), CHECKED)
    assert "2 passed" in run.stdout
