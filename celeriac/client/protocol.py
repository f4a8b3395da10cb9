"""What a client says to the server, and when: requests, waits and retries, free of sockets and sleeps.

Each operation is a generator, a *flow*: it yields a `Call` and is sent the answer, or has the transport's exception
thrown into it; it yields a `Pause` and goes on when that is over; its return value is the operation's result. The two
clients run the same flows, one with threads' means and one with asyncio's, and tests run them with neither.
"""

from __future__ import annotations

import json
import math
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from celeriac.client import guide
from celeriac.client.answers import error_of, read
from celeriac.client.errors import ApiError, ServerUnreachableError, WaitTimeoutError
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job

T = TypeVar("T")

#: How long the server may hold one request back, in seconds: less than the 30 or 60 at which proxies cut connections.
LONG_POLL_S = 20.0
#: How long connecting may take, and an answer beyond the time for which the server was asked to hold it.
CONNECT_S = 5.0
ANSWER_S = 30.0
#: A server that has never answered is given up after this many seconds: the URL is wrong, or nothing runs there.
FIRST_CONTACT_S = 2.0
#: Pauses between tries where the server does not say: the first, and the longest, in seconds.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
#: Least time between two questions for the same job, in seconds, however quickly the server answers.
POLL_PAUSE_S = 0.1
#: Patience with each answer while an abandoned call is cancelled, in seconds.
ABANDON_S = 2.0
#: Jobs that the server lists at once.
PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. Sending it twice does no harm: GETs change nothing, and POSTs carry an Idempotency-Key."""

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: How long the server was asked to hold the answer back, in seconds.
    held_s: float = 0.0
    #: How long to wait for the answer at most; None: ANSWER_S beyond the time for which it is held.
    answer_s: float | None = None

    def to_httpx(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.request`."""
        content, headers = None, dict(self.headers)
        if self.body is not None:
            # ASCII, so that even half a surrogate pair reaches the server, whose message is better than a codec's.
            content = json.dumps(self.body).encode()
            headers["Content-Type"] = "application/json"
        answer_s = self.held_s + ANSWER_S if self.answer_s is None else self.answer_s
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params),
            "content": content,
            "headers": headers,
            "timeout": httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s), pool=None),
        }


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, in seconds."""

    seconds: float


Flow: TypeAlias = Generator[Call | Pause, httpx.Response | None, T]


class Protocol:
    """Makes flows. One for each client; flows of one client may run at the same time."""

    def __init__(self, base_url: str, *, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`retry_s`: how long an operation keeps trying while the server is away or too busy."""
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self._retry_s = retry_s
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
        """The request of `generate`, with an Idempotency-Key of its own unless one is given."""
        held_s = LONG_POLL_S if timeout is None else min(LONG_POLL_S, timeout)
        headers = {**_key(key), "Prefer": f"wait={int(held_s)}"}
        return Call(method="POST", path="/generate", body=body, headers=headers, held_s=held_s)

    def generate(self, call: Call, *, timeout: float | None) -> Flow[GeneratedText]:
        """One request where the text comes soon; else the job behind it is waited for."""
        deadline = self._deadline(timeout)
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
        """Cancel the job of a `generate_call` whose caller was interrupted: by its key the server finds it again."""
        again = replace(call, headers={**call.headers, "Prefer": "respond-async"}, held_s=0.0, answer_s=ABANDON_S)
        answer = yield from self._exchange(again, retry_s=0.0)
        if answer.status_code == httpx.codes.ACCEPTED:
            cancel = replace(_cancel_call(read(answer, Job.from_answer).id), answer_s=ABANDON_S)
            yield from self._exchange(cancel, retry_s=0.0)

    def submit(self, body: Mapping[str, Any], *, key: str | None) -> Flow[Job]:
        """`POST /v1/jobs`."""
        answer = yield from self._exchange(Call(method="POST", path="/v1/jobs", body=body, headers=_key(key)))
        return read(answer, Job.from_answer)

    def job(self, job_id: str) -> Flow[Job]:
        """`GET /v1/jobs/{id}`."""
        answer = yield from self._exchange(Call(method="GET", path=_path(job_id)))
        return read(answer, Job.from_answer)

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
                raise WaitTimeoutError(f"The time to wait is over; {job.id} is {job.status} and goes on.", job)
            # A server that shuts down, or grants shorter waits, answers early.
            yield Pause(max(0.0, POLL_PAUSE_S - (now - asked_at)))

    def _exchange(
        self, call: Call, *, retry_s: float | None = None, deadline: float = math.inf
    ) -> Flow[httpx.Response]:
        """The good answer to a request that is sent until there is one. Raises ApiError, ServerUnreachableError.

        `retry_s` counts from the first failure: a request that the server held back may be old by then.
        """
        longest_s = self._retry_s if retry_s is None else retry_s
        failing_since: float | None = None
        for pause_s in _pauses():
            failure: ApiError | ServerUnreachableError
            cause: Exception | None = None
            try:
                answer = yield call
            except httpx.RequestError as error:
                failure, cause = _unreachable(self.base_url, error), error
                patience_s = longest_s if self._met else min(longest_s, FIRST_CONTACT_S)
            else:
                assert answer is not None
                self._met = True
                if answer.is_success:
                    return answer
                failure = error_of(answer)
                patience_s = longest_s if _passes(failure) else 0.0
                if failure.retry_after_s is not None:
                    # A little later than asked for, so that a crowd does not come back at one moment.
                    pause_s += failure.retry_after_s
            now = self._clock()
            failing_since = now if failing_since is None else failing_since
            if now + pause_s > min(failing_since + patience_s, deadline):
                raise failure from cause
            yield Pause(pause_s)
        raise AssertionError("the pauses never end")

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout


def _pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def _passes(failure: ApiError) -> bool:
    """Whether the server, or a proxy that does not find it, can be expected to answer otherwise soon."""
    return failure.may_retry and (failure.retry_after_s is not None or failure.status == httpx.codes.BAD_GATEWAY)


def _key(key: str | None) -> dict[str, str]:
    """The header by which the server knows a repeated request: a string as RFC 8941 quotes it."""
    text = str(uuid.uuid4()) if key is None else key.replace("\\", "\\\\").replace('"', '\\"')
    return {"Idempotency-Key": f'"{text}"'}


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _cancel_call(job_id: str) -> Call:
    return Call(method="POST", path=f"{_path(job_id)}/cancel")


def _unreachable(base_url: str, error: httpx.RequestError) -> ServerUnreachableError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnreachableError(
            f"No server answers at {base_url}. Is it running (celeriac serve --checkpoint NAME), and is this its URL?"
        )
    reason = "it did not answer in time" if isinstance(error, httpx.TimeoutException) else "the connection was lost"
    return ServerUnreachableError(f"{base_url}: {reason} ({error or type(error).__name__})")
