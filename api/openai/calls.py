"""Answers the calls of `/v1/completions` and `/v1/chat/completions`: when all jobs are over, or with a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Response
from starlette.types import Receive

from api.http.disconnect import ClientGoneError, while_connected
from api.http.request_headers import SubmitHeaders
from api.http.sse import EventStream
from api.jobs.queue_load import QueueLoads
from api.jobs.responses import JobResponses, json_response, preference_headers, unsuccessful, wait_is_over
from api.openai.answer_format import AnswerFormat, AnswerHead, ChoiceAnswer, stop_reason
from api.openai.answer_stream import AnswerStream
from api.openai.call import Call
from api.openai.call_submission import CallSubmission, SubmittedCall
from api.openai.choice_reader import ChoiceReader, Piece
from api.openai.choice_readers import ChoiceReaders
from api.openai.group_watch import GroupWatch
from api.openai.headers import processing_headers, queue_headers
from api.openai.usage import usage_of
from api.shutdown import Shutdown
from tasks.job import Job, Status
from tasks.store.new_job import Idempotency
from tasks.token_log import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiCalls:
    """Answers calls. One for all requests of this process."""

    submission: CallSubmission
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
        submitted = await self.submission.submit(call, headers, prefix, key=key, wait_s=wait_s, receive=receive)
        with submitted.accepted():
            if call.stream:
                return await self._stream(submitted, answers, receive, abandonable=key is None)
            return await self._whole(submitted, answers, headers, wait_s)

    async def _whole(
        self, submitted: SubmittedCall, answers: AnswerFormat, headers: SubmitHeaders, wait_s: float | None
    ) -> Response:
        """The answer of a call that asked for no stream, after a wait of at most `wait_s` seconds."""
        group, prefix, jobs, preferences = submitted.group, submitted.prefix, submitted.jobs, headers.preferences
        if wait_s is None:
            jobs = [await self.submission.read(group, job_id, prefix) for job_id in group.job_ids]
        over = all(job.status.terminal for job in jobs) and (wait_s is not None or group.replayed)
        more = preference_headers(preferences, waited_s=wait_s, answered_async=not over)
        if over:
            return await self._answer(submitted, answers, jobs, more)
        if preferences.given:
            return await self.responses.accepted(jobs[0], prefix, {**submitted.headers, **more})
        why = "This server is shutting down." if self.shutdown.begun else f"No answer within {wait_s:g} s."
        raise wait_is_over(jobs[0].id, prefix, why)

    async def _answer(
        self, submitted: SubmittedCall, answers: AnswerFormat, jobs: Sequence[Job], headers: Mapping[str, str]
    ) -> Response:
        """200 with the whole answer. Raises ApiError if a job did not succeed."""
        call = submitted.call
        failed = [job for job in jobs if job.status is not Status.SUCCEEDED]
        if failed:
            # Those without an error were cancelled because another one failed.
            raise unsuccessful(next((job for job in failed if job.error is not None), failed[0]), submitted.prefix)
        readers, names = await self.readers.of(call, jobs[0])
        logs = [await self.submission.store.log(job.id) if call.logprobs else () for job in jobs]

        def encode() -> Response:
            choices = [
                ChoiceAnswer(job, _pieces(call, job, reader, log), stop_reason(job, prompt_only=call.prompt_only))
                for job, reader, log in zip(jobs, readers, logs, strict=True)
            ]
            body = answers.answer(
                AnswerHead.of(answers.id_prefix, jobs[0]),
                choices,
                usage_of(jobs, prompt_only=call.prompt_only),
                names if call.logprobs else None,
            )
            return json_response(body, 200, {**submitted.headers, **headers, **processing_headers(jobs)})

        # Log-probabilities with alternatives are up to 43,000 objects for each choice, which take half a second.
        return await asyncio.to_thread(encode) if call.logprobs else encode()

    async def _stream(
        self, submitted: SubmittedCall, answers: AnswerFormat, receive: Receive, *, abandonable: bool
    ) -> Response:
        """The stream of the answer. An error within its first second has a status of its own.

        `abandonable`: cancel the jobs if the client disconnects.
        """
        call, group, prefix, submission = submitted.call, submitted.group, submitted.prefix, self.submission
        cancel = partial(submission.cancel, group.job_ids)
        first = await submission.read(group, group.job_ids[0], prefix)
        headers = {**submitted.headers}
        if not first.status.terminal:
            headers.update(queue_headers(first, await self.queue_loads.snapshot(first.checkpoint)))
        readers, names = await self.readers.of(call, first)
        stream = AnswerStream(
            call,
            answers,
            AnswerHead.of(answers.id_prefix, first),
            readers,
            names if call.logprobs else None,
            prefix=prefix,
            read_job=lambda choice: submission.store.get(group.job_ids[choice]),
            cancel_rest=cancel,
        )
        watch = GroupWatch(submission.store, submission.watch, self.shutdown, group.job_ids, prefix)
        blocks = stream.blocks(watch)
        try:
            opening = await while_connected(receive, _first(blocks))
        except ClientGoneError:
            if abandonable:
                await cancel()
            raise
        return EventStream(blocks, headers, opening=opening, on_disconnect=cancel if abandonable else None)


def _pieces(call: Call, job: Job, reader: ChoiceReader, log: Sequence[Entry]) -> list[Piece]:
    """The text of a finished job, with the log-probabilities from its log if they were asked for."""
    if call.logprobs:
        return [*reader.read(log), *reader.prompt()]
    return [*reader.prompt(), *([] if call.prompt_only else [Piece(job.completion or "")])]


async def _first(blocks: AsyncGenerator[bytes]) -> bytes:
    return await anext(blocks)
