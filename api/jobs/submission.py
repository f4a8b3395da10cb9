"""Checks a validated request against its checkpoint's card and submits it as a job. Every route submits here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redis.exceptions import RedisError, ResponseError

from api.http.problems import ApiError, Code, FieldError, invalid
from api.jobs.abandoned_submissions import AbandonedSubmissions
from api.jobs.card_check import check_against
from api.jobs.catalog import Catalog
from api.jobs.queue_load import MAX_RETRY_S, QueueLoads, retry_after_s
from api.schemas.generation import GenerateRequest, JobRequest
from tasks.card import Card
from tasks.errors import IdempotencyMismatchError, JobGoneError, QueueFullError, QueueMemoryError, QueuePositionError
from tasks.generation import Generation
from tasks.job import Group, Job, TimeLimits
from tasks.job_id import group_ids
from tasks.store.job_store import JobStore
from tasks.store.new_job import Idempotency, NewJob, Submitted

#: Owner of every job until there are API keys.
ANONYMOUS = "anonymous"
#: Priority of a job whose request names none.
DEFAULT_PRIORITY = 5
#: Prompts with more characters are checked in a thread, so that they do not block the event loop.
LONG_PROMPT_CHARACTERS = 20_000
#: Largest size of the prompts of one call's jobs together, and of their packed log-probabilities, in bytes. Redis does
#: nothing else while it stores prompts: 16 MiB take it a few hundredths of a second, and up to half a second if most
#: characters are not ASCII.
MAX_GROUP_BYTES = 16 << 20


def idempotency(key: str | None, *, owner: str, route: str, request: Mapping[str, Any]) -> Idempotency | None:
    """Key and fingerprint of a request; None without a key.

    Keys of different owners or different `route`s are different keys. `request` is what the caller sent, as JSON
    values: without defaults, so that it is the same request after an upgrade that adds fields or changes a default.
    Members in another order, members that are None, and 1.0 in place of 1 make no other request. Raises ApiError if
    `request` is nested too deeply.
    """
    if key is None:
        return None
    scope = "\0".join((owner, route, key))
    sent = {name: _canonical(value) for name, value in request.items() if value is not None}
    try:
        canonical = json.dumps(sent, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise invalid(("body",), "The body is nested too deeply.", "nested_too_deeply") from error
    return Idempotency(
        key_hash=hashlib.sha256(scope.encode()).hexdigest(), fingerprint=hashlib.sha256(canonical.encode()).hexdigest()
    )


def _canonical(value: Any) -> Any:
    """One spelling for numbers that are equal."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def deadline_s(body: GenerateRequest, cancel_after_s: float | None) -> float | None:
    """How long the whole job may take, in seconds: the shorter of the body's limit and `Cancel-After`, if any."""
    in_body = body.deadline_s if isinstance(body, JobRequest) else None
    return min((limit_s for limit_s in (in_body, cancel_after_s) if limit_s is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a request says about its jobs beside what they generate; the same for all jobs of one call."""

    #: Name of the checkpoint; None: the default one.
    model: str | None = None
    #: Whether to accept the jobs even if no worker serves the checkpoint now.
    wait_for_worker: bool = False
    #: Sampling fields that get the checkpoint's defaults, as far as it has some.
    unset_fields: frozenset[str] = frozenset()
    priority: int = DEFAULT_PRIORITY
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: TimeLimits = field(default_factory=TimeLimits)
    #: Most jobs that may be ahead of the first one; None: no limit.
    max_position: int | None = None
    #: How long a finished job is kept, in seconds; None: the server's default.
    result_ttl_s: float | None = None

    @classmethod
    def of(cls, body: GenerateRequest, cancel_after_s: float | None) -> JobOptions:
        """The options of a body, and those that a body of this kind cannot give at their defaults."""
        deadline_ms = _ms(deadline_s(body, cancel_after_s))
        if not isinstance(body, JobRequest):
            return cls(model=body.model, limits=TimeLimits(deadline_ms=deadline_ms))
        return cls(
            model=body.model,
            wait_for_worker=body.wait_for_worker,
            priority=body.priority,
            metadata=body.metadata,
            limits=TimeLimits(
                queue_timeout_ms=_ms(body.queue_timeout_s),
                run_timeout_ms=_ms(body.run_timeout_s),
                deadline_ms=deadline_ms,
            ),
            max_position=body.max_queue_position,
            result_ttl_s=body.result_ttl_s,
        )


@dataclass(frozen=True, slots=True)
class SubmittedGroup:
    """The jobs of one call, in the order of its answers."""

    job_ids: tuple[str, ...]
    #: Whether an earlier request with the same key created them.
    replayed: bool


class Submitter:
    """Submits jobs. One for all requests of this process."""

    def __init__(
        self, store: JobStore, catalog: Catalog, queue_loads: QueueLoads, abandoned: AbandonedSubmissions
    ) -> None:
        self._store = store
        self._abandoned = abandoned
        self._catalog = catalog
        self._queue_loads = queue_loads

    async def submit(
        self,
        body: GenerateRequest,
        *,
        job_id: str,
        key: Idempotency | None,
        cancel_after_s: float | None,
        reply_to: str | None,
    ) -> Submitted:
        """Submit the request as the job `job_id`, or find the job that its idempotency key belongs to.

        `reply_to` is the channel that receives the new job's id when it ends. Raises ApiError if the request cannot be
        accepted, and RedisError.
        """
        options, generation = JobOptions.of(body, cancel_after_s), body.generation
        return await self._submit(key, lambda: self._new_jobs(options, [generation], job_id, key, reply_to))

    async def submit_group(
        self,
        options: JobOptions,
        generations: Sequence[Generation],
        *,
        first_id: str,
        key: Idempotency | None,
        reply_to: str | None,
    ) -> SubmittedGroup:
        """Submit one job for each of the generations, all or none, or find the jobs that the key belongs to.

        The jobs have the ids `group_ids(first_id, len(generations))`. Raises as `submit`.
        """
        submitted = await self._submit(key, lambda: self._new_jobs(options, generations, first_id, key, reply_to))
        if not submitted.replayed:
            return SubmittedGroup(group_ids(first_id, len(generations)), replayed=False)
        job = await self._store.get(submitted.job_id)
        size = 1 if job is None or job.group is None else job.group.size
        return SubmittedGroup(group_ids(submitted.job_id, size), replayed=True)

    async def repeat(self, job: Job, *, job_id: str, key: Idempotency | None) -> Submitted:
        """Submit the request of `job` again as the job `job_id`. Raises as `submit`."""
        return await self._submit(key, lambda: self._repeated_jobs(job, job_id, key))

    async def find(self, key: Idempotency) -> Submitted | None:
        """The job that an earlier request with this key created; None if there was no such request.

        Raises ApiError, with status 410 if that job was deleted or has expired, and RedisError.
        """
        try:
            known = await self._store.find(key)
        except (IdempotencyMismatchError, JobGoneError) as error:
            raise _key_error(error) from error
        return None if known is None else Submitted(known, replayed=True)

    async def _submit(self, key: Idempotency | None, make_jobs: Callable[[], Awaitable[list[NewJob]]]) -> Submitted:
        jobs: list[NewJob] = []
        # A repeated request finds its job even if it could not be accepted now.
        if key is not None and (known := await self.find(key)) is not None:
            return known
        try:
            jobs = await make_jobs()
            return await self._store_jobs(await self._with_predictions(jobs))
        except (IdempotencyMismatchError, JobGoneError) as error:
            raise _key_error(error) from error
        except QueueFullError as error:
            raise await self._refusal(Code.QUEUE_FULL, error, jobs, len(jobs)) from error
        except QueueMemoryError as error:
            raise ApiError(Code.QUEUE_FULL, str(error), retry_after_s=_memory_retry_s(error)) from error
        except QueuePositionError as error:
            too_many = error.position - error.limit
            raise await self._refusal(Code.MAX_QUEUE_POSITION, error, jobs, too_many) from error

    async def _store_jobs(self, jobs: Sequence[NewJob]) -> Submitted:
        try:
            return await self._store.submit(*jobs)
        except RedisError as error:
            # With a key, a repeated request finds the jobs.
            if jobs[0].idempotency is None and not isinstance(error, ResponseError):
                for job in jobs:
                    self._abandoned.add(job.id)
            raise

    async def _refusal(self, code: Code, error: Exception, jobs: Sequence[NewJob], departures: int) -> ApiError:
        """429. `Retry-After` is the estimated time until `departures` waiting jobs have started."""
        queue = await self._queue_loads.snapshot(jobs[0].checkpoint)
        return ApiError(code, str(error), retry_after_s=retry_after_s(queue.queue_load.departure_s(departures)))

    async def _with_predictions(self, jobs: Sequence[NewJob]) -> list[NewJob]:
        """The jobs with their estimated durations, which are compared with the real ones when they end."""
        queue_load = (await self._queue_loads.snapshot(jobs[0].checkpoint)).queue_load
        estimates = [
            queue_load.estimate(position=queue_load.waiting + index, tokens_left=job.generation.sampling.max_tokens)
            for index, job in enumerate(jobs)
        ]
        return [replace(job, predicted_s=estimate.uncorrected_s) for job, estimate in zip(jobs, estimates, strict=True)]

    async def _new_jobs(
        self,
        options: JobOptions,
        generations: Sequence[Generation],
        first_id: str,
        key: Idempotency | None,
        reply_to: str | None,
    ) -> list[NewJob]:
        card = await self._catalog.choose(options.model, may_wait=options.wait_for_worker)
        generations = [_with_defaults(generation, card, options.unset_fields) for generation in generations]
        await self._check(card, generations)
        size = len(generations)
        return [
            NewJob(
                id=job_id,
                owner=ANONYMOUS,
                checkpoint=card.name,
                digest=card.digest,
                generation=generation,
                group=Group(first_id, index, size) if size > 1 else None,
                context=card.context,
                priority=options.priority,
                metadata=options.metadata,
                limits=options.limits,
                max_position=options.max_position,
                # The key leads to the first job, and that one to the others.
                idempotency=key if index == 0 else None,
                result_ttl_s=options.result_ttl_s,
                reply_to=reply_to,
            )
            for index, (job_id, generation) in enumerate(zip(group_ids(first_id, size), generations, strict=True))
        ]

    async def _repeated_jobs(self, job: Job, job_id: str, key: Idempotency | None) -> list[NewJob]:
        card = await self._catalog.choose(job.checkpoint)
        # The name may belong to another checkpoint by now.
        await self._check(card, [job.generation])
        new = NewJob(
            id=job_id,
            owner=job.owner,
            checkpoint=card.name,
            digest=card.digest,
            generation=job.generation,
            context=card.context,
            priority=job.priority,
            metadata=job.metadata,
            limits=job.limits,
            retry_of=job.id,
            idempotency=key,
            result_ttl_s=job.result_ttl_ms / 1000,
        )
        return [new]

    async def _check(self, card: Card, generations: Sequence[Generation]) -> None:
        def check() -> None:
            for generation in generations:
                check_against(card, generation)

        size = sum(generation.most_prompt_tokens for generation in generations)
        if len(generations) > 1 and size > MAX_GROUP_BYTES:
            raise invalid(
                ("body",),
                f"The prompts of the {len(generations)} jobs of this call have {size:,} bytes together, and may have "
                f"{MAX_GROUP_BYTES:,}: each job keeps its own. Send several calls.",
                "group_too_large",
            )
        logprob_bytes = sum(generation.most_logprob_bytes(card.context) for generation in generations)
        if len(generations) > 1 and logprob_bytes > MAX_GROUP_BYTES:
            raise invalid(
                ("body",),
                f"The log-probabilities of the {len(generations)} jobs of this call may have {logprob_bytes:,} bytes "
                f"together, and must have {MAX_GROUP_BYTES:,} at most. Ask for fewer tokens or alternatives, or send "
                "several calls.",
                "group_too_large",
            )
        if size > LONG_PROMPT_CHARACTERS:
            await asyncio.to_thread(check)
        else:
            check()


def _with_defaults(generation: Generation, card: Card, unset_fields: frozenset[str]) -> Generation:
    """The request with the checkpoint's defaults for `unset_fields`."""
    defaults: dict[str, Any] = {
        name: value for name, value in (card.default_sampling or {}).items() if name in unset_fields
    }
    if not defaults:
        return generation
    return replace(generation, sampling=replace(generation.sampling, **defaults))


def _memory_retry_s(error: QueueMemoryError) -> int:
    """When a request may fit into Redis's memory: after the next finished job has expired, as far as that is known."""
    return MAX_RETRY_S if error.next_expiry_s is None else retry_after_s(error.next_expiry_s)


def _key_error(error: IdempotencyMismatchError | JobGoneError) -> ApiError:
    """The error for an idempotency key that was used before."""
    if isinstance(error, JobGoneError):
        return ApiError(Code.GONE, str(error), extra={"job_id": error.job_id}, headers={"X-Should-Retry": "false"})
    wrong = FieldError(("header", "idempotency-key"), str(error), "idempotency_mismatch")
    return ApiError(Code.IDEMPOTENCY_MISMATCH, str(error), errors=[wrong])


def _ms(seconds: float | None) -> int | None:
    """A time limit in ms, as the record has it: at least 1."""
    return None if seconds is None else max(1, round(seconds * 1000))
