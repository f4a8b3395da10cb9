"""How far a job's stream has been read, so that a new connection continues there and no text comes twice."""

from __future__ import annotations

import re
from dataclasses import replace

from celeriac.client.events import Event, TokenEvent

_EVENT_ID = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


class StreamGapError(Exception):
    """The connection continues at a later token than the one that was asked for."""


class StreamPosition:
    """Position in the stream of one job. It reads the events of all connections in turn and passes each one on once."""

    def __init__(self, starting_after: int | str | None) -> None:
        """Start after this number of tokens, or after the event with this id. ValueError if it is neither."""
        start = (0, 0) if starting_after is None else _parse_id(str(starting_after))
        if start is None:
            raise ValueError(f"starting_after must be a number of tokens or the id of an event, not {starting_after!r}")
        self._starting_after = starting_after
        self._last_id: str | None = None
        #: The last event id, parsed: number of tokens, and number of log entries after that token.
        self._last_entry = start
        self._tokens = start[0]
        #: Number of characters read.
        self._length = 0
        #: Number of tokens at the end of each event: number of characters read up to there.
        self._length_at = {self._tokens: 0}
        self._latest: dict[type[Event], Event] = {}

    def params(self) -> dict[str, str | int | float]:
        """Query parameters of a request that continues here: `starting_after`, until an event had an id."""
        start = self._starting_after
        return {} if start is None or self._last_id is not None else {"starting_after": start}

    def headers(self) -> dict[str, str]:
        """Headers of a request that continues here."""
        return {} if self._last_id is None else {"Last-Event-ID": self._last_id}

    def advance(self, event: Event) -> Event | None:
        """Read an event. Returns its new part; None if all of it is known. Raises StreamGapError if text is missing."""
        entry = None if event.id is None else _parse_id(event.id)
        if entry is not None and entry <= self._last_entry:
            return None
        # A new connection begins with the job's current state, which has no id and may be known.
        if event.id is None and self._latest.get(type(event)) == event:
            return None
        new = self._unread(event) if isinstance(event, TokenEvent) else event
        if new is None:
            return None
        self._latest[type(event)] = event
        if event.id is not None:
            self._last_id = event.id
        self._last_entry = max(self._last_entry, entry or self._last_entry)
        if isinstance(new, TokenEvent):
            self._tokens = new.tokens
            self._length += len(new.text)
            self._length_at[new.tokens] = self._length
        return new

    def _unread(self, event: TokenEvent) -> TokenEvent | None:
        """The part of an event that no earlier event had."""
        if event.offset == self._tokens:
            return event
        if event.tokens <= self._tokens:
            return None
        # Text can be cut only where an earlier event began or ended: elsewhere the length of a token's text is unknown.
        length = self._length_at.get(event.offset)
        if length is None:
            raise StreamGapError(f"text from token {event.offset} on where {self._tokens} tokens have been read")
        known = self._length - length
        return replace(
            event,
            offset=self._tokens,
            count=event.tokens - self._tokens,
            text=event.text[known:],
            logprobs=None if event.logprobs is None else event.logprobs[self._tokens - event.offset :],
        )


def _parse_id(id_: str) -> tuple[int, int] | None:
    """`<tokens>-<k>` or `<tokens>` as numbers; None if it has another form."""
    match = _EVENT_ID.fullmatch(id_)
    return None if match is None else (int(match[1]), int(match[2] or 0))
