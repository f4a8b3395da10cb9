"""The token log of a job: what its entries look like in the stream, and how any cursor cuts them.

An entry's id is `<after>-<k>`: `after` tokens are in the log once it is read. Entries with tokens have k = 0; what
stands between two tokens (an attempt mark, a last piece of text) has k = 1, 2, ... at the same offset.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

#: What redis-py makes of one stream entry: id, and its fields.
RawEntry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the log."""

    #: Tokens in the log up to and with this entry.
    after: int
    k: int
    token_ids: tuple[int, ...] = ()
    #: One text for each token; in an entry without tokens, the last text of the log.
    pieces: tuple[str, ...] = ()
    #: Number of the attempt that begins here, in an attempt mark.
    attempt: int | None = None

    @property
    def id(self) -> str:
        """As the stream and the events' ids spell it."""
        return f"{self.after}-{self.k}"

    @property
    def before(self) -> int:
        """Tokens in front of this entry."""
        return self.after - len(self.token_ids)

    @property
    def text(self) -> str:
        """The text that it adds."""
        return "".join(self.pieces)

    def cut(self, tokens: int) -> Entry:
        """The part behind the first `tokens` tokens of the log."""
        known = max(0, tokens - self.before)
        if known == 0 or not self.token_ids:
            return self
        return replace(self, token_ids=self.token_ids[known:], pieces=self.pieces[known:])

    @classmethod
    def decode(cls, raw: RawEntry) -> Entry:
        """The entry that a script wrote."""
        entry_id, fields = raw
        after, _, k = entry_id.decode().partition("-")
        return cls(
            after=int(after),
            k=int(k),
            token_ids=tuple(int(token) for token in fields.get(b"ids", b"").split()),
            pieces=tuple(json.loads(fields.get(b"pieces", b"[]"))),
            attempt=int(fields[b"attempt"]) if b"attempt" in fields else None,
        )


@dataclass(frozen=True, slots=True)
class TokenLog:
    """A log read from its beginning."""

    entries: tuple[Entry, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token."""
        return tuple(token for entry in self.entries for token in entry.token_ids)

    @property
    def token_pieces(self) -> tuple[str, ...]:
        """One text for each token, without text that belongs to none."""
        return tuple(piece for entry in self.entries if entry.token_ids for piece in entry.pieces)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(entry.text for entry in self.entries)


def encode_ids(token_ids: Sequence[int]) -> str:
    """As the scripts take token ids."""
    return " ".join(map(str, token_ids))


def encode_pieces(pieces: Iterable[str]) -> str:
    """As the scripts take pieces of text."""
    return json.dumps(list(pieces), ensure_ascii=False, separators=(",", ":"))


def from_reply(entries: Sequence[Sequence[object]]) -> tuple[Entry, ...]:
    """The entries in a script's reply, where fields are a flat list."""
    decoded = []
    for entry_id, flat in entries:
        assert isinstance(entry_id, bytes)
        assert isinstance(flat, list)
        decoded.append(Entry.decode((entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))))
    return tuple(decoded)
