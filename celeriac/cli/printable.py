"""Makes foreign text safe for a terminal: names, messages of servers, and what a model has written.

A terminal obeys control characters: they move the cursor, change the title, or answer as if the user had typed. Others
change the direction of writing, so that a name looks like another one. They are shown as Python's escapes.
"""

from __future__ import annotations

import re

#: Characters that change the direction of writing. Texts in Arabic or Hebrew have them.
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
#: What may stay in a text of several lines.
LINES = "\n\t"
#: Control characters, characters that end a line or change its direction, and halves of surrogate pairs, which no
#: encoding has.
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{DIRECTIONS}\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """The text with every unsafe character escaped that is not in `keep`."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
