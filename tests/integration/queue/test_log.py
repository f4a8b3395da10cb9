"""The token log and the end of a job: no token twice and none missing, in spite of repeated calls."""

from __future__ import annotations

import random

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, JobError, Status
from tasks.store import keys
from tasks.store.job_writes import AppendTokens, FinishJob
from tasks.token_log import Entry
from tests.integration.conftest import QueueWorld, append, finish

pytestmark = pytest.mark.anyio


async def text_of(queue: QueueWorld, job_id: str, after: int = 0) -> str:
    return "".join(entry.text for entry in await queue.jobs.log(job_id, after))


async def test_tokens_are_read_as_they_were_written(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    pieces = ("\0", '"', "\\", "", "é😀", "\u2028")
    token_ids = (5, 0, 31, 2, 65535, 1)
    queue.workers.flush([AppendTokens(job_id=job_id, attempt=1, before=0, token_ids=token_ids, pieces=pieces)])
    assert await queue.jobs.log(job_id) == [Entry(after=6, k=0, token_ids=token_ids, pieces=pieces)]
    job = await queue.job(job_id)
    assert job.tokens == 6
    assert job.first_token_at is not None


async def test_tokens_that_are_sent_again_are_skipped(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    assert queue.append(job_id, "abc").length == 3
    version = (await queue.job(job_id)).version
    assert queue.append(job_id, "abc").length == 3
    assert queue.append(job_id, "ab").length == 3
    assert (await queue.job(job_id)).version == version
    assert queue.append(job_id, "bc😀é", before=1).length == 5
    assert [(entry.id, entry.token_ids, entry.text) for entry in await queue.jobs.log(job_id)] == [
        ("3-0", (97, 98, 99), "abc"),
        ("5-0", (0x1F600, 0xE9), "😀é"),
    ]


async def test_a_gap_is_reported_and_nothing_is_written(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "ab")
    reply = queue.append(job_id, "e", before=4)
    assert (reply.gap, reply.length, reply.fenced) == (True, 2, False)
    reply = queue.finish(job_id, "e", before=4)
    assert (reply.gap, reply.length) == (True, 2)
    job = await queue.job(job_id)
    assert (job.status, job.tokens) == (Status.RUNNING, 2)


async def test_random_resends_do_not_change_the_text(queue: QueueWorld) -> None:
    queue.register()
    draw = random.Random(11)
    text = "".join(draw.choice("0123456789é😀") for _ in range(200))
    job_id = await queue.running()
    length = 0
    while length < len(text):
        before = draw.randrange(max(0, length - 5), length + 1)
        until = min(len(text), before + draw.randrange(1, 12))
        length = queue.append(job_id, text[before:until], before=before).length
    assert await text_of(queue, job_id) == text
    for cursor in range(0, len(text), 7):
        entries = await queue.jobs.log(job_id, cursor)
        assert "".join(entry.text for entry in entries) == text[cursor:]
        assert tuple(token for entry in entries for token in entry.token_ids) == tuple(map(ord, text[cursor:]))


async def test_the_log_after_a_cursor_includes_entries_without_tokens(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "ab")
    queue.workers.release(job_id, 1)
    queue.claim(job_id)
    queue.append(job_id, "c", before=2, attempt=2)
    assert [entry.id for entry in await queue.jobs.log(job_id, 2)] == ["2-1", "3-0"]
    assert [entry.id for entry in await queue.jobs.log(job_id, 2, 1)] == ["3-0"]
    assert await queue.jobs.log(job_id, 3) == []


async def test_one_flush_of_many_jobs_has_a_reply_for_each(queue: QueueWorld) -> None:
    queue.register(slots=8)
    jobs = [await queue.running() for _ in range(4)]
    await queue.jobs.cancel(jobs[2])
    batch: list[AppendTokens | FinishJob] = [
        append(jobs[0], "a"),
        append(jobs[1], "b", before=3),
        append(jobs[2], "c"),
        finish(jobs[3], "d", attempt=9),
    ]
    replies = queue.workers.flush(batch)
    assert [(reply.fenced, reply.gap, reply.length, reply.cancel_requested) for reply in replies] == [
        (False, False, 1, False),
        (False, True, 0, False),
        (False, False, 1, True),
        (True, False, 0, False),
    ]


async def test_a_flush_loads_the_scripts_again_after_redis_lost_them(queue: QueueWorld) -> None:
    queue.register(slots=8)
    jobs = [await queue.running() for _ in range(3)]
    queue.redis.script_flush()
    queue.workers.flush([append(jobs[0], "a"), finish(jobs[1], "b"), append(jobs[2], "c")])
    assert [await text_of(queue, job_id) for job_id in jobs] == ["a", "b", "c"]


async def test_a_finished_job(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    assert queue.finish(job_id, "9\n", before=2, completion="579\n", finish_reason=FinishReason.NEWLINE).length == 4
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion) == (Status.SUCCEEDED, FinishReason.NEWLINE, "579\n")
    assert (job.tokens, job.error, job.cancellation) == (4, None, None)
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + 1000 * queue.settings.result_ttl_s
    assert await text_of(queue, job_id) == "579\n"


async def test_a_tail_without_a_token_ends_the_log(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.finish(job_id, "ab", tail="<e")
    assert [(entry.id, entry.token_ids, entry.text) for entry in await queue.jobs.log(job_id)] == [
        ("2-0", (97, 98), "ab"),
        ("2-1", (), "<e"),
    ]
    assert (await queue.job(job_id)).tokens == 2


async def test_a_job_without_a_token_may_have_a_tail(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.finish(job_id, tail="\ufffd")
    assert [(entry.id, entry.text) for entry in await queue.jobs.log(job_id)] == [("0-1", "\ufffd")]


async def test_a_finish_sent_again_after_a_lost_reply_changes_nothing(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    first = queue.finish(job_id, "ab", tail="c")
    job = await queue.job(job_id)
    again = queue.finish(job_id, "ab", tail="c")
    assert (again.fenced, again.gap, again.length) == (first.fenced, first.gap, first.length) == (False, False, 2)
    assert await queue.job(job_id) == job
    assert await text_of(queue, job_id) == "abc"


async def test_a_terminal_state_never_changes(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.finish(job_id, "ab")
    job = await queue.job(job_id)
    assert queue.finish(job_id, "abc", status=Status.FAILED, finish_reason=FinishReason.ERROR).fenced
    assert queue.append(job_id, "c", before=2).fenced
    assert not queue.workers.release(job_id, 1, count_loss=True)
    await queue.jobs.cancel(job_id)
    assert await queue.job(job_id) == job


async def test_a_failed_job_keeps_its_text_and_its_error(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    error = JobError(ErrorCode.INTERNAL, 'It "broke" — é.', retryable=True)
    queue.finish(job_id, before=2, completion="57", status=Status.FAILED, finish_reason=FinishReason.ERROR, error=error)
    job = await queue.job(job_id)
    assert (job.status, job.error, job.completion) == (Status.FAILED, error, "57")
    assert [found.id for found in (await queue.jobs.list(status=Status.FAILED)).jobs] == [job_id]


async def test_a_finished_job_leaves_the_queue(queue: QueueWorld) -> None:
    queue.register()
    queue.finish(await queue.running())
    assert not queue.redis.exists(keys.backlog("tiny"), keys.dispatched("tiny"), keys.running("tiny"))
