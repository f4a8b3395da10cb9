"""The token log of a job: the entries of the Redis stream, and how a cursor cuts them.

The id of an entry is `<after>-<k>`: `after` is the number of tokens in the log up to and including the entry. An entry
with tokens has k = 0. An entry without tokens (an attempt mark, a last piece of text) has k = 1, 2, ... after the same
number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tasks.errors import RecordError
from tasks.logprobs import record_bytes
from tasks.record import json_texts

#: A stream entry as redis-py returns it: the id and the fields.
RawEntry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the log."""

    #: Number of tokens in the log up to and including this entry.
    after: int
    #: 0 for an entry with tokens.
    k: int
    token_ids: tuple[int, ...] = ()
    #: One text for each token. In an entry without tokens, the last text of the log.
    pieces: tuple[str, ...] = ()
    #: Packed log-probabilities of the tokens (see `tasks.logprobs`), equally many bytes for each; empty if the request
    #: did not ask for them.
    logprobs: bytes = b""
    #: In an entry without tokens: packed log-probabilities of the prompt's tokens after the first one.
    prompt_logprobs: bytes = b""
    #: In an entry without tokens: the packed log-probabilities of the stop token that ended the text.
    stop_logprobs: bytes = b""
    #: In an attempt mark, the number of the attempt that starts here; else None.
    attempt: int | None = None

    @property
    def id(self) -> str:
        """The id in the stream, which is also the id of the event."""
        return f"{self.after}-{self.k}"

    @property
    def before(self) -> int:
        """Number of tokens in the log before this entry."""
        return self.after - len(self.token_ids)

    @property
    def text(self) -> str:
        """The text of this entry."""
        return "".join(self.pieces)

    def cut(self, tokens: int) -> Entry:
        """The part of this entry after the first `tokens` tokens of the log."""
        known = max(0, tokens - self.before)
        if known == 0 or not self.token_ids:
            return self
        size = len(self.logprobs) // len(self.token_ids)
        return replace(
            self,
            token_ids=self.token_ids[known:],
            pieces=self.pieces[known:],
            logprobs=self.logprobs[size * known :],
        )

    def head(self, tokens: int) -> Entry:
        """The part of this entry within the first `tokens` tokens of the log."""
        excess = self.after - tokens
        if excess <= 0 or not self.token_ids:
            return self
        kept = len(self.token_ids) - excess
        return replace(
            self,
            after=tokens,
            token_ids=self.token_ids[:kept],
            pieces=self.pieces[:kept],
            logprobs=b"".join(self.logprobs_of_tokens()[:kept]),
        )

    def logprobs_of_tokens(self) -> list[bytes]:
        """The packed log-probabilities of each token of this entry; empty if there are none."""
        size = len(self.logprobs) // max(1, len(self.token_ids))
        return [self.logprobs[at : at + size] for at in range(0, len(self.logprobs), size or 1)]

    @classmethod
    def decode(cls, raw: RawEntry) -> Entry:
        """The entry in a reply of redis-py. Raises ValueError for an entry that no script wrote."""
        entry_id, fields = raw
        after, _, k = entry_id.decode().partition("-")
        token_ids = tuple(int(token) for token in fields.get(b"ids", b"").split())
        pieces = json_texts(fields.get(b"pieces", b"[]").decode())
        if token_ids and len(token_ids) != len(pieces):
            raise ValueError("not one text for each token")
        logprobs = fields.get(b"logprobs", b"")
        prompt_logprobs = fields.get(b"prompt_logprobs", b"")
        stop_logprobs = fields.get(b"stop_logprobs", b"")
        # A record has some pairs of an id and a number.
        pair = record_bytes(0)
        if len(logprobs) % (pair * max(1, len(token_ids))) or len(prompt_logprobs) % pair or len(stop_logprobs) % pair:
            raise ValueError("no whole records of log-probabilities for each token")
        return cls(
            after=int(after),
            k=int(k),
            token_ids=token_ids,
            pieces=pieces,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop_logprobs=stop_logprobs,
            attempt=int(fields[b"attempt"]) if b"attempt" in fields else None,
        )


@contextmanager
def damage_of(job_id: str) -> Iterator[None]:
    """Raise RecordError for a log of this job that cannot be decoded inside the `with` block."""
    try:
        yield
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise RecordError(job_id, ("log",)) from error


@dataclass(frozen=True, slots=True)
class TokenLog:
    """A whole log."""

    entries: tuple[Entry, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of all tokens."""
        return tuple(token for entry in self.entries for token in entry.token_ids)

    @property
    def token_pieces(self) -> tuple[str, ...]:
        """One text for each token, without text that belongs to no token."""
        return tuple(piece for entry in self.entries if entry.token_ids for piece in entry.pieces)

    def first(self, tokens: int) -> TokenLog:
        """The log up to its first `tokens` tokens, without text that belongs to no token."""
        kept = (entry for entry in self.entries if entry.before < tokens or not entry.pieces)
        return TokenLog(tuple(entry.head(tokens) for entry in kept))

    @property
    def token_logprobs(self) -> tuple[bytes, ...]:
        """The packed log-probabilities of each token; empty if the request did not ask for them."""
        return tuple(part for entry in self.entries for part in entry.logprobs_of_tokens())

    @property
    def prompt_logprobs(self) -> bytes:
        """The packed log-probabilities of the prompt; empty if the log has none."""
        return next((entry.prompt_logprobs for entry in self.entries if entry.prompt_logprobs), b"")

    def check(self) -> None:
        """Raises ValueError if tokens are missing."""
        length = 0
        for entry in self.entries:
            if entry.before != length:
                raise ValueError("tokens are missing")
            length = entry.after

    @property
    def text(self) -> str:
        """The whole text, including text that belongs to no token."""
        return "".join(entry.text for entry in self.entries)


def encode_ids(token_ids: Sequence[int]) -> str:
    """Token ids as an argument of a script."""
    return " ".join(map(str, token_ids))


def encode_pieces(pieces: Iterable[str]) -> str:
    """Texts as an argument of a script."""
    return json.dumps(list(pieces), ensure_ascii=False, separators=(",", ":"))


def from_reply(entries: Sequence[Sequence[object]]) -> tuple[Entry, ...]:
    """The entries in a script's reply, in which the fields are a flat list."""
    decoded = []
    for entry_id, flat in entries:
        assert isinstance(entry_id, bytes)
        assert isinstance(flat, list)
        decoded.append(Entry.decode((entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))))
    return tuple(decoded)
