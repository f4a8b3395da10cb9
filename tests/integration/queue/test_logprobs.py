"""Log-probabilities in the token log: as many as tokens, whatever is sent twice or lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.generation import FinishReason
from tasks.logprobs import TokenLogprob, TokenLogprobs, pack, unpack
from tasks.store.job_writes import AppendTokens
from tasks.token_log import TokenLog
from tests.integration.conftest import QueueWorld, append, finish

pytestmark = pytest.mark.anyio


def records(text: str) -> bytes:
    """One record with an alternative for each character."""
    return pack(
        [TokenLogprobs(TokenLogprob(ord(one), -ord(one) / 8), (TokenLogprob(10, -0.5),)) for one in text],
        1,
    )


def with_logprobs(job_id: str, text: str, *, before: int = 0, prompt: bytes = b"") -> AppendTokens:
    """Tokens with their records."""
    return replace(append(job_id, text, before=before), logprobs=records(text), prompt_logprobs=prompt)


async def log_of(queue: QueueWorld, job_id: str, after: int = 0) -> TokenLog:
    return TokenLog(tuple(await queue.jobs.log(job_id, after)))


async def test_records_are_read_as_they_were_written_from_any_cursor(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.workers.flush([with_logprobs(job_id, "abc", prompt=records("xyz"))])
    queue.workers.flush([with_logprobs(job_id, "de", before=3)])
    for after in range(6):
        log = await log_of(queue, job_id, after)
        assert b"".join(log.token_logprobs) == records("abcde"[after:])
        assert len(log.token_logprobs) == len(log.token_ids)
    whole = TokenLog(tuple(await queue.jobs.log(job_id)))
    assert whole.prompt_logprobs == records("xyz")
    assert [one.chosen.token_id for one in unpack(b"".join(whole.first(4).token_logprobs), 1)] == [97, 98, 99, 100]


async def test_records_of_tokens_that_are_sent_again_are_skipped(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    for text in ("ab", "ab", "abcd"):
        queue.workers.flush([with_logprobs(job_id, text, prompt=records("p"))])
    log = await log_of(queue, job_id)
    assert b"".join(log.token_logprobs) == records("abcd")
    assert [entry.id for entry in log.entries] == ["0-1", "2-0", "4-0"]


async def test_the_end_has_the_record_of_the_stop_token(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    end = finish(job_id, "a")
    tokens = with_logprobs(job_id, "a", prompt=records("p"))
    for _ in range(2):
        queue.workers.flush([replace(end, tokens=tokens, stop_logprobs=records("s"), cached_tokens=3)])
    log = await log_of(queue, job_id)
    assert [entry.stop_logprobs for entry in log.entries] == [b"", b"", records("s")]
    job = await queue.job(job_id)
    assert (job.tokens, job.finish_reason, job.cached_tokens) == (1, FinishReason.STOP, 3)


async def test_an_end_without_tokens_keeps_the_prompts_records(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    end = finish(job_id)
    queue.workers.flush([replace(end, tokens=replace(end.tokens, prompt_logprobs=records("pq")))])
    assert (await log_of(queue, job_id)).prompt_logprobs == records("pq")


async def test_the_next_attempt_gets_the_records(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.workers.flush([with_logprobs(job_id, "ab", prompt=records("p"))])
    queue.workers.release(job_id, 1)
    claimed = queue.claim(job_id)
    assert b"".join(claimed.logprobs) == records("ab")
    assert claimed.has_prompt_logprobs
