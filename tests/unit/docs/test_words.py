"""One word for one thing: words that were replaced do not come back, in the documentation and in the code.

`retired_words.txt`, beside this file, is the list.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.docs.pages import PAGES, code_files, name_of

GLOSSARY = "docs/glossary.md"

#: Names that users rely on, and that therefore stay: where they may be spelled.
ALLOWED = {
    "CELERIAC_BELL_POLL_S": (GLOSSARY, "docs/reference/settings.md"),
    "bell_poll_s": ("tasks/settings.py", "api/services.py"),
    "}bell:": ("tasks/store/keys.py",),
    '"bell"': ("tasks/store/keys.py",),
    "celeriac:bell:": (GLOSSARY,),
}
#: The column of the glossary that names the words not to use: the last one of its tables.
_LAST_COLUMN = re.compile(r"^(\|.*\|)[^|]*\|$", re.MULTILINE)


def retired_words() -> dict[str, str]:
    """What to write instead of each word or phrase."""
    instead = {}
    for line in Path(__file__).with_name("retired_words.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            words, _, better = line.partition(" = ")
            instead.update({word.strip(): better for word in words.split(",")})
    return instead


RETIRED = retired_words()
#: Between the words of a phrase: `_`, `-`, spaces, or the end of a line with the next line's mark of a comment.
_GAP = r"(?:[_-]|\s+(?:(?:#:?|--|\*|//)\s+)?)"
_RETIRED = re.compile(
    rf"(?<![A-Za-z])(?:{'|'.join(word.replace(' ', _GAP) for word in RETIRED)})(?![A-Za-z])", re.IGNORECASE
)


def retired_in(name: str, text: str) -> list[str]:
    """Each retired word in the text of the file `name`, with its line and what to write instead."""
    for spelled, files in ALLOWED.items():
        if name in files:
            text = text.replace(spelled, "")
    if name == GLOSSARY:
        text = _LAST_COLUMN.sub(r"\1", text)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    found = []
    for match in _RETIRED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        word = re.sub(_GAP, " ", match[0].lower())
        found.append(f"{name}:{line}: {word!r}, better: {RETIRED[word]}")
    return found


@pytest.mark.parametrize("path", [*PAGES, *code_files()], ids=name_of)
def test_no_retired_word(path: Path) -> None:
    found = retired_in(name_of(path), path.read_text("utf-8"))
    assert not found, "\n".join(found)


def test_retired_words_are_noticed() -> None:
    code = "class BellListener:\n    def hand_back(self): ...\n"
    text = f"{code}    # It is handed\n    # back for want\n    # of room. Bells-ring.\n"
    assert [found.partition(",")[0] for found in retired_in("worker/x.py", text)] == [
        "worker/x.py:1: 'bell'",
        "worker/x.py:2: 'hand back'",
        "worker/x.py:3: 'handed back'",
        "worker/x.py:4: 'for want of'",
        "worker/x.py:5: 'bells'",
        "worker/x.py:5: 'ring'",
    ]


def test_longer_words_are_not_meant() -> None:
    assert not retired_in("worker/x.py", "string, clear, appears, bearing, deathly, parent_death")


def test_names_that_stay_are_allowed_only_in_their_place() -> None:
    assert not retired_in("docs/reference/settings.md", "| `CELERIAC_BELL_POLL_S` | `1.0` |")
    assert retired_in("docs/guide.md", "`CELERIAC_BELL_POLL_S`")
    assert not retired_in(GLOSSARY, "| notification | an empty message | bell |\n")
    assert retired_in(GLOSSARY, "| notification | a bell | ring |\n") == [
        f"{GLOSSARY}:1: 'bell', better: {RETIRED['bell']}"
    ]
