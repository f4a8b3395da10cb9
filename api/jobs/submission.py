"""Checks a validated request against its checkpoint's card and submits it as a job. Every route submits here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError, ResponseError

from api.http.problems import ApiError, Code, FieldError, invalid
from api.jobs.abandoned_submissions import AbandonedSubmissions
from api.jobs.catalog import Catalog
from api.jobs.queue_load import MAX_RETRY_S, QueueLoads, retry_after_s
from api.schemas.generation import GenerateRequest, JobRequest
from tasks.card import Card
from tasks.errors import IdempotencyMismatchError, JobGoneError, QueueFullError, QueueMemoryError, QueuePositionError
from tasks.generation import Generation
from tasks.job import Job, TimeLimits
from tasks.store.job_store import JobStore
from tasks.store.new_job import Idempotency, NewJob, Submitted

#: Owner of every job until there are API keys.
ANONYMOUS = "anonymous"
#: Priority of a job whose request names none.
DEFAULT_PRIORITY = 5
#: Prompts with more characters are checked in a thread, so that they do not block the event loop.
LONG_PROMPT_CHARACTERS = 20_000
#: Most unknown characters that one error names.
MAX_NAMED_CHARACTERS = 10


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
        return await self._submit(key, lambda: self._new_job(body, job_id, key, cancel_after_s, reply_to))

    async def repeat(self, job: Job, *, job_id: str, key: Idempotency | None) -> Submitted:
        """Submit the request of `job` again as the job `job_id`. Raises as `submit`."""
        return await self._submit(key, lambda: self._repeated_job(job, job_id, key))

    async def find(self, key: Idempotency) -> Submitted | None:
        """The job that an earlier request with this key created; None if there was no such request.

        Raises ApiError, with status 410 if that job was deleted or has expired, and RedisError.
        """
        try:
            known = await self._store.find(key)
        except (IdempotencyMismatchError, JobGoneError) as error:
            raise _key_error(error) from error
        return None if known is None else Submitted(known, replayed=True)

    async def _submit(self, key: Idempotency | None, make_job: Callable[[], Awaitable[NewJob]]) -> Submitted:
        checkpoint: str | None = None
        # A repeated request finds its job even if it could not be accepted now.
        if key is not None and (known := await self.find(key)) is not None:
            return known
        try:
            new = await make_job()
            checkpoint = new.checkpoint
            return await self._store_job(await self._with_prediction(new))
        except (IdempotencyMismatchError, JobGoneError) as error:
            raise _key_error(error) from error
        except QueueFullError as error:
            raise await self._refusal(Code.QUEUE_FULL, error, checkpoint, 1) from error
        except QueueMemoryError as error:
            raise ApiError(Code.QUEUE_FULL, str(error), retry_after_s=_memory_retry_s(error)) from error
        except QueuePositionError as error:
            too_many = error.position - error.limit
            raise await self._refusal(Code.MAX_QUEUE_POSITION, error, checkpoint, too_many) from error

    async def _store_job(self, new: NewJob) -> Submitted:
        try:
            return await self._store.submit(new)
        except RedisError as error:
            # With a key, a repeated request finds the job.
            if new.idempotency is None and not isinstance(error, ResponseError):
                self._abandoned.add(new.id)
            raise

    async def _refusal(self, code: Code, error: Exception, checkpoint: str | None, departures: int) -> ApiError:
        """429. `Retry-After` is the estimated time until `departures` waiting jobs have started."""
        assert checkpoint is not None, "the queue can refuse a job only after it was made"
        queue = await self._queue_loads.snapshot(checkpoint)
        return ApiError(code, str(error), retry_after_s=retry_after_s(queue.queue_load.departure_s(departures)))

    async def _with_prediction(self, new: NewJob) -> NewJob:
        """The job with its estimated duration, which is compared with the real one when it ends."""
        queue_load = (await self._queue_loads.snapshot(new.checkpoint)).queue_load
        estimate = queue_load.estimate(position=queue_load.waiting, tokens_left=new.generation.sampling.max_tokens)
        return replace(new, predicted_s=estimate.uncorrected_s)

    async def _new_job(
        self,
        body: GenerateRequest,
        job_id: str,
        key: Idempotency | None,
        cancel_after_s: float | None,
        reply_to: str | None,
    ) -> NewJob:
        options = body if isinstance(body, JobRequest) else None
        card = await self._catalog.choose(body.model, may_wait=options is not None and options.wait_for_worker)
        generation = Generation(prompt=body.prompt, sampling=body.sampling.with_seed())
        await self._check(card, generation)
        return NewJob(
            id=job_id,
            owner=ANONYMOUS,
            checkpoint=card.name,
            digest=card.digest,
            generation=generation,
            priority=DEFAULT_PRIORITY if options is None else options.priority,
            metadata={} if options is None else options.metadata,
            limits=TimeLimits(
                queue_timeout_ms=None if options is None else _ms(options.queue_timeout_s),
                run_timeout_ms=None if options is None else _ms(options.run_timeout_s),
                deadline_ms=_ms(deadline_s(body, cancel_after_s)),
            ),
            max_position=None if options is None else options.max_queue_position,
            idempotency=key,
            result_ttl_s=None if options is None else options.result_ttl_s,
            reply_to=reply_to,
        )

    async def _repeated_job(self, job: Job, job_id: str, key: Idempotency | None) -> NewJob:
        card = await self._catalog.choose(job.checkpoint)
        # The name may belong to another checkpoint by now.
        await self._check(card, job.generation)
        return NewJob(
            id=job_id,
            owner=job.owner,
            checkpoint=card.name,
            digest=card.digest,
            generation=job.generation,
            priority=job.priority,
            metadata=job.metadata,
            limits=job.limits,
            retry_of=job.id,
            idempotency=key,
            result_ttl_s=job.result_ttl_ms / 1000,
        )

    async def _check(self, card: Card, generation: Generation) -> None:
        if len(generation.prompt) > LONG_PROMPT_CHARACTERS:
            await asyncio.to_thread(check_against, card, generation)
        else:
            check_against(card, generation)


def _memory_retry_s(error: QueueMemoryError) -> int:
    """When a request may fit into Redis's memory: after the next finished job has expired, as far as that is known."""
    return MAX_RETRY_S if error.next_expiry_s is None else retry_after_s(error.next_expiry_s)


def check_against(card: Card, generation: Generation) -> None:
    """Raises ApiError for a request that the checkpoint cannot run.

    The worker checks before it decodes what needs the tokenizer, such as the length of a prompt in BPE tokens.
    """
    if generation.sampling.top_k is not None and generation.sampling.top_k > card.vocab_size:
        raise invalid(
            ("body", "top_k"),
            f"Input should be less than or equal to {card.vocab_size}",
            "less_than_equal",
            given=generation.sampling.top_k,
            ctx={"le": card.vocab_size},
        )
    unknown = card.tokenizer.unknown_characters(generation.prompt)
    if unknown and card.tokenizer.unknown == "refuse":
        raise ApiError(
            Code.INVALID_REQUEST,
            f"The vocabulary of {card.name} lacks {len(unknown)} of the prompt's characters. "
            f"`celeriac inspect {card.name}` prints the vocabulary.",
            errors=[_unknown_character(card, index, char) for index, char in unknown[:MAX_NAMED_CHARACTERS]],
        )
    tokens, at_least = card.tokenizer.prompt_tokens(generation.prompt), ""
    if tokens == 0:
        raise invalid(
            ("body", "prompt"),
            f"The vocabulary of {card.name} has none of the prompt's characters.",
            "unknown_character",
            given=generation.prompt,
        )
    if tokens is None:
        tokens, at_least = card.tokenizer.least_prompt_tokens(generation.prompt), "at least "
    if tokens >= card.context:
        raise invalid(
            ("body", "prompt"),
            f"The prompt has {at_least}{tokens} tokens; the context of {card.name} is {card.context}, and one token "
            f"must remain for the answer. Shorten it to {card.context - 1} tokens or fewer.",
            Code.PROMPT_TOO_LONG.value,
            code=Code.PROMPT_TOO_LONG,
        )


def _key_error(error: IdempotencyMismatchError | JobGoneError) -> ApiError:
    """The error for an idempotency key that was used before."""
    if isinstance(error, JobGoneError):
        return ApiError(Code.GONE, str(error), extra={"job_id": error.job_id}, headers={"X-Should-Retry": "false"})
    wrong = FieldError(("header", "idempotency-key"), str(error), "idempotency_mismatch")
    return ApiError(Code.IDEMPOTENCY_MISMATCH, str(error), errors=[wrong])


def _ms(seconds: float | None) -> int | None:
    """A time limit in ms, as the record has it: at least 1."""
    return None if seconds is None else max(1, round(seconds * 1000))


def _unknown_character(card: Card, index: int, char: str) -> FieldError:
    return FieldError(
        ("body", "prompt"),
        f"The character {_named(char)} at index {index} is not in the vocabulary of {card.name}.",
        "unknown_character",
        char,
        {"index": index, "character": char},
    )


def _named(char: str) -> str:
    """A character for an error message: its repr and its code point."""
    return f"{char!r} (U+{ord(char):04X})"
