"""The site's reader of docstrings keeps the house's free-form entries."""

import sys

import pytest
from doc_blocks import ROOT


@pytest.fixture
def to_fields(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    sys.modules.pop("docstring_sections", None)
    from docstring_sections import to_fields

    return lambda text: [line for line in to_fields(text.strip("\n").split("\n")) if line.strip()]


def test_entries_keep_names_shapes_and_continued_lines(to_fields):
    text = """
Fold one.

Parameters
----------
mean, seen : (B, C, X, Y, Z)  over the pairs so far;
    not modified.
keep : True, or as `fold` of `Pass.run`.

Raises
------
InputError, ContextError : bad.
"""
    assert to_fields(text) == [
        "Fold one.",
        ":Parameters:",
        "    * **mean**, **seen** – (B, C, X, Y, Z)  over the pairs so far;",
        "      not modified.",
        "    * **keep** – True, or as `fold` of `Pass.run <.Pass.run>`.",
        ":Raises:",
        "    * **InputError**, **ContextError** – bad.",
    ]


@pytest.mark.parametrize("before", ["", "Returns\n-------\n(X, Y, Z) float32.\n\n"])
def test_a_source_is_a_field_and_no_parameter(to_fields, before):
    found = to_fields(f"Go.\n\n{before}Source: Medverse Eq. 7; and\nmore, `a=1`.\n")
    assert found[-1] == ":Source: Medverse Eq. 7; and more, ``a=1``."
    assert len(found) == (4 if before else 2)


def test_entries_without_a_heading_are_a_list(to_fields):
    assert to_fields("One line.\n\npair : its name.\ndone : what is done.\n") == [
        "One line.", "* **pair** – its name.", "* **done** – what is done.",
    ]  # fmt: skip


def test_nothing_but_code_means_anything(to_fields):
    assert to_fields("`side`**3 of `.ckpt`, ar_ and *x* | y") == [
        r"`side`\ \*\*3 of ``.ckpt``, ar\_ and \*x\* \| y"
    ]
