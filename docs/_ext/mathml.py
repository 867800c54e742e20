"""Formulas as MathML, which browsers draw by themselves: no script and no font from elsewhere."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def draw(writer: Any, node: nodes.Element, display: str) -> None:
    """Write a formula and pass over its text."""
    writer.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def inline(writer: Any, node: nodes.Element) -> None:
    """Write a formula within a line."""
    draw(writer, node, "inline")


def block(writer: Any, node: nodes.Element) -> None:
    """Write a formula of its own line."""
    draw(writer, node, "block")


def setup(app: Any) -> dict[str, bool]:
    """Become the HTML builder's way with formulas."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
