"""The catalog of checkpoints: their cards and which of them are served or offered, read at most every half second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from api.http.problems import RETRY_WORKER_S, ApiError, Code, FieldError, listed
from tasks.card import Card
from tasks.shared_call import SharedCall
from tasks.store.job_store import JobStore
from tasks.store.replies import WorkerCounts
from tasks.switching_info import SwitchingInfo
from tasks.worker_info import WorkerInfo

#: Oldest snapshot that is used to accept a request, in seconds. A refusal is always based on a new one.
MAX_AGE_S = 0.5

#: Oldest cards that are used without a change of their version, in seconds. A switching worker may offer a thousand
#: checkpoints, and their cards take tens of milliseconds to read.
MAX_CARDS_AGE_S = 30.0

#: The message of the original guide.
NOT_LOADED = "Model not loaded"


@dataclass(frozen=True)
class CatalogSnapshot:
    """The checkpoints at one time. One is served if a worker takes its jobs, or will load it when jobs wait."""

    #: The cards of all checkpoints that a worker has ever served, and of those that are offered.
    cards: Mapping[str, Card]
    #: The live workers of each checkpoint that has some.
    workers: Sequence[WorkerCounts]
    #: Names of the checkpoints that a live switching worker can load.
    offered: frozenset[str] = frozenset()

    def serving(self, name: str | None = None) -> list[WorkerCounts]:
        """The checkpoints with a worker that takes jobs, one of them or all."""
        return [counts for counts in self._counts_of(name) if counts.serving]

    def accepts(self, name: str | None) -> bool:
        """Whether new jobs are accepted for a checkpoint. None: for no checkpoint.

        It has a worker that takes jobs, or one that replaces a crashed engine and soon takes jobs again, or a switching
        worker can load it.
        """
        return name is not None and name in self._accepting

    def loading(self, name: str | None = None) -> int:
        """Number of workers that load a checkpoint, for the first time or again, of one checkpoint or of all."""
        return sum(counts.starting + counts.reloading for counts in self._counts_of(name))

    def stalled(self) -> int:
        """Number of workers whose consumer does not look for messages."""
        return sum(counts.stalled for counts in self.workers)

    def _counts_of(self, name: str | None) -> list[WorkerCounts]:
        return [counts for counts in self.workers if name in (None, counts.checkpoint)]

    @cached_property
    def _accepting(self) -> frozenset[str]:
        with_worker = (counts.checkpoint for counts in self.workers if counts.serving or counts.reloading)
        return self.offered.union(with_worker) & self.cards.keys()

    @cached_property
    def served(self) -> list[str]:
        """Names of the checkpoints for which jobs are accepted, sorted."""
        return sorted(self._accepting)

    @cached_property
    def _latest(self) -> Mapping[str, Card]:
        """The last checkpoint of each run that has several, by the name of the run."""
        named = [card for card in self.cards.values() if card.latest_of]
        # A run whose worker is gone comes after one that can be used.
        named.sort(key=lambda card: (self.accepts(card.name), -1 if card.step is None else card.step, card.name))
        return {card.latest_of: card for card in named}

    def card(self, name: str) -> Card | None:
        """The card of a checkpoint, or of the last checkpoint of the run with this name; None if there is none.

        A run that an ordinary worker served under its own name has a card too, which is kept when the worker has gone.
        """
        card, latest = self.cards.get(name), self._latest.get(name)
        if card is None or (latest is not None and self.accepts(latest.name) and not self.accepts(name)):
            return latest
        return card

    def default(self, configured: str | None) -> str | None:
        """The checkpoint of a request that names none.

        It is the configured one, which may be given as in `card`, else the only one served, else the only one known.
        None: there is none, or several.
        """
        if configured is not None:
            card = self.card(configured)
            return configured if card is None else card.name
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
        self._cards_version: bytes | None = None
        self._cards_read_at = -MAX_CARDS_AGE_S
        #: Requests that need a snapshot at the same time share one, and its error.
        self._take = SharedCall(self._take_snapshot)
        self._workers: Sequence[WorkerInfo] = []
        self._workers_taken_at = -MAX_AGE_S
        self._take_workers = SharedCall(self._read_workers)

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
        # The version first: cards that are read after it are at least as new.
        version, workers = await asyncio.gather(self._store.catalog_version(), self._store.worker_counts())
        cards, offered = self._snapshot.cards, self._snapshot.offered
        if version != self._cards_version or taken_at - self._cards_read_at > MAX_CARDS_AGE_S:
            cards, offered = await asyncio.gather(self._store.cards(), self._store.offered())
            self._cards_version, self._cards_read_at = version, taken_at
        self._snapshot = CatalogSnapshot(cards, workers, offered)
        self._taken_at = taken_at

    async def workers(self) -> Sequence[WorkerInfo]:
        """The live workers, including those that are loading or draining, at most `MAX_AGE_S` ago. Raises RedisError.

        Reading a thousand workers takes this process tens of milliseconds, so no request needs it but the list itself.
        """
        oldest = time.monotonic() - MAX_AGE_S
        while self._workers_taken_at < oldest:
            await self._take_workers()
        return self._workers

    async def switching_workers(self, model: str | None) -> Sequence[SwitchingInfo]:
        """The live switching workers, those that offer one checkpoint or all. Raises RedisError."""
        return await self._store.switching_workers(model)

    async def _read_workers(self) -> None:
        taken_at = time.monotonic()
        self._workers = await self._store.workers()
        self._workers_taken_at = taken_at

    async def choose(self, model: str | None, *, may_wait: bool = False) -> Card:
        """The card of the checkpoint for a request with this `model`.

        Raises ApiError if there is no such checkpoint, if `model` is None and several could be meant, or if the
        checkpoint has no worker (unless `may_wait`). Raises RedisError.
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
        if name is None:
            raise _ambiguous(snapshot, may_wait)
        card = snapshot.card(name)
        if card is None and model is None:
            # The configured default, whose first worker has not started yet.
            raise ApiError(Code.MODEL_NOT_LOADED, NOT_LOADED, retry_after_s=RETRY_WORKER_S)
        if card is None:
            raise _not_found(name, sorted(snapshot.cards))
        if not may_wait and not snapshot.accepts(card.name):
            loads = f"a worker loads {card.name} now. Try"
            now = loads if snapshot.loading(card.name) else f"no worker serves {card.name} now. Start one, or try"
            raise _not_served(f"{now} again later")
        return card


def _ambiguous(snapshot: CatalogSnapshot, may_wait: bool) -> ApiError:
    """The error of a request without `model` for which no checkpoint, or more than one, can be meant."""
    known = snapshot.served or sorted(snapshot.cards)
    if not snapshot.served and not may_wait:
        # Which one is meant is not the question: none can answer.
        return _not_served(f"no worker serves a checkpoint now. Start one, or try again later. Known: {listed(known)}")
    are = "served" if snapshot.served else "known, and none is served now"
    return ApiError(
        Code.MODEL_REQUIRED,
        f"Several checkpoints are {are}: {listed(known)}. Name one of them in `model`.",
        extra={"models": known},
    )


def _not_served(why: str) -> ApiError:
    return ApiError(Code.NO_WORKERS, f"{NOT_LOADED}: {why}.", retry_after_s=RETRY_WORKER_S)


def _not_found(name: str, known: list[str]) -> ApiError:
    error = FieldError(("body", "model"), "There is no such checkpoint.", "model_not_found", name)
    return ApiError(
        Code.MODEL_NOT_FOUND,
        f"There is no checkpoint {error.to_detail()['input']!r}. Known: {listed(known)}.",
        extra={"models": known},
    )
