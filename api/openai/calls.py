"""Runs the calls of OpenAI's API: submits their jobs, and answers when all are over, or with a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import structlog
from fastapi import Response
from redis.exceptions import RedisError
from starlette.types import Receive

from api.http.disconnect import ClientGoneError, while_connected
from api.http.problems import ApiError
from api.http.request_headers import SubmitHeaders
from api.http.sse import EventStream
from api.jobs.job_watch import JobWatch, WatchedJob
from api.jobs.queue_load import QueueLoads
from api.jobs.responses import (
    JobResponses,
    accepted_without_redis,
    job_headers,
    json_response,
    preference_headers,
    read_accepted,
    replayed_headers,
    unsuccessful,
    wait_is_over,
)
from api.jobs.submission import JobOptions, SubmittedGroup, Submitter
from api.jobs.subscriptions import Subscriptions
from api.jobs.waiter import Waiter
from api.openai.answer_format import AnswerFormat, AnswerHead, ChoiceAnswer, stop_reason
from api.openai.answer_stream import AnswerStream
from api.openai.call import Call
from api.openai.choice_reader import ChoiceReader, Piece
from api.openai.choice_readers import ChoiceReaders
from api.openai.group_watch import GroupWatch
from api.openai.headers import processing_headers, queue_headers
from api.openai.neutral_values import ignored_header
from api.openai.usage import usage_of
from api.shutdown import Shutdown
from tasks.job import Job, Status, TimeLimits
from tasks.job_id import group_ids, new_job_id
from tasks.store.job_store import JobStore
from tasks.store.new_job import Idempotency, Submitted

log = structlog.get_logger(__name__)

_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A call whose jobs were submitted."""

    call: Call
    answers: AnswerFormat
    group: SubmittedGroup
    #: The path prefix that a proxy adds.
    prefix: str
    #: Headers of any answer.
    headers: Mapping[str, str]
    #: Whether nobody can fetch the answer once the client of this call has gone.
    abandonable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiCalls:
    """Runs calls. One for all requests of this process."""

    store: JobStore
    submitter: Submitter
    subscriptions: Subscriptions
    watch: JobWatch
    waiter: Waiter
    shutdown: Shutdown
    queue_loads: QueueLoads
    responses: JobResponses
    readers: ChoiceReaders
    #: Longest wait for an answer that is no stream, in seconds.
    max_wait_s: float

    async def respond(
        self,
        call: Call,
        answers: AnswerFormat,
        headers: SubmitHeaders,
        prefix: str,
        *,
        key: Idempotency | None,
        receive: Receive,
    ) -> Response:
        """Submit the jobs of a call, or find those that `key` belongs to, and answer.

        If the client disconnects before the end, the jobs are cancelled, unless there is a key with which it can get
        the answer later. `receive` is the request's. Raises ApiError, RedisError and ClientGoneError.
        """
        preferences = headers.preferences
        wait_s = None
        if not call.stream:
            wait_s = preferences.granted_wait_s(default=self.max_wait_s, longest=self.max_wait_s)
        first_id = new_job_id()
        with ExitStack() as stack:
            watched = [] if wait_s is None else self._watch_ends(stack, group_ids(first_id, len(call.generations)))
            group = await self.submitter.submit_group(
                _options(call, headers.cancel_after_s),
                call.generations,
                first_id=first_id,
                key=key,
                reply_to=None if wait_s is None else self.subscriptions.reply_channel,
            )
            all_headers = {
                **job_headers(group.job_ids[0], prefix),
                **replayed_headers(group.replayed),
                **ignored_header(call.ignored),
            }
            accepted = _Accepted(call, answers, group, prefix, all_headers, abandonable=key is None)
            if wait_s is not None:
                jobs = await self._wait(accepted, watched, wait_s, receive)
        if call.stream:
            return await self._stream(accepted, receive)
        if wait_s is None:
            jobs = [await self._read(accepted, job_id) for job_id in group.job_ids]
        over = all(job.status.terminal for job in jobs) and (wait_s is not None or group.replayed)
        more = preference_headers(preferences, waited_s=wait_s, answered_async=not over)
        if over:
            return await self._answer(accepted, jobs, more)
        if preferences.given:
            return await self.responses.accepted(jobs[0], prefix, {**all_headers, **more})
        why = "This server is shutting down." if self.shutdown.begun else f"No answer within {wait_s:g} s."
        raise wait_is_over(jobs[0].id, prefix, why)

    def _watch_ends(self, stack: ExitStack, job_ids: Sequence[str]) -> list[WatchedJob]:
        return [stack.enter_context(self.watch.watch_end(job_id)) for job_id in job_ids]

    async def _wait(
        self, accepted: _Accepted, watched: Sequence[WatchedJob], wait_s: float, receive: Receive
    ) -> list[Job]:
        """The jobs when all are over, or when the time is. If one does not succeed, the others are cancelled."""
        group = accepted.group

        async def wait(job_id: str, one: WatchedJob) -> Job | Exception:
            try:
                job = await self.waiter.wait_end(Submitted(job_id, group.replayed), one, timeout_s=wait_s)
                job = job or await self._read(accepted, job_id)
            except RedisError:
                return accepted_without_redis(group.job_ids[0], accepted.prefix)
            except ApiError as error:
                await self.cancel(group.job_ids)
                return error
            if job.status.terminal and job.status is not Status.SUCCEEDED:
                await self.cancel(group.job_ids)
            return job

        async def wait_for_all() -> list[Job | Exception]:
            return await asyncio.gather(*map(wait, group.job_ids, watched))

        try:
            found = await while_connected(receive, wait_for_all())
        except ClientGoneError:
            if accepted.abandonable:
                await self.cancel(group.job_ids)
            raise
        for job in found:
            if isinstance(job, Exception):
                raise job
        return [job for job in found if isinstance(job, Job)]

    async def _answer(self, accepted: _Accepted, jobs: Sequence[Job], headers: Mapping[str, str]) -> Response:
        """200 with the whole answer. Raises ApiError if a job did not succeed."""
        call, answers = accepted.call, accepted.answers
        failed = [job for job in jobs if job.status is not Status.SUCCEEDED]
        if failed:
            # Those without an error were cancelled because another one failed.
            raise unsuccessful(next((job for job in failed if job.error is not None), failed[0]), accepted.prefix)
        readers, names = await self.readers.of(call, jobs[0])
        choices = [
            ChoiceAnswer(
                job,
                await self._pieces(call, job, reader),
                stop_reason(job, prompt_only=call.prompt_only),
            )
            for job, reader in zip(jobs, readers, strict=True)
        ]
        body = answers.answer(
            AnswerHead.of(answers.id_prefix, jobs[0]),
            choices,
            usage_of(jobs, prompt_only=call.prompt_only),
            names if call.logprobs else None,
        )
        return json_response(body, 200, {**accepted.headers, **headers, **processing_headers(jobs)})

    async def _pieces(self, call: Call, job: Job, reader: ChoiceReader) -> list[Piece]:
        """The text of a finished job, with the log-probabilities from its log if they were asked for."""
        if call.logprobs:
            return [*reader.read(await self.store.log(job.id)), *reader.prompt()]
        return [*reader.prompt(), *([] if call.prompt_only else [Piece(job.completion or "")])]

    async def _stream(self, accepted: _Accepted, receive: Receive) -> Response:
        """The stream of the answer. An error within its first second has a status of its own."""
        call, answers, job_ids = accepted.call, accepted.answers, accepted.group.job_ids

        async def cancel() -> None:
            await self.cancel(job_ids)

        first = await self._read(accepted, job_ids[0])
        headers = {**accepted.headers}
        if not first.status.terminal:
            headers.update(queue_headers(first, await self.queue_loads.snapshot(first.checkpoint)))
        readers, names = await self.readers.of(call, first)
        stream = AnswerStream(
            call,
            answers,
            AnswerHead.of(answers.id_prefix, first),
            readers,
            names if call.logprobs else None,
            prefix=accepted.prefix,
            read_job=lambda choice: self.store.get(job_ids[choice]),
            cancel_rest=cancel,
        )
        blocks = stream.blocks(GroupWatch(self.store, self.watch, self.shutdown, job_ids, accepted.prefix))
        try:
            opening = await while_connected(receive, _first(blocks))
        except ClientGoneError:
            if accepted.abandonable:
                await cancel()
            raise
        return EventStream(blocks, headers, opening=opening, on_disconnect=cancel if accepted.abandonable else None)

    async def _read(self, accepted: _Accepted, job_id: str) -> Job:
        return await read_accepted(self.store, Submitted(job_id, accepted.group.replayed), accepted.prefix)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel the jobs of a call. If Redis is away, they continue."""
        try:
            await asyncio.gather(*map(self.store.cancel, job_ids))
        except RedisError as error:
            log.warning("cancel_failed", job_id=job_ids[0], error=type(error).__name__)


async def _first(blocks: AsyncGenerator[bytes]) -> bytes:
    return await anext(blocks)


def _options(call: Call, cancel_after_s: float | None) -> JobOptions:
    return JobOptions(
        model=call.model,
        wait_for_worker=call.wait_for_worker,
        priority=call.priority,
        metadata=call.metadata,
        limits=TimeLimits(deadline_ms=None if cancel_after_s is None else max(1, round(cancel_after_s * _MS_PER_S))),
    )
