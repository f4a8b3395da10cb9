"""Makes the readers of a call's choices, which need the checkpoint's vocabulary for log-probabilities."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from api.http.problems import ApiError
from api.jobs.catalog import Catalog
from api.jobs.tokenizers import EncodingFailedError
from api.openai.call import Call
from api.openai.choice_reader import ChoiceReader, ReadOptions
from api.openai.token_names import TokenNames, Vocabularies, Vocabulary
from tasks.card import Card
from tasks.generation import Generation
from tasks.job import Job


@dataclass(frozen=True, slots=True)
class ChoiceReaders:
    """Makes readers. One for all requests of this process."""

    catalog: Catalog
    vocabularies: Vocabularies

    async def of(self, call: Call, first: Job) -> tuple[list[ChoiceReader], TokenNames]:
        """The readers of the choices of a call, whose first job is `first`, and the names of its tokens.

        Raises RedisError.
        """
        card, vocabulary = None, None
        if call.logprobs or (call.echo and first.generation.prompt_ids is not None):
            card = await self._card(first)
            vocabulary = None if card is None else await self.vocabularies.get(card)
        names = TokenNames(vocabulary, as_ids=call.tokens_as_ids)
        readers = []
        for generation in call.generations:
            asks = call.echo and call.logprobs
            options = ReadOptions(
                names=names,
                first_id=await _first_id(generation, card, vocabulary) if asks else None,
                echo=call.echo,
                logprobs=call.logprobs,
                prompt_only=call.prompt_only,
            )
            readers.append(ChoiceReader(generation, options))
        return readers, names

    async def _card(self, job: Job) -> Card | None:
        """The card that the job was checked against; None if the name belongs to another checkpoint by now."""
        try:
            card = await self.catalog.describe(job.checkpoint)
        except ApiError:
            return None
        return card if card.digest == job.digest else None


async def _first_id(generation: Generation, card: Card | None, vocabulary: Vocabulary | None) -> int | None:
    """The first token of a prompt; None if it is not known."""
    if generation.prompt_ids is not None:
        return generation.prompt_ids[0]
    if card is not None and card.tokenizer.prepend_bos and generation.add_bos is not False:
        return card.tokenizer.bos_id
    if vocabulary is None:
        return None

    def encode() -> list[int]:
        return vocabulary.encode(generation.prompt, add_special=False, parse_special=False)

    try:
        # A long text takes a while.
        ids = await asyncio.to_thread(encode)
    except EncodingFailedError:
        return None
    return ids[0] if ids else None
