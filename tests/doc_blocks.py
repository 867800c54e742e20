"""Find the fenced blocks of a page and run them, as `test_doc_blocks.py` does for every page.

Python blocks of a page share a namespace, as cells of a notebook do. `medverse-nb` lines go through
the command line in this process; what would install, serve or open something is read instead:
its targets, extras, options and files have to exist.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>\S*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
LAYOUT = ("{toctree}", "{eval-rst}", "{medverse-nb-commands}")  # `make docs` is their test
SHELL_ONLY = (".", "cd", "conda", "jupyter")  # change a shell or open a page: only read


class BrokenBlock(AssertionError):
    """A block of a page that does not do what the page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block and where it stands."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Bench:
    """What blocks are run with.

    names : that a page takes for granted.
    shorter : what is replaced in a block so that it takes seconds and not minutes.
    not_run : parts of blocks that are only read, and why.
    cli : runs `medverse-nb` with a list of arguments; returns its exit code and what it told.
    """

    names: dict[str, Any]
    cli: Callable[[list[str]], tuple[int, str]]
    shorter: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        """Run or read one block; `BrokenBlock` where it is wrong."""
        try:
            self._run(block)
        except BrokenBlock as error:
            raise BrokenBlock(f"{block}: {error}") from error
        except Exception as error:
            raise BrokenBlock(f"{block}: {type(error).__name__}: {error}") from error

    def _run(self, block: Block) -> None:
        if block.language == "python":
            self._python(block)
        elif block.language in ("console", "sh"):
            for command in commands_of(block.text):
                self._command(command)
        elif block.language not in LAYOUT:
            raise BrokenBlock(f"unknown language {block.language!r}")

    def _python(self, block: Block) -> None:
        text = self._shortened(block.text)
        if any(part in text for part in self.not_run):
            check_names(text, self.names)
            return
        exec(compile(text, str(block), "exec"), self.names)

    def _shortened(self, text: str) -> str:
        for long, short in self.shorter.items():
            text = text.replace(long, short)
        return text

    def _command(self, command: str) -> None:
        words = shlex.split(self._shortened(command), comments=True)
        if words[:3] == ["python", "-m", "medverse_nb"]:
            words = ["medverse-nb", *words[3:]]
        first, *rest = words
        if first == "medverse-nb":
            code, told = self.cli(rest)
            if code != 0:
                raise BrokenBlock(f"{command!r} ended with {code}: {told}")
        elif first == "make":
            check_targets(rest)
        elif first == "pip":
            check_pip(rest)
        elif first in ("python", "python3"):
            check_script(rest)
        elif first in SHELL_ONLY:
            check_paths(rest)
        else:
            raise BrokenBlock(f"nobody knows how to check {command!r}")


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8") if text is None else text
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found["language"], found["body"])
        for found in FENCE.finditer(text)
    ]


def commands_of(text: str) -> Iterator[str]:
    """Return the commands of a shell block: joined over backslashes, split at `&&`."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" # ")[0].split("&&"):
            if command.strip() and not command.strip().startswith("#"):
                yield command.strip()


def check_names(text: str, names: dict[str, Any]) -> None:
    """Check a block that cannot run: its syntax, what it imports, the keywords it passes.

    Imports of packages that are not installed are taken at their word.
    """
    known = dict(names)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and importlib.util.find_spec(node.module.split(".")[0]):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    raise BrokenBlock(f"{node.module} has no {alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _resolve(node.func, known)) is not None:
            _check_keywords(called, [keyword.arg for keyword in node.keywords])


def _resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return the object a name or a dotted name stands for, None for what a run would tell."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, known)
        if owner is not None and not hasattr(owner, node.attr):
            raise BrokenBlock(f"{ast.unparse(node.value)} has no {node.attr}")
        return None if owner is None else getattr(owner, node.attr)
    return None


def _check_keywords(called: Any, given: list[str | None]) -> None:
    parameters = inspect.signature(called).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in given:
        if name is not None and name not in parameters:
            raise BrokenBlock(f"{called.__name__} takes no {name}=")


def check_targets(words: list[str]) -> None:
    """Check that the Makefile has these targets."""
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    if unknown := [word for word in words if "=" not in word and word not in targets]:
        raise BrokenBlock(f"the Makefile has no {unknown}")


def check_pip(words: list[str]) -> None:
    """Check the requirements of a `pip install`: extras are ours, other packages are pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = re.findall(
        r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE
    )
    action, *rest = words
    if action not in ("install", "wheel"):
        raise BrokenBlock(f"pip {action}")
    for word in _without_options(rest, with_value=("-c", "-w", "--find-links")):
        text = project["name"] + word.removeprefix(".") if word.startswith(".") else word
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise BrokenBlock(f"pip cannot install {word!r}") from error
        if wanted.name == project["name"]:
            if unknown := wanted.extras - set(project["optional-dependencies"]):
                raise BrokenBlock(f"there is no extra {sorted(unknown)}")
        elif wanted.name not in pinned:
            raise BrokenBlock(f"{wanted.name} is not in constraints.txt")


def _without_options(words: list[str], with_value: tuple[str, ...]) -> Iterator[str]:
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in with_value:
            skip = True
        elif not word.startswith("-"):
            yield word


def check_script(words: list[str]) -> None:
    """Check a script of the repository: the file, and that it knows the options."""
    if words[:2] == ["-m", "venv"]:
        return
    script, *rest = words
    check_paths([script, *(word for word in rest if "/" in word)])
    source = (ROOT / script).read_text(encoding="utf-8")
    if unknown := [w for w in rest if w.startswith("-") and w != "--help" and w not in source]:
        raise BrokenBlock(f"{script} knows no {unknown}")


def check_paths(words: list[str]) -> None:
    """Check that what looks like a path of the repository is there."""
    for word in words:
        ours = "/" in word or word in ("tutorials", "notebooks")
        if ours and not word.startswith((".venv", "-")) and not (ROOT / word).exists():
            raise BrokenBlock(f"there is no {word}")
