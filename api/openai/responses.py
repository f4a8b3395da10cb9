"""Runs `/v1/responses`: creates responses, reads them, streams them, cancels and deletes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Response
from starlette.types import Receive

from api.http.problems import ApiError, Code, invalid, presentable
from api.http.request_headers import Preferences, SubmitHeaders
from api.http.sse import KEEP_ALIVE, Event, EventStream
from api.jobs.responses import job_headers, json_response, preference_headers, unsuccessful, wait_is_over
from api.openai.answer_stream import KEEP_ALIVE_S
from api.openai.call import Call
from api.openai.call_submission import CallSubmission, SubmittedCall
from api.openai.choice_reader import ChoiceReader, Piece
from api.openai.choice_readers import ChoiceReaders
from api.openai.group_watch import GroupWatch
from api.openai.headers import processing_headers
from api.openai.response_call import response_call
from api.openai.response_events import ResponseEvents
from api.openai.response_object import input_items, response_object
from api.openai.response_record import ResponseRecord, job_id_of
from api.openai.token_names import TokenNames
from api.schemas.openai.responses import InputItem, ModelResponse, ResponseEvent, ResponseRequest
from api.shutdown import Shutdown
from tasks.chat import Message
from tasks.job import Job, Status
from tasks.store.new_job import Idempotency


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponses:
    """The responses. One for all requests of this process. Each method raises ApiError and RedisError."""

    submission: CallSubmission
    readers: ChoiceReaders
    shutdown: Shutdown
    #: Longest wait for an answer, in seconds.
    max_wait_s: float

    async def create(
        self,
        body: ResponseRequest,
        headers: SubmitHeaders,
        prefix: str,
        *,
        key: Idempotency | None,
        receive: Receive,
    ) -> Response:
        """Submit the job of a response, and answer with the response, at once or when it is over, or with its stream.

        If the client disconnects before it can know the response's id, the job is cancelled, unless there is a key.
        """
        call = response_call(body, await self._history(body.previous_response_id))
        preferences = headers.preferences
        wait_s = None
        if not call.stream and not body.background:
            wait_s = preferences.granted_wait_s(default=self.max_wait_s, longest=self.max_wait_s)
        submitted = await self.submission.submit(call, headers, prefix, key=key, wait_s=wait_s, receive=receive)
        with submitted.accepted():
            return await self._created(body, submitted, preferences, wait_s, abandonable=key is None)

    async def _created(
        self,
        body: ResponseRequest,
        submitted: SubmittedCall,
        preferences: Preferences,
        wait_s: float | None,
        *,
        abandonable: bool,
    ) -> Response:
        """The answer to a request whose job was accepted. `abandonable`: see `_stream`."""
        group, prefix = submitted.group, submitted.prefix
        [job] = submitted.jobs or [await self.submission.read(group, group.job_ids[0], prefix)]
        if body.stream:
            # The first event has the id with which the response can be read later, if it is stored.
            abandonable = abandonable and body.store is False
            return await self._stream(job, prefix, headers=submitted.headers, abandonable=abandonable)
        if job.status.terminal and job.status is not Status.SUCCEEDED and not body.background:
            raise unsuccessful(job, prefix)
        if not (job.status.terminal or body.background or preferences.given):
            why = "This server is shutting down." if self.shutdown.begun else f"No answer within {wait_s:g} s."
            raise wait_is_over(job.id, prefix, why)
        more = preference_headers(preferences, waited_s=wait_s, answered_async=not job.status.terminal)
        shown = await self._object(job)
        return json_response(shown, 200, {**submitted.headers, **more, **processing_headers([job])})

    async def get(self, response: str) -> ModelResponse:
        """A response, with its text so far."""
        return await self._object(await self._job(response))

    async def stream(self, response: str, prefix: str, *, starting_after: int | None) -> Response:
        """The stream of a response, from its beginning, or after the event with the number `starting_after`."""
        return await self._stream(await self._job(response), prefix, starting_after=starting_after)

    async def cancel(self, response: str) -> ModelResponse:
        """Cancel a response that is not over, and return it."""
        job = await self._job(response)
        return await self._object(await self.submission.store.cancel(job.id) or job)

    async def delete(self, response: str) -> None:
        """Delete a response, and stop it if it is not over."""
        job = await self._job(response)
        await self.submission.store.delete(job.id)

    async def input_items(self, response: str) -> list[InputItem]:
        """The messages of the response's own input, in their order."""
        job = await self._job(response)
        return input_items(job, _record(job))

    async def _job(self, response: str) -> Job:
        job_id = job_id_of(response)
        job = None if job_id is None else await self.submission.store.get(job_id)
        if job is None or ResponseRecord.of(job) is None:
            raise ApiError(
                Code.NOT_FOUND, f"There is no response {presentable(response)}: it never existed, or it was deleted."
            )
        return job

    async def _history(self, previous: str | None) -> Sequence[Message]:
        """The conversation up to the response `previous`, without its instructions."""
        if previous is None:
            return ()
        try:
            job = await self._job(previous)
        except ApiError as error:
            raise invalid(
                ("body", "previous_response_id"), error.detail, "previous_response_not_found", given=previous
            ) from error
        if job.status is not Status.SUCCEEDED:
            raise invalid(
                ("body", "previous_response_id"),
                f"{presentable(previous)} is {job.status}: only a response that has ended well can be continued.",
                "previous_response_not_completed",
                given=previous,
            )
        messages = job.generation.messages or ()
        before = messages[1:] if _record(job).has_instructions else messages
        return (*before, Message("assistant", job.completion or ""))

    async def _object(self, job: Job) -> ModelResponse:
        [reader], names = await self._readers(job)
        pieces = [Piece(job.completion)] if job.completion else []
        if not job.status.terminal or job.generation.sampling.logprobs is not None:
            pieces = [*reader.read(await self.submission.store.log(job.id))]
        return response_object(job, _record(job), pieces, names)

    async def _readers(self, job: Job) -> tuple[list[ChoiceReader], TokenNames]:
        call = Call(
            model=job.checkpoint,
            generations=[job.generation],
            priority=job.priority,
            metadata={},
            wait_for_worker=True,
            stream=False,
            logprobs=job.generation.sampling.logprobs is not None,
        )
        return await self.readers.of(call, job)

    async def _stream(
        self,
        job: Job,
        prefix: str,
        *,
        headers: Mapping[str, str] | None = None,
        starting_after: int | None = None,
        abandonable: bool = False,
    ) -> Response:
        [reader], names = await self._readers(job)
        events = ResponseEvents(job, _record(job), reader, names)
        group = GroupWatch(self.submission.store, self.submission.watch, self.shutdown, [job.id], prefix)
        blocks = _blocks(events, group, -1 if starting_after is None else starting_after)
        cancel = partial(self.submission.cancel, [job.id])
        return EventStream(
            blocks,
            {**job_headers(job.id, prefix), **(headers or {})},
            opening=b"",
            on_disconnect=cancel if abandonable else None,
        )


async def _blocks(events: ResponseEvents, group: GroupWatch, after: int) -> AsyncGenerator[bytes]:
    """The stream in the wire format: the events with a number above `after`."""
    yield b"".join(_encoded(event) for event in events.opening() if event.sequence_number > after)
    async with group:
        try:
            ended = False
            while not ended:
                found = await group.next(KEEP_ALIVE_S)
                if found is None:
                    yield KEEP_ALIVE
                    continue
                yield b"".join(_encoded(event) for event in events.of(found.changes) if event.sequence_number > after)
                ended = found.changes.ended is not None
        except ApiError as error:
            yield _encoded(events.error(error))


def _encoded(event: ResponseEvent) -> bytes:
    # The members that this event has not are left out, those of the objects in it are all there.
    data = event.model_dump_json(include=event.model_fields_set)
    return Event(event.type, data, str(event.sequence_number)).encode()


def _record(job: Job) -> ResponseRecord:
    record = ResponseRecord.of(job)
    assert record is not None, "the job was found as that of a response"
    return record
