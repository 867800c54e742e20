"""What the context doctor says: findings, and the report that shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Literal

from ...pair import ContextPair

Severity = Literal["error", "warning", "note"]
SOUND = "nothing found: the context looks sound"
MOST_PICTURES = 8  # a page stays light


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found.

    pair : the pair's name, "target", or "context" for all of them.
    evidence : what was seen, in numbers.
    remedy : what the user can do.
    done : what the package does about it by itself; empty where it does nothing.
    """

    severity: Severity
    code: str
    pair: str
    evidence: str
    remedy: str
    done: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, most severe first; `ok` is True where none is an error.

    pairs : that were looked at, for the pictures.
    """

    findings: tuple[Finding, ...]
    pairs: tuple[ContextPair, ...] = field(default=(), repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against predicting."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        return "\n".join(map(_line, self.findings)) or SOUND

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.findings:
            return f"<p>{SOUND.capitalize()}.</p>"
        pictures = self._pictures()
        names = [*asdict(self.findings[0])]
        rows = []
        for finding in self.findings:
            # a pair's picture stands beside its first finding only
            cells = [pictures.pop(finding.pair, ""), *map(escape, asdict(finding).values())]
            rows.append(_row(cells, "td"))
        head = _row(["", *names], "th")
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"

    def _pictures(self) -> dict[str, str]:
        """Draw the first pairs that something was found in: name to an `img` element."""
        from ...ui.thumbnail import thumbnail  # the one exception: rich displays draw

        known = {pair.name: pair for pair in self.pairs}
        named = dict.fromkeys(f.pair for f in self.findings if f.pair in known)
        return {name: thumbnail(known[name]) for name in [*named][:MOST_PICTURES]}


def _line(finding: Finding) -> str:
    done = f" (done: {finding.done})" if finding.done else ""
    what = f"{finding.severity:7} {finding.code:22} {finding.pair}"
    return f"{what}: {finding.evidence}; {finding.remedy}{done}"


def _row(cells: Iterable[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"
