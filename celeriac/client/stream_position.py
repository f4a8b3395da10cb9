"""How far a job's stream has been read: where another connection goes on, and what of it is new there."""

from __future__ import annotations

import re
from dataclasses import replace

from celeriac.client.events import Event, TokenEvent

_PLACE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


class OutOfStepError(Exception):
    """A connection goes on elsewhere than it was asked to."""


class Reading:
    """Takes the events of one connection after the other, and lets each pass once."""

    def __init__(self, starting_after: int | str | None) -> None:
        """Begins behind so many tokens, or behind the event with this id. ValueError where it is neither."""
        place = (0, 0) if starting_after is None else _place_of(str(starting_after))
        if place is None:
            raise ValueError(f"starting_after is a number of tokens or the id of an event, not {starting_after!r}")
        self._starting_after = starting_after
        self._last_id: str | None = None
        # Tokens, and how many events of the log follow them.
        self._place = place
        self._tokens = place[0]
        # Characters of the text, and how many of them had come with how many tokens.
        self._length = 0
        self._length_at = {self._tokens: 0}
        self._latest: dict[type[Event], Event] = {}

    def params(self) -> dict[str, str | int | float]:
        """Of a request that goes on here: where the reading began, until it has an id."""
        begin = self._starting_after
        return {} if begin is None or self._last_id is not None else {"starting_after": begin}

    def headers(self) -> dict[str, str]:
        """Of a request that goes on here."""
        return {} if self._last_id is None else {"Last-Event-ID": self._last_id}

    def fresh(self, event: Event) -> Event | None:
        """What is new of an event; None: nothing. Raises OutOfStepError where text is missing before it."""
        place = None if event.id is None else _place_of(event.id)
        if place is not None and place <= self._place:
            return None
        # A new connection begins with the state, which may be the known one. It has no place in the log.
        if event.id is None and self._latest.get(type(event)) == event:
            return None
        new = self._unread(event) if isinstance(event, TokenEvent) else event
        if new is None:
            return None
        self._latest[type(event)] = event
        if event.id is not None:
            self._last_id = event.id
        self._place = max(self._place, place or self._place)
        if isinstance(new, TokenEvent):
            self._tokens = new.tokens
            self._length += len(new.text)
            self._length_at[new.tokens] = self._length
        return new

    def _unread(self, event: TokenEvent) -> TokenEvent | None:
        """What no earlier event had."""
        if event.offset == self._tokens:
            return event
        if event.tokens <= self._tokens:
            return None
        # An event that begins where an earlier one did can be cut; of another one nobody knows where.
        length = self._length_at.get(event.offset)
        if length is None:
            raise OutOfStepError(f"text from token {event.offset} on where {self._tokens} tokens have been read")
        known = self._length - length
        return replace(event, offset=self._tokens, count=event.tokens - self._tokens, text=event.text[known:])


def _place_of(id_: str) -> tuple[int, int] | None:
    """`<tokens>-<k>` or `<tokens>` as numbers; None where it is neither."""
    match = _PLACE.fullmatch(id_)
    return None if match is None else (int(match[1]), int(match[2] or 0))
