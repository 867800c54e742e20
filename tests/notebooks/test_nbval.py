"""What `make test-notebooks` asks of nbval is able to fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

SANITIZE = Path(__file__).with_name("sanitize.cfg")
CHECKED = ["nbval-check-output"]


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def error(name, message):
    return nbformat.v4.new_output("error", ename=name, evalue=message, traceback=[])


def cell(source, output, tags=CHECKED):
    return nbformat.v4.new_code_cell(
        source, outputs=[output], execution_count=1, metadata={"tags": tags}
    )


def nbval(folder, *cells):
    """Return how many cells failed and passed, with the options of the Makefile."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=list(cells), metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "throw_away.ipynb")
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    closing = run.stdout.splitlines()[-1]
    failed, passed = (re.search(rf"(\d+) {what}", closing) for what in ("failed", "passed"))
    assert (run.returncode == 1) == bool(failed), run.stdout
    return [int(found[1]) if found else 0 for found in (failed, passed)]


def test_a_wrong_number_that_was_saved_fails(tmp_path):
    found = nbval(
        tmp_path,
        cell("print(1 + 1)", stream("3\n")),
        cell("print('Dice 0.912')", stream("Dice 0.913\n")),
        cell("1 / 0", stream("2\n"), []),
        cell("1 / 1", error("ZeroDivisionError", "none"), ["raises-exception", *CHECKED]),
    )
    assert found == [4, 0]


def test_what_may_differ_passes(tmp_path):
    division = error("ZeroDivisionError", "division by zero")
    found = nbval(
        tmp_path,
        cell("print(1 + 1)", stream("2\n")),
        cell("print(1 + 1)", stream("3\n"), []),  # lax: only what is tagged is compared
        cell("print(object())", stream("<object object at 0x7f0000000000>\n")),
        cell("print('took 0.25 s')", stream("took 17 s\n")),
        cell("import tempfile; print(tempfile.mkdtemp())", stream("/tmp/other\n")),
        cell("1 / 0", division, ["raises-exception", *CHECKED]),
    )
    assert found == [0, 6]


def test_what_nbval_does_not_see(tmp_path):
    # So tests/test_notebooks.py asks for execution counts, and for both tags on an error.
    never_run = nbformat.v4.new_code_cell("print(2)", metadata={"tags": CHECKED})
    gone = cell("pass", error("ValueError", "gone"), ["raises-exception"])
    assert nbval(tmp_path, never_run, gone) == [0, 2]
