"""Makes foreign text safe for a terminal."""

from __future__ import annotations

#: Longest text of one value, in characters.
MAX_CHARACTERS = 300


def printable(text: str, *, limit: int | None = MAX_CHARACTERS) -> str:
    """The text in one line, without anything that a terminal obeys or that changes the direction of writing.

    Such characters are shown as Python's escapes. A text longer than `limit` characters is cut.
    """
    if limit is not None and len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_block(text: str) -> str:
    """A text of several lines, such as a traceback, with each of its lines made safe and indented."""
    return "".join(f"    {printable(line, limit=None)}\n" for line in text.rstrip("\n").split("\n"))
