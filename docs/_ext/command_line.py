"""A directive that lists the commands of `medverse-nb` with their options, from the code itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.models import ArgumentInfo

from medverse_nb.cli import app as command_line


@dataclass(frozen=True)
class Option:
    """One thing that a command can be given."""

    name: str
    help: str
    default: str
    choices: tuple[str, ...]
    positional: bool


def options_of(command: Any) -> list[Option]:
    """Return what the function behind a command takes, in order."""
    hints = get_type_hints(command, include_extras=True)
    return [
        _option(name, parameter, *get_args(hints[name])[:2])
        for name, parameter in inspect.signature(command).parameters.items()
    ]


def name_of(command: Any) -> str:
    """Return what a command is called by."""
    return command.name or command.callback.__name__


def _option(name: str, parameter: inspect.Parameter, kind: Any, info: Any) -> Option:
    positional = isinstance(info, ArgumentInfo)
    given = (info.default, *(info.param_decls or ()))  # typer takes the first name for a default
    declared = next((text for text in given if str(text).startswith("--")), None)
    shown = (info.metavar or name.upper()) if positional else declared or f"--{name}"
    literal = next((k for k in (kind, *get_args(kind)) if get_origin(k) is Literal), None)
    return Option(
        shown.replace("_", "-") if not positional else shown,
        info.help or "",
        _default(parameter.default),
        get_args(literal) if literal else (),
        positional,
    )


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return "" if value is None or value is False or value == Path() else str(value)


class CommandList(SphinxDirective):
    """One section a command: what it does, how it is called, a table of its options."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return [self._section(command) for command in command_line.registered_commands]

    def _section(self, command: Any) -> nodes.section:
        name, options = name_of(command), options_of(command.callback)
        section = nodes.section(ids=[f"medverse-nb-{name}"], names=[f"medverse-nb-{name}"])
        section += nodes.title("", name)
        section += nodes.paragraph("", inspect.getdoc(command.callback))
        given = [
            o.name if o.default == "required" else f"[{o.name}]" for o in options if o.positional
        ]
        usage = " ".join(["medverse-nb", name, *given, "[options]"])
        section += nodes.literal_block(usage, usage, language="text")
        section += _table(options)
        return section


def _table(options: list[Option]) -> nodes.table:
    group = nodes.tgroup("", cols=3)
    group += [nodes.colspec(colwidth=width) for width in (28, 50, 22)]
    head, body = nodes.thead(), nodes.tbody()
    head += _row(*(nodes.Text(text) for text in ("option", "what", "default")))
    for one in options:
        choices = f" One of {', '.join(one.choices)}." if one.choices else ""
        default = nodes.literal if one.default != "required" else nodes.emphasis
        body += _row(
            nodes.literal(one.name, one.name),
            nodes.Text(one.help + choices),
            default(one.default, one.default) if one.default else nodes.Text(""),
        )
    group += [head, body]
    return nodes.table("", group)


def _row(*cells: nodes.Node) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("medverse-nb-commands", CommandList)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
