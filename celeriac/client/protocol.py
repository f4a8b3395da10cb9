"""What a client says to the server, and when: requests, waits and retries, free of sockets and sleeps.

Each operation is a generator, a *flow*: it yields a `Call` and is sent the answer, or has the transport's exception
thrown into it; it yields a `Pause` and goes on when that is over; its return value is the operation's result. A flow
that streams also yields `Open` and is sent the head of the answer, `Read` and is sent bytes, and in between the events
that it makes of them. The two clients run the same flows, one with threads' means and one with asyncio's, and tests run
them with neither.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from celeriac.client import guide
from celeriac.client.answers import error_of, nonsense, read
from celeriac.client.backoff import Patience
from celeriac.client.errors import ApiError, NotFoundError, ServerUnreachableError
from celeriac.client.events import DoneEvent, ErrorEvent, Event, ReconnectEvent, TokenEvent, event_of
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job, WaitTimeoutError
from celeriac.client.sse import Message, SseParser
from celeriac.client.steps import SILENCE_S, Call, Flow, Open, Pause, Read, StreamFlow, is_stream
from celeriac.client.stream_position import OutOfStepError, Reading

#: How long the server may hold one request back, in seconds: less than the 30 or 60 at which proxies cut connections.
LONG_POLL_S = 20.0
#: A server that has never answered is given up after this many seconds: the URL is wrong, or nothing runs there.
FIRST_CONTACT_S = 2.0
#: A stream whose server still sends something after this many seconds has been opened with success: one that answers
#: and falls over at once does not get well by doing so again and again.
SETTLED_S = 5.0
#: Least time between two questions for the same job, in seconds, however quickly the server answers.
POLL_PAUSE_S = 0.1
#: Patience with each answer while an abandoned call is cancelled, in seconds.
ABANDON_S = 2.0
#: Jobs that the server lists at once.
PAGE = 100


class Protocol:
    """Makes flows. One for each client; flows of one client may run at the same time."""

    def __init__(
        self,
        base_url: str,
        *,
        retry_s: float,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry_s`: how long an operation is retried while the server is away or too busy, in seconds.

        `timeout`: how long a call without a timeout of its own waits for its text, in seconds; None: without a limit.
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self._retry_s = retry_s
        self._timeout = timeout
        self._clock = clock
        #: Whether the server has answered anything yet.
        self._met = False

    def health(self) -> Flow[Health]:
        """Asked once: whoever wants to know how the server is wants to know now."""
        answer = yield from self._exchange(Call(method="GET", path="/health"), retry_s=0.0)
        return read(answer, guide.health)

    def info(self, model: str | None) -> Flow[Info]:
        """`GET /info`."""
        params = {} if model is None else {"model": model}
        answer = yield from self._exchange(Call(method="GET", path="/info", params=params))
        return read(answer, guide.info)

    def generate_call(self, body: Mapping[str, Any], *, key: str | None, timeout: float | None) -> Call:
        """The request of `generate`, with a new Idempotency-Key unless `key` is given."""
        timeout_s = self._timeout if timeout is None else timeout
        held_s = LONG_POLL_S if timeout_s is None else min(LONG_POLL_S, timeout_s)
        headers = {**_key(key), "Prefer": f"wait={int(held_s)}"}
        return Call(method="POST", path="/generate", body=body, headers=headers, held_s=held_s, timeout_s=timeout_s)

    def generate(self, call: Call) -> Flow[GeneratedText]:
        """Send a `generate_call`. If the text does not come with its response, wait for its job."""
        deadline = self._deadline(call.timeout_s)
        try:
            answer = yield from self._exchange(call, deadline=deadline)
        except ApiError as error:
            if error.job_id is None:
                raise
            # The job was accepted, and is over or goes on; it can tell more than the answer.
            job = yield from self._wait(error.job_id, deadline)
        else:
            if answer.status_code != httpx.codes.ACCEPTED:
                return read(answer, guide.generated_text)
            job = yield from self._wait(read(answer, Job.from_answer).id, deadline)
        return job.result()

    def abandon(self, call: Call) -> Flow[None]:
        """Cancel the job of a call whose caller was interrupted: by its key the server finds it again."""
        again = replace(call, headers={**call.headers, "Prefer": "respond-async"}, held_s=0.0, answer_s=ABANDON_S)
        answer = yield from self._exchange(again, retry_s=0.0)
        if answer.status_code == httpx.codes.ACCEPTED:
            cancel = replace(_cancel_call(read(answer, Job.from_answer).id), answer_s=ABANDON_S)
            yield from self._exchange(cancel, retry_s=0.0)

    def generate_stream_call(self, body: Mapping[str, Any], *, key: str | None, timeout: float | None) -> Call:
        """The first request of `generate_stream`, with a new Idempotency-Key unless `key` is given."""
        return replace(self.submit_call(body, key=key), timeout_s=self._timeout if timeout is None else timeout)

    def generate_stream(self, call: Call) -> StreamFlow:
        """Send a `generate_stream_call`, and stream the events of its job."""
        job = yield from self.submit(call)
        yield from self.stream(job.id, starting_after=None, timeout=call.timeout_s)

    def submit_call(self, body: Mapping[str, Any], *, key: str | None) -> Call:
        """The request of `submit`, with a new Idempotency-Key unless `key` is given."""
        return Call(method="POST", path="/v1/jobs", body=body, headers=_key(key))

    def submit(self, call: Call) -> Flow[Job]:
        """Send a `submit_call`."""
        answer = yield from self._exchange(call, deadline=self._deadline(call.timeout_s))
        return read(answer, Job.from_answer)

    def job(self, job_id: str) -> Flow[Job]:
        """`GET /v1/jobs/{id}`."""
        return (yield from self._job(job_id))

    def wait(self, job_id: str, *, timeout: float | None) -> Flow[Job]:
        """Long polls until the job is over."""
        return (yield from self._wait(job_id, self._deadline(timeout)))

    def changed(self, job: Job) -> Flow[Job]:
        """A long poll until the job is another than `job`, which is not over."""
        while True:
            asked_at = self._clock()
            params = {"wait": LONG_POLL_S, "after_version": job.version}
            call = Call(method="GET", path=_path(job.id), params=params, held_s=LONG_POLL_S)
            newer = read((yield from self._exchange(call)), Job.from_answer)
            yield Pause(max(0.0, POLL_PAUSE_S - (self._clock() - asked_at)))
            if newer.version > job.version:
                return newer

    def cancel(self, job_id: str) -> Flow[Job]:
        """`POST /v1/jobs/{id}/cancel`."""
        answer = yield from self._exchange(_cancel_call(job_id))
        return read(answer, Job.from_answer)

    def retry(self, job_id: str) -> Flow[Job]:
        """`POST /v1/jobs/{id}/retry`."""
        answer = yield from self._exchange(Call(method="POST", path=f"{_path(job_id)}/retry", headers=_key(None)))
        return read(answer, Job.from_answer)

    def delete(self, job_id: str) -> Flow[None]:
        """`DELETE /v1/jobs/{id}`."""
        try:
            yield from self._exchange(Call(method="DELETE", path=_path(job_id)))
        except NotFoundError as error:
            # Deleted before, perhaps by this very request: the answer to its first try may have been lost.
            if error.status != httpx.codes.GONE:
                raise

    def jobs(self, *, status: str | None, limit: int) -> Flow[list[Job]]:
        """The newest jobs, page by page."""
        jobs: list[Job] = []
        more: dict[str, str | int | float] = {} if status is None else {"status": status}
        while len(jobs) < limit:
            params = {**more, "limit": min(PAGE, limit - len(jobs))}
            answer = yield from self._exchange(Call(method="GET", path="/v1/jobs", params=params))
            jobs += read(answer, lambda body: [Job.from_answer(raw) for raw in body["data"]])
            cursor: str | None = read(answer, lambda body: body["next_cursor"])
            if cursor is None:
                break
            more["cursor"] = cursor
        return jobs

    def stream(self, job_id: str, *, starting_after: int | str | None, timeout: float | None = None) -> StreamFlow:
        """The events of a job until it is over, over as many connections as that takes.

        `timeout`: how long each piece of text may take. Raises WaitTimeoutError, and NotFoundError where the job is
        deleted. ValueError where `starting_after` is no place in a stream.
        """
        reading = Reading(starting_after)
        patience = Patience(self._clock)
        deadline = self._deadline(timeout)
        asked_s = 0.0
        while True:
            failure: ApiError | ServerUnreachableError
            cause: Exception | None = None
            parser = SseParser()
            try:
                answer = yield Open(_stream_call(job_id, reading, timeout))
                assert isinstance(answer, httpx.Response)
                self._met = True
                if answer.status_code == httpx.codes.NO_CONTENT:
                    return
                if not is_stream(answer):
                    raise error_of(answer)
                opened_at = self._clock()
                while chunk := (yield Read()):
                    assert isinstance(chunk, bytes)
                    for event in _fresh_events(parser.feed(chunk), reading, answer):
                        yield event
                        if isinstance(event, DoneEvent):
                            return
                        if isinstance(event, TokenEvent):
                            deadline = self._deadline(timeout)
                        patience.renew()
                    now = self._clock()
                    if now >= deadline:
                        break
                    if now >= opened_at + SETTLED_S:
                        patience.renew()
                # The API restarts; or a proxy that cuts connections does it in good order.
                failure = ServerUnreachableError(f"{self.base_url}: the stream ended before the job did")
            except httpx.RequestError as error:
                failure, cause = _unreachable(self.base_url, error), error
            except OutOfStepError as error:
                failure, cause = ServerUnreachableError(f"{self.base_url}: {error}"), error
            except ApiError as error:
                failure = error
            if self._clock() >= deadline:
                raise _wait_is_over((yield from self._job(job_id, deadline)))
            if parser.retry_ms is not None:
                asked_s = parser.retry_ms / 1000
            pause_s = self._pause_s(patience, failure, longest_s=self._retry_s, asked_s=asked_s)
            if pause_s is None or self._clock() + pause_s > deadline:
                raise failure from cause
            yield ReconnectEvent(reason=str(failure), pause_s=pause_s)
            yield Pause(pause_s)

    def _job(self, job_id: str, deadline: float = math.inf) -> Flow[Job]:
        """The job as it is now."""
        answer = yield from self._exchange(Call(method="GET", path=_path(job_id)), deadline=deadline)
        return read(answer, Job.from_answer)

    def _wait(self, job_id: str, deadline: float) -> Flow[Job]:
        """The job when it is over. Raises WaitTimeoutError."""
        while True:
            asked_at = self._clock()
            held_s = max(0.0, min(LONG_POLL_S, deadline - asked_at))
            call = Call(method="GET", path=_path(job_id), params={"wait": round(held_s, 3)}, held_s=held_s)
            job = read((yield from self._exchange(call)), Job.from_answer)
            if job.done:
                return job
            now = self._clock()
            if now >= deadline:
                raise _wait_is_over(job)
            # A server that shuts down, or grants shorter waits, answers early.
            yield Pause(max(0.0, POLL_PAUSE_S - (now - asked_at)))

    def _exchange(
        self, call: Call, *, retry_s: float | None = None, deadline: float = math.inf
    ) -> Flow[httpx.Response]:
        """The good answer to a request that is sent until there is one. Raises ApiError, ServerUnreachableError.

        `retry_s` counts from the first failure: a request that the server held back may be old by then.
        """
        longest_s = self._retry_s if retry_s is None else retry_s
        patience = Patience(self._clock, deadline=deadline)
        while True:
            failure: ApiError | ServerUnreachableError
            cause: Exception | None = None
            try:
                answer = yield call
            except httpx.RequestError as error:
                failure, cause = _unreachable(self.base_url, error), error
            else:
                assert answer is not None
                self._met = True
                if answer.is_success:
                    return answer
                failure = error_of(answer)
            pause_s = self._pause_s(patience, failure, longest_s=longest_s)
            if pause_s is None:
                raise failure from cause
            yield Pause(pause_s)

    def _pause_s(
        self, patience: Patience, failure: ApiError | ServerUnreachableError, *, longest_s: float, asked_s: float = 0.0
    ) -> float | None:
        """Until the next try, in seconds; None where there shall be none. `asked_s`: unless the failure says it."""
        if isinstance(failure, ServerUnreachableError):
            return patience.pause_s(longest_s if self._met else min(longest_s, FIRST_CONTACT_S), asked_s=asked_s)
        if not _passes(failure):
            return None
        return patience.pause_s(longest_s, asked_s=asked_s if failure.retry_after_s is None else failure.retry_after_s)

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout


def _passes(failure: ApiError) -> bool:
    """Whether the server, or a proxy that does not find it, can be expected to answer otherwise soon."""
    # Who says how long the queue may be wants to know at once that it is longer.
    may_retry = failure.may_retry and failure.code != "max_queue_position"
    return may_retry and (failure.retry_after_s is not None or failure.status == httpx.codes.BAD_GATEWAY)


def _key(key: str | None) -> dict[str, str]:
    """The header by which the server knows a repeated request: a string as RFC 8941 quotes it."""
    text = str(uuid.uuid4()) if key is None else key.replace("\\", "\\\\").replace('"', '\\"')
    return {"Idempotency-Key": f'"{text}"'}


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _cancel_call(job_id: str) -> Call:
    return Call(method="POST", path=f"{_path(job_id)}/cancel")


def _stream_call(job_id: str, reading: Reading, timeout: float | None) -> Call:
    return Call(
        method="GET",
        path=f"{_path(job_id)}/stream",
        params=reading.params(),
        headers={**reading.headers(), "Accept": "text/event-stream"},
        answer_s=SILENCE_S if timeout is None else min(SILENCE_S, timeout),
    )


def _fresh_events(messages: list[Message], reading: Reading, answer: httpx.Response) -> Iterator[Event]:
    """What is new in some messages. Raises OutOfStepError, and the ApiErrors with which a stream ends."""
    for message in messages:
        try:
            event = event_of(message)
        except (ValueError, KeyError, TypeError) as error:
            raise nonsense(answer, f"{message.event} {message.data}") from error
        if isinstance(event, ErrorEvent) and event.code in ("gone", "not_found"):
            raise NotFoundError(event.message, status=event.status, code=event.code)
        new = None if event is None else reading.fresh(event)
        if new is not None:
            yield new


def _wait_is_over(job: Job) -> WaitTimeoutError:
    goes_on = "" if job.done else " and goes on"
    return WaitTimeoutError(f"The time to wait is over; {job.id} is {job.status}{goes_on}.", job)


def _unreachable(base_url: str, error: httpx.RequestError) -> ServerUnreachableError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnreachableError(
            f"No server answers at {base_url}. Is it running (celeriac serve --checkpoint NAME), and is this its URL?"
        )
    reason = "it did not answer in time" if isinstance(error, httpx.TimeoutException) else "the connection was lost"
    return ServerUnreachableError(f"{base_url}: {reason} ({error or type(error).__name__})")
