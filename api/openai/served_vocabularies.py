"""Finds the vocabulary that a request means."""

from __future__ import annotations

from dataclasses import dataclass

from api.http.problems import RETRY_WORKER_S, ApiError, Code
from api.jobs.catalog import Catalog
from api.openai.token_names import Vocabularies, Vocabulary
from tasks.card import Card


@dataclass(frozen=True, slots=True)
class ServedVocabularies:
    """The vocabularies by the names of their checkpoints. One for all requests of this process."""

    catalog: Catalog
    vocabularies: Vocabularies

    async def choose(self, model: str | None) -> tuple[Card, Vocabulary]:
        """The card and the vocabulary of `model`, or of the default checkpoint.

        Raises ApiError if there is no such checkpoint, or if no worker has published its vocabulary, and RedisError.
        """
        card = await self.catalog.describe(model)
        vocabulary = await self.vocabularies.get(card)
        if vocabulary is None:
            raise ApiError(
                Code.NO_WORKERS,
                f"The tokenizer of {card.name} is not known here: no worker has published it yet, or it has none.",
                retry_after_s=RETRY_WORKER_S,
            )
        return card, vocabulary
