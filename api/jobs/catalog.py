"""Which checkpoints are served: their cards and live workers, read at most every half second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.http.problems import RETRY_WORKER_S, ApiError, Code, FieldError
from tasks.card import Card
from tasks.store.job_store import JobStore
from tasks.worker_info import WorkerInfo, WorkerState

#: How long a picture is taken for the present, in seconds. A refusal is never based on an older one than just now.
FRESH_S = 0.5

#: The guide's words.
NOT_LOADED = "Model not loaded"


@dataclass(frozen=True, slots=True)
class Picture:
    """What was known at one moment."""

    #: Every checkpoint that ever published a card.
    cards: Mapping[str, Card]
    #: Live workers, those that are loading or leaving included.
    workers: Sequence[WorkerInfo]

    def serving(self, name: str | None = None) -> list[WorkerInfo]:
        """Live workers that take jobs, of one checkpoint or of all."""
        return [
            worker
            for worker in self.workers
            if worker.state in (WorkerState.IDLE, WorkerState.BUSY) and name in (None, worker.checkpoint)
        ]

    @property
    def served(self) -> list[str]:
        """Names of the checkpoints that have a worker that takes jobs, sorted."""
        return sorted({worker.checkpoint for worker in self.serving()} & self.cards.keys())

    def default(self, configured: str | None) -> str | None:
        """The checkpoint of a request that names none: the configured one, else the only one served, else the only one
        known. None where that leaves it open, or nothing is known."""
        if configured is not None:
            return configured
        candidates = self.served or sorted(self.cards)
        return candidates[0] if len(candidates) == 1 else None


class Checkpoints:
    """The present picture, shared by all requests of this process."""

    def __init__(self, store: JobStore, *, default: str | None) -> None:
        """`default` is the checkpoint of a request that names none, if one is configured."""
        self._store = store
        self._default = default
        self._picture = Picture({}, [])
        self._taken_at = -FRESH_S
        self._lock = asyncio.Lock()

    @property
    def last(self) -> Picture:
        """The last picture taken, however old."""
        return self._picture

    async def picture(self, *, max_age_s: float = FRESH_S) -> Picture:
        """The picture, at most so old. Raises RedisError."""
        asked_at = time.monotonic()
        async with self._lock:
            # Whoever waited for the lock takes what was read meanwhile.
            if self._taken_at < asked_at - max_age_s:
                reading_since = time.monotonic()
                cards, workers = await asyncio.gather(self._store.cards(), self._store.workers(None))
                self._picture = Picture(cards, workers)
                self._taken_at = reading_since
            return self._picture

    async def choose(self, model: str | None, *, may_wait: bool = False) -> Card:
        """The card of the checkpoint that shall run a request for `model`.

        Raises ApiError where the name is unknown, missing although needed, or has no worker (unless `may_wait`).
        """
        try:
            return self._choose(await self.picture(), model, may_wait)
        except ApiError:
            return self._choose(await self.picture(max_age_s=0.0), model, may_wait)

    async def describe(self, model: str | None) -> Card:
        """The card of `model` or of the default, whether it is served now or not. Raises ApiError as `choose`."""
        return await self.choose(model, may_wait=True)

    def default_name(self, picture: Picture) -> str | None:
        """The checkpoint of a request that names none, as far as it is decided."""
        return picture.default(self._default)

    def _choose(self, picture: Picture, model: str | None, may_wait: bool) -> Card:
        if not picture.cards:
            raise ApiError(Code.MODEL_NOT_LOADED, NOT_LOADED, retry_after_s=RETRY_WORKER_S)
        name = self.default_name(picture) if model is None else model
        known = picture.served or sorted(picture.cards)
        if name is None:
            names = ", ".join(known)
            raise ApiError(
                Code.MODEL_REQUIRED,
                f"Several checkpoints are served: {names}. Name one of them in `model`.",
                extra={"models": known},
            )
        card = picture.cards.get(name)
        if card is None and model is None:
            # The operator's default, whose first worker is still to come.
            raise ApiError(Code.MODEL_NOT_LOADED, NOT_LOADED, retry_after_s=RETRY_WORKER_S)
        if card is None:
            raise _unknown(name, sorted(picture.cards))
        if not may_wait and not picture.serving(name):
            raise ApiError(
                Code.NO_WORKERS,
                f"{NOT_LOADED}: no worker serves {name} at the moment. Start one, or try again later.",
                retry_after_s=RETRY_WORKER_S,
            )
        return card


def _unknown(name: str, known: list[str]) -> ApiError:
    error = FieldError(("body", "model"), "There is no such checkpoint.", "model_not_found", name)
    return ApiError(
        Code.MODEL_NOT_FOUND,
        f"There is no checkpoint {error.to_detail()['input']!r}. Known: {', '.join(known)}.",
        extra={"models": known},
    )
