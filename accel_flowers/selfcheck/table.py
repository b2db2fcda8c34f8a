"""The table at the end: what was tried here, which promises were seen to hold, and what to do about the others."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import accel_flowers
from accel_flowers.core.errors import UserError
from accel_flowers.selfcheck.finding import Finding, Outcome

_PAGE = "docs/guarantees.md"
_WIDTH = 100
_SAID: Mapping[Outcome, str] = {"held": "holds", "failed": "DOES NOT HOLD", "not tried": "not tried"}
_WORST_FIRST: tuple[Outcome, ...] = ("failed", "held", "not tried")


def promises_of_page() -> dict[str, list[str]]:
    """Section of docs/guarantees.md → its promises. A wheel carries the page inside the package, a checkout beside it.

    Raises:
        UserError: it is not there, so files of the installation are missing.
    """
    package = Path(accel_flowers.__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / _PAGE).is_file():
            return parse_promises((folder / _PAGE).read_text("utf-8"))
    raise UserError(f"{_PAGE} is missing from {package}: install accel-flowers again.")


def parse_promises(page: str) -> dict[str, list[str]]:
    """Section → its promises: the first cell of each row."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|"):
            cell = line.strip("|").split("|")[0].strip()
            if cell != "promise" and cell.strip("- "):
                found.setdefault(section, []).append(cell)
    return found


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """One for each promise: of several parts that tried it, the one that failed, else one that held."""
    best: dict[str, Finding] = {}
    for finding in findings:
        known = best.get(finding.what)
        if known is None or _WORST_FIRST.index(finding.outcome) < _WORST_FIRST.index(known.outcome):
            best[finding.what] = finding
    return list(best.values())


def table(findings: Sequence[Finding], sections: Mapping[str, Sequence[str]]) -> str:
    """For a terminal.

    Args:
        findings: of all parts.
        sections: as `promises_of_page` gives them.
    """
    found = {finding.what: finding for finding in merged(findings)}
    known = {promise for rows in sections.values() for promise in rows}
    lines = ["What was tried here", *_rows([each for what, each in found.items() if what not in known])]
    for section, rows in sections.items():
        here = [found[promise] for promise in rows if promise in found]
        if here:
            lines += ["", f"{section} ({_PAGE})", *_rows(here)]
    others = {section: sum(promise not in found for promise in rows) for section, rows in sections.items()}
    named = ", ".join(f"{section} {count}" for section, count in others.items() if count)
    lines += ["", *textwrap.wrap(f"Not tried, because no part of the self-check tries them; the project's tests hold them: {named}.", _WIDTH)]  # fmt: skip
    return "\n".join(lines)


def _rows(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines += textwrap.wrap(
            f"{_SAID[finding.outcome]:<15}{finding.what}", _WIDTH, initial_indent="  ", subsequent_indent=" " * 17
        )
        if finding.outcome == "not tried":
            lines += _indented(f"because: {finding.seen}")
        if finding.outcome == "failed":
            lines += _indented(f"seen: {finding.seen}")
            lines += _indented(f"do: {finding.advice}")
    return lines


def _indented(text: str) -> list[str]:
    """Its lines, long ones wrapped; those of a log stay as they are."""
    lines = []
    for line in text.splitlines():
        lines += [f"{'':17}{line}"] if line.startswith(" ") else textwrap.wrap(line, _WIDTH, initial_indent=" " * 17, subsequent_indent=" " * 17)  # fmt: skip
    return lines
