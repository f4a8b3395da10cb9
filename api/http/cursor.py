"""Where in a job's log somebody stands: the ids of a stream's events."""

from __future__ import annotations

import re
from typing import NamedTuple

from api.http.problems import invalid

#: `<tokens>-<k>`, and in a query also `<tokens>` alone.
_CURSOR = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


class Cursor(NamedTuple):
    """Behind `after` tokens, and behind `k` entries that stand there without tokens of their own."""

    after: int = 0
    k: int = 0

    def __str__(self) -> str:
        return f"{self.after}-{self.k}"


def cursor_of(last_event_id: str | None, starting_after: str | None) -> Cursor:
    """The place of a client that comes back; the query goes before the header. Raises ApiError."""
    if starting_after is not None:
        return _parse(starting_after, ("query", "starting_after"))
    # An EventSource that has seen no id yet sends none; some clients send an empty one.
    if last_event_id:
        return _parse(last_event_id, ("header", "last-event-id"))
    return Cursor()


def _parse(text: str, where: tuple[str, str]) -> Cursor:
    match = _CURSOR.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise invalid(
            where,
            "This is no place in a stream: give the `id` of the last event that you got, as 37-0, or the number of "
            "tokens that you have.",
            "cursor",
            given=text,
        )
    return Cursor(int(match[1]), int(match[2] or 0))
