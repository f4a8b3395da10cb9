"""From a validated body to a job in the queue: the one way in, for every route that generates."""

from __future__ import annotations

import asyncio
import secrets

from api.checkpoints import Checkpoints
from api.problems import RETRY_SOON_S, ApiError, Code, FieldError, invalid
from api.schemas import GenerateRequest, JobRequest
from tasks.card import Card
from tasks.errors import IdempotencyMismatchError, QueueFullError
from tasks.generation import SEED_BITS, Generation
from tasks.job_store import Idempotency, JobStore, NewJob, Submitted

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

    def __init__(self, store: JobStore, checkpoints: Checkpoints) -> None:
        self._store = store
        self._checkpoints = checkpoints

    async def submit(self, body: GenerateRequest, *, job_id: str, key: Idempotency | None) -> Submitted:
        """Queue the request under `job_id`, or find the job that its idempotency key belongs to.

        Raises ApiError for whatever is wrong with it, and RedisError.
        """
        try:
            # A repeated request finds its job even if it could not be accepted now.
            if key is not None and (known := await self._store.find(key)) is not None:
                return Submitted(known, replayed=True)
            return await self._store.submit(await self._new_job(body, job_id, key))
        except IdempotencyMismatchError as error:
            raise ApiError(
                Code.IDEMPOTENCY_MISMATCH,
                str(error),
                errors=[FieldError(("header", "idempotency-key"), str(error), "idempotency_mismatch")],
            ) from error
        except QueueFullError as error:
            raise ApiError(Code.QUEUE_FULL, str(error), retry_after_s=RETRY_SOON_S) from error

    async def _new_job(self, body: GenerateRequest, job_id: str, key: Idempotency | None) -> NewJob:
        queued = body if isinstance(body, JobRequest) else None
        card = await self._checkpoints.choose(body.model, may_wait=queued is not None and queued.wait_for_worker)
        if len(body.prompt) > LONG_PROMPT:
            await asyncio.to_thread(check_against, card, body)
        else:
            check_against(card, body)
        return NewJob(
            id=job_id,
            owner=ANYBODY,
            checkpoint=card.name,
            digest=card.digest,
            generation=_generation(body),
            priority=DEFAULT_PRIORITY if queued is None else queued.priority,
            metadata={} if queued is None else queued.metadata,
            idempotency=key,
            result_ttl_s=None if queued is None else queued.result_ttl_s,
        )


def check_against(card: Card, body: GenerateRequest) -> None:
    """Raises ApiError for a request that the checkpoint cannot run.

    What only the tokenizer can tell, as the length of a prompt in BPE tokens, the worker checks before it decodes.
    """
    if body.top_k is not None and body.top_k > card.vocab_size:
        raise invalid(
            ("body", "top_k"),
            f"Input should be less than or equal to {card.vocab_size}",
            "less_than_equal",
            given=body.top_k,
            ctx={"le": card.vocab_size},
        )
    unknown = card.tokenizer.unknown_characters(body.prompt)
    if unknown and card.tokenizer.unknown == "refuse":
        raise ApiError(
            Code.INVALID_REQUEST,
            f"The vocabulary of {card.name} lacks {len(unknown)} of the prompt's characters.",
            errors=[_unknown_character(card, index, char) for index, char in unknown[:MAX_NAMED_CHARACTERS]],
        )
    tokens = card.tokenizer.prompt_tokens(body.prompt)
    if tokens == 0:
        raise invalid(
            ("body", "prompt"),
            f"The vocabulary of {card.name} has none of the prompt's characters.",
            "unknown_character",
            given=body.prompt,
        )
    if tokens is not None and tokens >= card.context:
        raise invalid(
            ("body", "prompt"),
            f"The prompt has {tokens} tokens; the context of {card.name} is {card.context}, and one must be left for "
            f"the answer. Shorten it to {card.context - 1} tokens or fewer.",
            Code.PROMPT_TOO_LONG.value,
            code=Code.PROMPT_TOO_LONG,
        )


def _generation(body: GenerateRequest) -> Generation:
    return Generation(
        prompt=body.prompt,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        seed=secrets.randbits(SEED_BITS) if body.seed is None else body.seed,
        top_k=body.top_k,
        top_p=body.top_p,
        stop_on_newline=body.stop_on_newline,
        stop=tuple(body.stop or ()),
        ignore_eos=body.ignore_eos,
    )


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
