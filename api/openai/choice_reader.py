"""Reads one choice from the log of its job: pieces of text with the log-probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from api.openai.token_names import TokenNames
from tasks.generation import Generation
from tasks.logprobs import TokenLogprob, unpack
from tasks.token_log import Entry

#: What OpenAI's API has for a logarithm of 0, which JSON cannot have.
LEAST_LOGPROB = -9999.0


class TokenItem(NamedTuple):
    """The log-probabilities in one place of the text."""

    token_id: int
    #: None for the first token of a prompt.
    logprob: float | None
    #: The most likely tokens there.
    top: tuple[TokenLogprob, ...]
    #: Where the token begins in the text of the choice, in characters.
    offset: int


class Piece(NamedTuple):
    """A part of a choice: its text, and its tokens if log-probabilities were asked for."""

    text: str
    tokens: Sequence[TokenItem] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What of a job belongs to its choice."""

    names: TokenNames
    #: Id of the first token of the prompt, which has no log-probability; None if it is not known.
    first_id: int | None = None
    #: Whether the text begins with the prompt. The stop token that ended the text is then among the tokens, so that a
    #: job of one token has exactly one token after those of the prompt.
    echo: bool = False
    #: Whether the tokens are wanted.
    logprobs: bool = False
    #: Whether the generated tokens are left out.
    prompt_only: bool = False


class ChoiceReader:
    """Reads the entries of one log, in their order."""

    def __init__(self, generation: Generation, options: ReadOptions) -> None:
        self._generation = generation
        self._options = options
        self._prompt_due = options.echo
        self._prompt_logprobs = b""
        #: Characters of the text so far.
        self._length = 0

    def read(self, entries: Iterable[Entry]) -> Iterator[Piece]:
        """The pieces of these entries, one for each token. Pieces that would be empty are left out."""
        for entry in entries:
            # Each attempt computes them again.
            self._prompt_logprobs = self._prompt_logprobs or entry.prompt_logprobs
            if entry.pieces or entry.stop_logprobs:
                yield from self.prompt()
                if not self._options.prompt_only:
                    yield from self._generated(entry)

    def prompt(self) -> Iterator[Piece]:
        """The prompt, if it belongs to the text and was not returned yet. Call it at the end of the log too."""
        if not self._prompt_due:
            return
        self._prompt_due = False
        generation, names = self._generation, self._options.names
        text = generation.prompt if generation.prompt_ids is None else "".join(names.pieces(generation.prompt_ids))
        self._length = len(text)
        yield Piece(text, self._prompt_tokens() if self._options.logprobs else ())

    def _generated(self, entry: Entry) -> Iterator[Piece]:
        records = entry.logprobs_of_tokens() if self._options.logprobs else []
        for index, text in enumerate(entry.pieces):
            tokens = self._items(records[index]) if records else ()
            self._length += len(text)
            if text or tokens:
                yield Piece(text, tokens)
        if entry.stop_logprobs and self._options.echo and self._options.logprobs:
            yield Piece("", self._items(entry.stop_logprobs))

    def _items(self, record: bytes) -> list[TokenItem]:
        alternatives = self._generation.sampling.logprobs or 0
        return [
            TokenItem(chosen.token_id, finite(chosen.logprob), top, self._length)
            for chosen, top in unpack(record, alternatives)
        ]

    def _prompt_tokens(self) -> list[TokenItem]:
        generation = self._generation
        records = unpack(self._prompt_logprobs, generation.sampling.prompt_logprobs or 0)
        first = self._options.first_id
        ids = [*([] if first is None else [first]), *(chosen.token_id for chosen, _ in records)]
        # A prompt with characters that its tokens lack has no right places for what follows them.
        ends = [min(end, self._length) for end in accumulate(map(len, self._options.names.pieces(ids)))]
        offsets = [0, *ends[:-1]]
        items = [TokenItem(chosen.token_id, finite(chosen.logprob), top, 0) for chosen, top in records]
        if first is not None:
            items.insert(0, TokenItem(first, None, (), 0))
        return [item._replace(offset=offset) for item, offset in zip(items, offsets, strict=False)]


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LEAST_LOGPROB)
