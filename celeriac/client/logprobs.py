"""Log-probabilities of tokens, as the server sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, before temperature and penalties."""

    token_id: int
    logprob: float

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> TokenLogprob:
        """Parse the API's object. Raises KeyError or TypeError if it is something else."""
        return cls(token_id=raw["token_id"], logprob=raw["logprob"])


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of a text, and the most likely tokens at its place."""

    token_id: int
    logprob: float
    #: As many as the request asked for, the most likely one first.
    top: tuple[TokenLogprob, ...]

    @classmethod
    def of_all(cls, raw: Sequence[Mapping[str, Any]] | None) -> tuple[TokenLogprobs, ...] | None:
        """Parse the API's list; None if there is none. Raises KeyError or TypeError if it is something else."""
        if raw is None:
            return None
        return tuple(cls(one["token_id"], one["logprob"], tuple(map(TokenLogprob.of, one["top"]))) for one in raw)
