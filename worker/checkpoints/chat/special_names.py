"""Keeps the names of special tokens in messages apart from those that a template writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from worker.checkpoints.chat.base import ChatError

#: Characters that no text should have (noncharacters of Unicode), and then the private ones of plane 15.
_PLACEHOLDERS = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE))

#: Nodes of a tree of names: the next characters, and "" at the end of a name.
_Tree = dict[str, "_Tree"]


class SpecialNames:
    """The names of a tokenizer's special tokens."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        pattern = _pattern(_tree(self._names))
        self._find = re.compile(pattern)
        self._find_in_content = re.compile(pattern, re.IGNORECASE)
        lowered = [name.lower() for name in self._names]
        self._longest = max(map(len, lowered), default=0)
        self._parts_of_names = lowered
        self._beginnings = {name[:end] for name in lowered for end in range(1, len(name))}
        self._ends = {name[start:] for name in lowered for start in range(1, len(name))}

    def hide(self, contents: Sequence[str], source: str) -> tuple[list[str], dict[int, str]]:
        """Replace what could be read as a special token by placeholders, and return what they stand for.

        A placeholder is one character that occurs neither in the contents nor in `source`, the template, so that a
        template that trims, cuts or repeats a content handles it like any other character. Hidden are: the names, in
        any case, and parts of names at the ends of a content, which the template's own text could complete.
        Raises ChatError if there are not enough placeholders.
        """
        placeholders = _Placeholders(set(source).union(*contents))
        hidden = []
        for content in contents:
            if not self._names:
                hidden.append(content)
                continue
            text = self._find_in_content.sub(lambda match: placeholders.of(match[0]), content)
            before, inner, after = _without_spaces(text)
            start, end = self._ends_of(inner)
            pieces = (inner[:start], inner[start:end], inner[end:])
            first, last = (placeholders.of(piece) if piece else "" for piece in (pieces[0], pieces[2]))
            hidden.append(f"{before}{first}{pieces[1]}{last}{after}")
        return hidden, placeholders.table

    def split(self, rendered: str, table: Mapping[int, str]) -> Iterator[tuple[bool, str]]:
        """The parts of a rendered text: (True, the name of a special token) and (False, text), without placeholders."""
        at = 0
        if self._names:
            for match in self._find.finditer(rendered):
                if match.start() > at:
                    yield False, rendered[at : match.start()].translate(table)
                yield True, match[0]
                at = match.end()
        if at < len(rendered):
            yield False, rendered[at:].translate(table)

    def _ends_of(self, text: str) -> tuple[int, int]:
        """Where the part of a text begins and ends that is between two parts of names."""
        if text and len(text) <= self._longest and any(text.lower() in name for name in self._parts_of_names):
            return len(text), len(text)
        lengths = range(min(len(text), self._longest), 0, -1)
        start = next((n for n in lengths if text[:n].lower() in self._ends), 0)
        end = next((n for n in lengths if text[-n:].lower() in self._beginnings), 0)
        return start, max(start, len(text) - end)


class _Placeholders:
    """Gives each text a character of its own."""

    def __init__(self, used: set[str]) -> None:
        self._free = (code for code in chain(*_PLACEHOLDERS) if chr(code) not in used)
        self._characters: dict[str, str] = {}

    def of(self, text: str) -> str:
        if text not in self._characters:
            code = next(self._free, None)
            if code is None:
                raise ChatError("The messages have too many special characters.")
            self._characters[text] = chr(code)
        return self._characters[text]

    @property
    def table(self) -> dict[int, str]:
        """For `str.translate`: the texts by their characters."""
        return {ord(character): text for text, character in self._characters.items()}


def _without_spaces(text: str) -> tuple[str, str, str]:
    """The spaces before a text, the text, and the spaces after it."""
    left = text.lstrip()
    inner = left.rstrip()
    return text[: len(text) - len(left)], inner, left[len(inner) :]


def _tree(names: Iterable[str]) -> _Tree:
    root: _Tree = {}
    for name in names:
        node = root
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return root


def _pattern(node: _Tree) -> str:
    """A regular expression that matches the longest name at a place. It reads each character once.

    Alternatives, one for each of a thousand names, would make texts such as a million `<` slow.
    """
    branches = [re.escape(character) + _pattern(child) for character, child in node.items() if character]
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return f"{joined}?" if "" in node else joined
