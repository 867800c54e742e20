"""What `make docs` builds is complete and needs no other host; the build itself is in `.ci/run`."""

import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import pytest
from doc_blocks import ROOT

import medverse_nb as mv

pytest.importorskip("sphinx")


@pytest.fixture
def site(monkeypatch):
    """`docs/conf.py` as a module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("site_conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    sys.modules.pop("command_line", None)
    import command_line

    return command_line


def test_the_reference_has_every_public_name():
    pages = "\n".join(p.read_text("utf-8") for p in sorted((ROOT / "docs" / "api").glob("*.md")))
    documented = set(re.findall(r"\.\. auto\w+:: (?:medverse_nb\.)?(?:\w+\.)*(\w+)", pages))
    inside_errors = {"MedverseError", "NotBuiltYet"}
    assert set(mv.__all__) - {"__version__"} - inside_errors - documented == set()
    assert "automodule:: medverse_nb.errors" in pages


def test_pages_come_from_named_folders_alone(site):
    for name in (".venv", "tests", "medverse_nb", "benchmarks"):
        assert name in site.exclude_patterns or not (ROOT / name).exists()
    assert not set(site.PAGES) & set(site.exclude_patterns)


@pytest.mark.parametrize(
    ("html", "refused"),
    [
        ('<script src="https://elsewhere.example/a.js"></script>', True),
        ('<link rel="stylesheet" href="//elsewhere.example/a.css">', True),
        ('<img alt="" src="http://elsewhere.example/a.png">', True),
        ('<a href="https://elsewhere.example">a link that is only followed</a>', False),
        ('<script src="../_static/a.js"></script><img src="data:image/png;base64,AA">', False),
    ],
)
def test_a_page_that_loads_from_elsewhere_is_refused(site, tmp_path, html, refused):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    built = SimpleNamespace(outdir=tmp_path)
    if refused:
        with pytest.raises(site.ExtensionError, match=r"page\.html would load"):
            site.refuse_outside_hosts(built, None)
    else:
        site.refuse_outside_hosts(built, None)


def test_solutions_are_folded_and_nothing_else(site):
    path = ROOT / "tutorials" / "00_first_prediction.ipynb"
    source = [path.read_text(encoding="utf-8")]
    site.fold_solutions(None, "tutorials/00_first_prediction", source)
    for cell in json.loads(source[0])["cells"]:
        tags = cell["metadata"].get("tags", [])
        assert ("hide-input" in tags) == ("solution" in tags)


def test_every_option_of_the_command_line_is_told_by_its_name(command_line):
    app = command_line.command_line
    commands = {command_line.name_of(c): c.callback for c in app.registered_commands}
    assert {"demo", "predict", "check", "info", "models", "train", "evaluate", "app"} == set(
        commands
    )
    told = {o.name: o for o in command_line.options_of(commands["predict"])}
    assert {"TARGETS", "--json", "--context-size", "--trust", "--register"} <= set(told)
    assert told["TARGETS"].default == "required"
    assert told["--trust"].choices == ("off", "fast", "full")


@pytest.mark.parametrize(
    "command", ["predict", "check", "info", "models", "train", "evaluate", "app"]
)
def test_options_of_the_page_are_those_of_the_help(command, command_line, cli):
    (callback,) = [
        c.callback
        for c in command_line.command_line.registered_commands
        if command_line.name_of(c) == command
    ]
    told = {o.name for o in command_line.options_of(callback) if not o.positional}
    shown = set(re.findall(r"--[a-z][a-z-]+", cli(command, "--help").out)) - {"--help"}
    assert shown - told <= {"--images", "--labels"}  # named in another option's help
    assert {name for name in told if name not in shown} == set()
