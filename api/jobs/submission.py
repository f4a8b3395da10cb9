"""From a validated body to a job in the queue: the one way in, for every route that generates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from api.http.cancel_after import sooner
from api.http.problems import ApiError, Code, FieldError, invalid
from api.jobs.catalog import Checkpoints
from api.jobs.queue_load import Estimates, retry_after_s
from api.schemas.generation import GenerateRequest, JobRequest
from tasks.card import Card
from tasks.errors import IdempotencyMismatchError, QueueFullError, QueuePositionError
from tasks.generation import Generation
from tasks.job import Job, TimeLimits
from tasks.store.job_store import Idempotency, JobStore, NewJob, Submitted

#: Owner of every job until there are API keys.
ANYBODY = "anonymous"
#: Priority of a job whose caller names none.
DEFAULT_PRIORITY = 5
#: Prompts of more characters are looked through in a thread, so that the event loop goes on.
LONG_PROMPT = 20_000
#: Unknown characters that an error names.
MAX_NAMED_CHARACTERS = 10


class Submitter:
    """Checks a request against its checkpoint's card and hands it to the queue."""

    def __init__(self, store: JobStore, checkpoints: Checkpoints, estimates: Estimates) -> None:
        self._store = store
        self._checkpoints = checkpoints
        self._estimates = estimates

    async def submit(
        self,
        body: GenerateRequest,
        *,
        job_id: str,
        key: Idempotency | None,
        cancel_after_s: float | None,
        reply_to: str | None,
    ) -> Submitted:
        """Queue the request under `job_id`, or find the job that its idempotency key belongs to. `reply_to` is the
        channel on which a new job's end is told.

        Raises ApiError for whatever is wrong with it, and RedisError.
        """
        return await self._accept(key, lambda: self._new_job(body, job_id, key, cancel_after_s, reply_to))

    async def repeat(self, job: Job, *, job_id: str, key: Idempotency | None) -> Submitted:
        """Queue under `job_id` what `job` was asked for, as a job of its own. Raises as `submit`."""
        return await self._accept(key, lambda: self._repeated(job, job_id, key))

    async def _accept(self, key: Idempotency | None, make: Callable[[], Awaitable[NewJob]]) -> Submitted:
        checkpoint: str | None = None
        try:
            # A repeated request finds its job even if it could not be accepted now.
            if key is not None and (known := await self._store.find(key)) is not None:
                return Submitted(known, replayed=True)
            new = await make()
            checkpoint = new.checkpoint
            return await self._store.submit(await self._predicted(new))
        except IdempotencyMismatchError as error:
            raise ApiError(
                Code.IDEMPOTENCY_MISMATCH,
                str(error),
                errors=[FieldError(("header", "idempotency-key"), str(error), "idempotency_mismatch")],
            ) from error
        except QueueFullError as error:
            raise await self._refusal(Code.QUEUE_FULL, error, checkpoint, 1) from error
        except QueuePositionError as error:
            too_many = error.position - error.limit
            raise await self._refusal(Code.MAX_QUEUE_POSITION, error, checkpoint, too_many) from error

    async def _refusal(self, code: Code, error: Exception, checkpoint: str | None, departures: int) -> ApiError:
        """429, until so many jobs that wait now have been started."""
        assert checkpoint is not None, "only a job that was made can be refused by the queue"
        load = (await self._estimates.reading(checkpoint)).load
        return ApiError(code, str(error), retry_after_s=retry_after_s(load.departure_s(departures)))

    async def _predicted(self, new: NewJob) -> NewJob:
        """The job with what its estimate would be, as a measure of the estimates."""
        load = (await self._estimates.reading(new.checkpoint)).load
        estimate = load.estimate(position=load.waiting, tokens_left=new.generation.sampling.max_tokens)
        return replace(new, predicted_s=estimate.uncorrected_s)

    async def _new_job(
        self,
        body: GenerateRequest,
        job_id: str,
        key: Idempotency | None,
        cancel_after_s: float | None,
        reply_to: str | None,
    ) -> NewJob:
        queued = body if isinstance(body, JobRequest) else None
        card = await self._checkpoints.choose(body.model, may_wait=queued is not None and queued.wait_for_worker)
        generation = Generation(prompt=body.prompt, sampling=body.sampling.with_seed())
        await self._check(card, generation)
        return NewJob(
            id=job_id,
            owner=ANYBODY,
            checkpoint=card.name,
            digest=card.digest,
            generation=generation,
            priority=DEFAULT_PRIORITY if queued is None else queued.priority,
            metadata={} if queued is None else queued.metadata,
            limits=TimeLimits(
                queue_timeout_ms=None if queued is None else _ms(queued.queue_timeout_s),
                run_timeout_ms=None if queued is None else _ms(queued.run_timeout_s),
                deadline_ms=_ms(sooner(cancel_after_s, None if queued is None else queued.deadline_s)),
            ),
            max_position=None if queued is None else queued.max_queue_position,
            idempotency=key,
            result_ttl_s=None if queued is None else queued.result_ttl_s,
            reply_to=reply_to,
        )

    async def _repeated(self, job: Job, job_id: str, key: Idempotency | None) -> NewJob:
        card = await self._checkpoints.choose(job.checkpoint)
        # It may be another checkpoint by now, under the same name.
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

    async def _check(self, card: Card, asked: Generation) -> None:
        if len(asked.prompt) > LONG_PROMPT:
            await asyncio.to_thread(check_against, card, asked)
        else:
            check_against(card, asked)


def check_against(card: Card, asked: Generation) -> None:
    """Raises ApiError for a request that the checkpoint cannot run.

    What only the tokenizer can tell, as the length of a prompt in BPE tokens, the worker checks before it decodes.
    """
    if asked.sampling.top_k is not None and asked.sampling.top_k > card.vocab_size:
        raise invalid(
            ("body", "top_k"),
            f"Input should be less than or equal to {card.vocab_size}",
            "less_than_equal",
            given=asked.sampling.top_k,
            ctx={"le": card.vocab_size},
        )
    unknown = card.tokenizer.unknown_characters(asked.prompt)
    if unknown and card.tokenizer.unknown == "refuse":
        raise ApiError(
            Code.INVALID_REQUEST,
            f"The vocabulary of {card.name} lacks {len(unknown)} of the prompt's characters.",
            errors=[_unknown_character(card, index, char) for index, char in unknown[:MAX_NAMED_CHARACTERS]],
        )
    tokens = card.tokenizer.prompt_tokens(asked.prompt)
    if tokens == 0:
        raise invalid(
            ("body", "prompt"),
            f"The vocabulary of {card.name} has none of the prompt's characters.",
            "unknown_character",
            given=asked.prompt,
        )
    if tokens is not None and tokens >= card.context:
        raise invalid(
            ("body", "prompt"),
            f"The prompt has {tokens} tokens; the context of {card.name} is {card.context}, and one must be left for "
            f"the answer. Shorten it to {card.context - 1} tokens or fewer.",
            Code.PROMPT_TOO_LONG.value,
            code=Code.PROMPT_TOO_LONG,
        )


def _ms(seconds: float | None) -> int | None:
    """A limit as the record has it: at least 1 ms."""
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
    """A character for people: itself where it can be seen, and its code point."""
    return f"{char!r} (U+{ord(char):04X})"
