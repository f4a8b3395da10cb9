"""The client's side of the HTTP protocol: requests, waits and retries, without sockets and sleeps.

Each operation is a generator, a *flow*. It yields a `Call` and is sent the response, or the transport's exception is
thrown into it. It yields a `Pause` and continues when the pause is over. Its return value is the operation's result.
A flow that streams also yields `Open`, for which it is sent the head of the response, and `Read`, for which it is sent
bytes; between them it yields the events that it has parsed. Both clients run the same flows, one with blocking calls
and one with asyncio. Tests run them without I/O.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from celeriac.client import guide
from celeriac.client.backoff import Backoff
from celeriac.client.bodies import needs_job_route
from celeriac.client.environment import checked_url
from celeriac.client.errors import ApiError, NotFoundError, ServerUnreachableError
from celeriac.client.events import DoneEvent, ErrorEvent, Event, ReconnectEvent, TokenEvent, event_of
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job, WaitTimeoutError
from celeriac.client.responses import error_of, parsed, unexpected_response
from celeriac.client.sse import Message, SseParser
from celeriac.client.steps import SILENCE_S, Call, Flow, Open, Pause, Read, StreamFlow, is_stream
from celeriac.client.stream_position import StreamGapError, StreamPosition

#: Without a configuration of its own, Python prints warnings to stderr.
log = logging.getLogger(__name__)

#: Routes that take a generation: the guide's, and that of jobs.
GENERATE_PATH = "/generate"
JOBS_PATH = "/v1/jobs"
#: How long the server may hold one request, in seconds. Proxies cut connections after 30 or 60 s.
LONG_POLL_S = 20.0
#: A server that has never responded is given up after this many seconds: the URL is probably wrong.
FIRST_CONTACT_S = 2.0
#: A stream that still brings bytes after this many seconds counts as progress. One that breaks earlier, without a new
#: event, does not: otherwise the client would reconnect forever to a server that accepts streams and breaks them.
SETTLED_S = 5.0
#: Shortest time between two polls of the same job, in seconds, also if the server responds early.
POLL_PAUSE_S = 0.1
#: Longest time to wait for each response while an interrupted call is cancelled, in seconds.
ABANDON_S = 2.0
#: Most jobs in one page of the server's list.
PAGE_SIZE = 100


class Protocol:
    """Makes the flows of one client. Several of them may run at the same time."""

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
        Raises ValueError if `base_url` is not a URL.
        """
        checked_url(base_url)
        self.base_url = base_url.rstrip("/")
        self._retry_s = retry_s
        self._timeout = timeout
        self._clock = clock
        #: Whether the server has responded at least once.
        self._has_responded = False

    def health(self) -> Flow[Health]:
        """`GET /health`, without retries: the caller wants to know the state now."""
        response = yield from self._exchange(Call(method="GET", path="/health"), retry_s=0.0)
        return parsed(response, guide.health)

    def info(self, model: str | None) -> Flow[Info]:
        """`GET /info`."""
        params = {} if model is None else {"model": model}
        response = yield from self._exchange(Call(method="GET", path="/info", params=params))
        return parsed(response, guide.info)

    def generate_call(self, body: Mapping[str, Any], *, key: str | None, timeout: float | None) -> Call:
        """The request of `generate`, with a new Idempotency-Key unless `key` is given.

        A text goes to the guide's route. Messages and token ids go to `/v1/jobs`, which waits in the same way.
        """
        timeout_s = self._timeout_s(timeout)
        path = JOBS_PATH if needs_job_route(body) else GENERATE_PATH
        held_s = LONG_POLL_S if timeout_s is None else min(LONG_POLL_S, timeout_s)
        headers = {**_key(key), "Prefer": f"wait={int(held_s)}"}
        return Call(method="POST", path=path, body=body, headers=headers, held_s=held_s, timeout_s=timeout_s)

    def generate(self, call: Call) -> Flow[GeneratedText]:
        """Send a `generate_call`. If the text does not come with its response, wait for its job."""
        deadline = self._deadline(call.timeout_s)
        try:
            response = yield from self._exchange(call, deadline=deadline)
        except ApiError as error:
            if error.job_id is None:
                raise
            # The server accepted the job. The job has more information than the error response.
            job = yield from self._wait(error.job_id, deadline)
        else:
            if response.status_code != httpx.codes.ACCEPTED and call.path == GENERATE_PATH:
                return parsed(response, guide.generated_text)
            job = parsed(response, Job.from_json)
            if not job.done:
                job = yield from self._wait(job.id, deadline)
        return job.result()

    def abandon(self, call: Call) -> Flow[None]:
        """Cancel the job of an interrupted call. The server finds the job by the call's Idempotency-Key."""
        again = replace(call, headers={**call.headers, "Prefer": "respond-async"}, held_s=0.0, response_s=ABANDON_S)
        response = yield from self._exchange(again, retry_s=0.0)
        if response.status_code == httpx.codes.ACCEPTED:
            cancel = replace(_cancel_call(parsed(response, Job.from_json).id), response_s=ABANDON_S)
            yield from self._exchange(cancel, retry_s=0.0)

    def generate_stream_call(self, body: Mapping[str, Any], *, key: str | None, timeout: float | None) -> Call:
        """The first request of `generate_stream`, with a new Idempotency-Key unless `key` is given."""
        return replace(self.submit_call(body, key=key), timeout_s=self._timeout_s(timeout))

    def generate_stream(self, call: Call) -> StreamFlow:
        """Send a `generate_stream_call`, and stream the events of its job."""
        job = yield from self.submit(call)
        yield from self.stream(job.id, starting_after=None, timeout=call.timeout_s)

    def submit_call(self, body: Mapping[str, Any], *, key: str | None) -> Call:
        """The request of `submit`, with a new Idempotency-Key unless `key` is given."""
        return Call(method="POST", path=JOBS_PATH, body=body, headers=_key(key))

    def submit(self, call: Call) -> Flow[Job]:
        """Send a `submit_call`."""
        response = yield from self._exchange(call, deadline=self._deadline(call.timeout_s))
        return parsed(response, Job.from_json)

    def job(self, job_id: str) -> Flow[Job]:
        """`GET /v1/jobs/{id}`."""
        return (yield from self._job(job_id))

    def wait(self, job_id: str, *, timeout: float | None) -> Flow[Job]:
        """Long polls until the job has ended."""
        return (yield from self._wait(job_id, self._deadline(timeout)))

    def changed(self, job: Job) -> Flow[Job]:
        """Long polls until the job has a newer version than `job`, which has not ended."""
        while True:
            sent_at = self._clock()
            params = {"wait": LONG_POLL_S, "after_version": job.version}
            call = Call(method="GET", path=_path(job.id), params=params, held_s=LONG_POLL_S)
            newer = parsed((yield from self._exchange(call)), Job.from_json)
            yield Pause(max(0.0, POLL_PAUSE_S - (self._clock() - sent_at)))
            if newer.version > job.version:
                return newer

    def cancel(self, job_id: str) -> Flow[Job]:
        """`POST /v1/jobs/{id}/cancel`."""
        response = yield from self._exchange(_cancel_call(job_id))
        return parsed(response, Job.from_json)

    def retry(self, job_id: str) -> Flow[Job]:
        """`POST /v1/jobs/{id}/retry`."""
        response = yield from self._exchange(Call(method="POST", path=f"{_path(job_id)}/retry", headers=_key(None)))
        return parsed(response, Job.from_json)

    def delete(self, job_id: str) -> Flow[None]:
        """`DELETE /v1/jobs/{id}`."""
        try:
            yield from self._exchange(Call(method="DELETE", path=_path(job_id)))
        except NotFoundError as error:
            # It was deleted before, perhaps by an earlier attempt of this request whose response was lost.
            if error.status != httpx.codes.GONE:
                raise

    def jobs(self, *, status: str | None, limit: int) -> Flow[list[Job]]:
        """The newest jobs, page by page."""
        jobs: list[Job] = []
        filters: dict[str, str | int | float] = {} if status is None else {"status": status}
        while len(jobs) < limit:
            params = {**filters, "limit": min(PAGE_SIZE, limit - len(jobs))}
            response = yield from self._exchange(Call(method="GET", path=JOBS_PATH, params=params))
            jobs += parsed(response, lambda body: [Job.from_json(raw) for raw in body["data"]])
            cursor: str | None = parsed(response, lambda body: body["next_cursor"])
            if cursor is None:
                break
            filters["cursor"] = cursor
        return jobs

    def stream(self, job_id: str, *, starting_after: int | str | None, timeout: float | None = None) -> StreamFlow:
        """The events of a job until it has ended, over as many connections as necessary.

        `timeout`: longest wait for each piece of text, in seconds. Raises WaitTimeoutError, NotFoundError if the job is
        deleted, and ValueError if `starting_after` is not a position in a stream.
        """
        position = StreamPosition(starting_after)
        backoff = Backoff(self._clock)
        deadline = self._deadline(timeout)
        requested_s = 0.0
        while True:
            failure: ApiError | ServerUnreachableError
            cause: Exception | None = None
            parser = SseParser()
            try:
                response = yield Open(_stream_call(job_id, position, timeout))
                assert isinstance(response, httpx.Response)
                self._has_responded = True
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                if not is_stream(response):
                    raise error_of(response)
                opened_at = self._clock()
                while chunk := (yield Read()):
                    assert isinstance(chunk, bytes)
                    for event in _new_events(parser.feed(chunk), position, response):
                        yield event
                        if isinstance(event, DoneEvent):
                            return
                        if isinstance(event, TokenEvent):
                            deadline = self._deadline(timeout)
                        backoff.reset()
                    now = self._clock()
                    if now >= deadline:
                        break
                    if now >= opened_at + SETTLED_S:
                        backoff.reset()
                # The API restarts, or a proxy has ended the response in the regular way.
                failure = ServerUnreachableError(f"{self.base_url}: the stream ended before the job did")
            except httpx.RequestError as error:
                failure, cause = _unreachable(self.base_url, error), error
            except StreamGapError as error:
                failure, cause = ServerUnreachableError(f"{self.base_url}: {error}"), error
            except ApiError as error:
                failure = error
            if self._clock() >= deadline:
                raise _wait_timeout((yield from self._job(job_id, deadline)))
            if parser.retry_ms is not None:
                requested_s = parser.retry_ms / 1000
            pause_s = self._pause_s(backoff, failure, limit_s=self._retry_s, requested_s=requested_s)
            if pause_s is None or self._clock() + pause_s > deadline:
                raise failure from cause
            yield ReconnectEvent(reason=str(failure), pause_s=pause_s)
            yield Pause(pause_s)

    def _job(self, job_id: str, deadline: float = math.inf) -> Flow[Job]:
        """The job as it is now."""
        response = yield from self._exchange(Call(method="GET", path=_path(job_id)), deadline=deadline)
        return parsed(response, Job.from_json)

    def _wait(self, job_id: str, deadline: float) -> Flow[Job]:
        """Long polls until the job has ended. Raises WaitTimeoutError after `deadline`."""
        while True:
            sent_at = self._clock()
            held_s = max(0.0, min(LONG_POLL_S, deadline - sent_at))
            call = Call(method="GET", path=_path(job_id), params={"wait": round(held_s, 3)}, held_s=held_s)
            job = parsed((yield from self._exchange(call)), Job.from_json)
            if job.done:
                return job
            now = self._clock()
            if now >= deadline:
                raise _wait_timeout(job)
            # The server responds early if it shuts down or limits waits.
            yield Pause(max(0.0, POLL_PAUSE_S - (now - sent_at)))

    def _exchange(
        self, call: Call, *, retry_s: float | None = None, deadline: float = math.inf
    ) -> Flow[httpx.Response]:
        """Send a request, with retries, until a response is successful. Raises ApiError or ServerUnreachableError.

        `retry_s` counts from the first failure, since the server may have held the request for long before it.
        """
        limit_s = self._retry_s if retry_s is None else retry_s
        backoff = Backoff(self._clock, deadline=deadline)
        told = False
        while True:
            failure: ApiError | ServerUnreachableError
            cause: Exception | None = None
            try:
                response = yield call
            except httpx.RequestError as error:
                failure, cause = _unreachable(self.base_url, error), error
            else:
                assert response is not None
                self._has_responded = True
                if response.is_success:
                    return response
                failure = error_of(response)
            pause_s = self._pause_s(backoff, failure, limit_s=limit_s)
            if pause_s is None:
                raise failure from cause
            if not told and self._has_responded:
                # A server that has never responded is given up so soon that the error is news enough.
                told = True
                longest_s = min(limit_s, deadline - self._clock())
                log.warning("%s. Trying again for up to %.0f s.", str(failure).rstrip("."), longest_s)
            yield Pause(pause_s)

    def _pause_s(
        self, backoff: Backoff, failure: ApiError | ServerUnreachableError, *, limit_s: float, requested_s: float = 0.0
    ) -> float | None:
        """Time until the next attempt, in seconds; None: give up.

        `requested_s`: the pause that the server asked for, unless the failure has a `Retry-After` of its own.
        """
        if isinstance(failure, ServerUnreachableError):
            if not self._has_responded:
                limit_s = min(limit_s, FIRST_CONTACT_S)
        elif not _is_temporary(failure):
            return None
        elif failure.retry_after_s is not None:
            requested_s = failure.retry_after_s
        return backoff.pause_s(limit_s, requested_s=requested_s)

    def _timeout_s(self, timeout: float | None) -> float | None:
        """The timeout of a call: its own, or else the client's."""
        return self._timeout if timeout is None else timeout

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout


def _is_temporary(failure: ApiError) -> bool:
    """Whether a retry may succeed soon: the server says when to retry, or a proxy does not reach the server."""
    # A caller that limits its queue position wants the error at once.
    may_retry = failure.may_retry and failure.code != "max_queue_position"
    return may_retry and (failure.retry_after_s is not None or failure.status == httpx.codes.BAD_GATEWAY)


def _key(key: str | None) -> dict[str, str]:
    """The Idempotency-Key header, by which the server recognizes a repeated request: a string quoted as in RFC 8941."""
    text = str(uuid.uuid4()) if key is None else key.replace("\\", "\\\\").replace('"', '\\"')
    return {"Idempotency-Key": f'"{text}"'}


def _path(job_id: str) -> str:
    # A command line that is not UTF-8 gives surrogates. No job has such an id, as the server then says.
    return f"{JOBS_PATH}/{quote(job_id, safe='', errors='surrogatepass')}"


def _cancel_call(job_id: str) -> Call:
    return Call(method="POST", path=f"{_path(job_id)}/cancel")


def _stream_call(job_id: str, position: StreamPosition, timeout: float | None) -> Call:
    return Call(
        method="GET",
        path=f"{_path(job_id)}/stream",
        params=position.params(),
        headers={**position.headers(), "Accept": "text/event-stream"},
        response_s=SILENCE_S if timeout is None else min(SILENCE_S, timeout),
    )


def _new_events(messages: list[Message], position: StreamPosition, response: httpx.Response) -> Iterator[Event]:
    """The new events in the messages. Raises StreamGapError, NotFoundError and UnexpectedAnswerError."""
    for message in messages:
        try:
            event = event_of(message)
        except (ValueError, KeyError, TypeError) as error:
            raise unexpected_response(response, f"{message.event} {message.data}") from error
        if isinstance(event, ErrorEvent) and event.code in ("gone", "not_found"):
            raise NotFoundError(event.message, status=event.status, code=event.code)
        new = None if event is None else position.advance(event)
        if new is not None:
            yield new


def _wait_timeout(job: Job) -> WaitTimeoutError:
    continues = "" if job.done else " and continues"
    return WaitTimeoutError(f"The time to wait is over; {job.id} is {job.status}{continues}.", job)


def _unreachable(base_url: str, error: httpx.RequestError) -> ServerUnreachableError:
    if _is_tls_error(error):
        return ServerUnreachableError(
            f"{base_url}: the TLS connection failed ({error}). Check the URL, and the certificates of SSL_CERT_FILE."
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnreachableError(
            f"No server responds at {base_url}. Start one (celeriac serve CHECKPOINT), or check the URL."
        )
    reason = "no response came in time" if isinstance(error, httpx.TimeoutException) else "the connection was lost"
    return ServerUnreachableError(f"{base_url}: {reason} ({error or type(error).__name__})")


def _is_tls_error(error: BaseException | None) -> bool:
    """Whether an error of httpx was caused by TLS."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
