"""Puts the definitions that a Lua script uses in front of it, and no others.

Redis runs the whole text of a script at each call. To define all functions of the prelude takes longer than most
scripts need for their work, so each script gets only what it uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: A line of a script. The definitions that are used only after it follow it, so that a call which returns before does
#: not pay for them.
MARKER = "-- [definitions]\n"

# A definition begins at the start of a line and ends where the next one begins.
_BEGINNING = re.compile(
    r"^(?:local function (?P<function>\w+)|local (?P<locals>\w+(?:, *\w+)*)|function (?P<field>\w+\.\w+)"
    r"|(?P<constant>[A-Z]+\.\w+) =)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"^ *--.*$", re.MULTILINE)
# `KEY.job` uses both `KEY` and `KEY.job`.
_NAME = re.compile(r"\b[A-Za-z_]\w*(?:\.\w+)?")


@dataclass(frozen=True, slots=True)
class Definition:
    """One part of the prelude."""

    #: What it defines: `finish`, or `KEY.job`.
    names: frozenset[str]
    text: str
    #: The names that occur in it. There may be some that are no names of definitions.
    uses: frozenset[str]


def split(text: str) -> list[Definition]:
    """The definitions of a Lua text, in order. Raises ValueError if code stands before the first one."""
    text = _COMMENT.sub("", text)
    beginnings = list(_BEGINNING.finditer(text))
    if text[: beginnings[0].start() if beginnings else None].strip():
        raise ValueError("the text does not begin with a definition")
    ends = [match.start() for match in beginnings[1:]] + [len(text)]
    parts = [text[match.start() : end].strip() for match, end in zip(beginnings, ends, strict=True)]
    return [Definition(_defined(match), part, _used(part)) for match, part in zip(beginnings, parts, strict=True)]


def with_definitions(script: str, definitions: Iterable[Definition]) -> str:
    """The script, with the definitions that it uses, and those that these use, in front of it or after the marker."""
    definitions = list(definitions)
    before, _, after = script.rpartition(MARKER)
    parts: list[str] = []
    added: set[Definition] = set()
    for part in filter(None, (before, after)):
        wanted = _wanted(part, definitions) - added
        parts += [definition.text for definition in definitions if definition in wanted]
        parts.append(part)
        added |= wanted
    return "\n".join(parts)


def _wanted(script: str, definitions: list[Definition]) -> set[Definition]:
    uses = set(_used(_COMMENT.sub("", script)))
    wanted: set[Definition] = set()
    # A definition uses only what is defined above it.
    for definition in reversed(definitions):
        if definition.names & uses:
            wanted.add(definition)
            uses |= definition.uses
    return wanted


def _defined(match: re.Match[str]) -> frozenset[str]:
    name = match["function"] or match["field"] or match["constant"]
    return frozenset([name] if name else re.split(", *", match["locals"]))


def _used(text: str) -> frozenset[str]:
    names = set(_NAME.findall(text))
    return frozenset(names | {name.partition(".")[0] for name in names})
