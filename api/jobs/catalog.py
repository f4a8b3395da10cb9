"""The catalog of checkpoints: their cards and live workers, read from Redis at most every half second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.http.problems import RETRY_WORKER_S, ApiError, Code, FieldError
from tasks.card import Card
from tasks.shared_call import SharedCall
from tasks.store.job_store import JobStore
from tasks.worker_info import WorkerInfo, WorkerState

#: Oldest snapshot that is used to accept a request, in seconds. A refusal is always based on a new one.
MAX_AGE_S = 0.5

#: The message of the original guide.
NOT_LOADED = "Model not loaded"


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """The checkpoints and workers at one time."""

    #: The cards of all checkpoints that a worker has ever served.
    cards: Mapping[str, Card]
    #: Live workers, including those that are loading or draining.
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
        """The checkpoint of a request that names none.

        It is the configured one, else the only one served, else the only one known. None: there is none, or several.
        """
        if configured is not None:
            return configured
        candidates = self.served or sorted(self.cards)
        return candidates[0] if len(candidates) == 1 else None


class Catalog:
    """The last snapshot, and the choice of a request's checkpoint. One for all requests of this process."""

    def __init__(self, store: JobStore, *, default: str | None) -> None:
        """`default` is the configured checkpoint of a request that names none; None: not configured."""
        self._store = store
        self._default = default
        self._snapshot = CatalogSnapshot({}, [])
        self._taken_at = -MAX_AGE_S
        #: Requests that need a snapshot at the same time share one, and its error.
        self._take = SharedCall(self._take_snapshot)

    @property
    def last_snapshot(self) -> CatalogSnapshot:
        """The last snapshot, of any age; empty before the first one."""
        return self._snapshot

    async def snapshot(self, *, max_age_s: float = MAX_AGE_S) -> CatalogSnapshot:
        """A snapshot that is at most `max_age_s` seconds old. Raises RedisError."""
        oldest = time.monotonic() - max_age_s
        # The one that is being taken now may be too old for this request.
        while self._taken_at < oldest:
            await self._take()
        return self._snapshot

    async def _take_snapshot(self) -> None:
        taken_at = time.monotonic()
        cards, workers = await asyncio.gather(self._store.cards(), self._store.workers(None))
        self._snapshot = CatalogSnapshot(cards, workers)
        self._taken_at = taken_at

    async def choose(self, model: str | None, *, may_wait: bool = False) -> Card:
        """The card of the checkpoint for a request with this `model`.

        Raises ApiError if there is no such checkpoint, if several are served and `model` is None, or if the checkpoint
        has no worker (unless `may_wait`). Raises RedisError.
        """
        try:
            return self._choose(await self.snapshot(), model, may_wait)
        except ApiError:
            return self._choose(await self.snapshot(max_age_s=0.0), model, may_wait)

    async def describe(self, model: str | None) -> Card:
        """The card of `model` or of the default, with or without a worker. Raises as `choose`."""
        return await self.choose(model, may_wait=True)

    def default_name(self, snapshot: CatalogSnapshot) -> str | None:
        """The checkpoint of a request that names none; None if the request has to name one."""
        return snapshot.default(self._default)

    def _choose(self, snapshot: CatalogSnapshot, model: str | None, may_wait: bool) -> Card:
        if not snapshot.cards:
            raise ApiError(Code.MODEL_NOT_LOADED, NOT_LOADED, retry_after_s=RETRY_WORKER_S)
        name = self.default_name(snapshot) if model is None else model
        known = snapshot.served or sorted(snapshot.cards)
        if name is None:
            names = ", ".join(known)
            raise ApiError(
                Code.MODEL_REQUIRED,
                f"Several checkpoints are served: {names}. Name one of them in `model`.",
                extra={"models": known},
            )
        card = snapshot.cards.get(name)
        if card is None and model is None:
            # The configured default, whose first worker has not started yet.
            raise ApiError(Code.MODEL_NOT_LOADED, NOT_LOADED, retry_after_s=RETRY_WORKER_S)
        if card is None:
            raise _not_found(name, sorted(snapshot.cards))
        if not may_wait and not snapshot.serving(name):
            raise ApiError(
                Code.NO_WORKERS,
                f"{NOT_LOADED}: no worker serves {name} now. Start one, or try again later.",
                retry_after_s=RETRY_WORKER_S,
            )
        return card


def _not_found(name: str, known: list[str]) -> ApiError:
    error = FieldError(("body", "model"), "There is no such checkpoint.", "model_not_found", name)
    return ApiError(
        Code.MODEL_NOT_FOUND,
        f"There is no checkpoint {error.to_detail()['input']!r}. Known: {', '.join(known)}.",
        extra={"models": known},
    )
