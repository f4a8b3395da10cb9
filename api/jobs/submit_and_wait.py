"""The steps that `POST /generate` and `POST /v1/jobs` share: submit a job, and wait for its end if the caller wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import RedisError
from starlette.types import Receive

from api.http.disconnect import ClientGoneError, while_connected
from api.http.request_headers import Preferences, SubmitHeaders, parse_idempotency_key
from api.jobs.job_watch import JobWatch
from api.jobs.responses import (
    accepted_without_redis,
    job_headers,
    preference_headers,
    read_accepted,
    replayed_headers,
)
from api.jobs.submission import ANONYMOUS, Submitter, deadline_s, idempotency
from api.jobs.subscriptions import Subscriptions
from api.jobs.waiter import Waiter
from api.schemas.generation import GenerateRequest
from tasks.job import Job
from tasks.job_id import new_job_id
from tasks.store.job_store import JobStore
from tasks.store.new_job import Idempotency

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedCall:
    """A request that has submitted its job, and waited for it if the caller wanted."""

    job: Job
    #: Whether an earlier request with the same idempotency key created the job.
    replayed: bool
    #: Limit of the request's wait in seconds; None: it did not wait.
    wait_s: float | None
    preferences: Preferences
    #: The path prefix that a proxy adds.
    prefix: str

    @property
    def has_answer(self) -> bool:
        """Whether to answer with the finished job; if not, with 202.

        A request that did not want to wait gets 202 for a new job, even if the job is over already.
        """
        return self.job.status.terminal and (self.wait_s is not None or self.replayed)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of either answer."""
        return {
            **job_headers(self.job.id, self.prefix),
            **replayed_headers(self.replayed),
            **preference_headers(self.preferences, waited_s=self.wait_s, answered_async=not self.has_answer),
        }


def request_idempotency(
    sent: Mapping[str, Any], body: GenerateRequest, headers: SubmitHeaders, *, route: str
) -> Idempotency | None:
    """The idempotency key of a request, with the fingerprint of what it asks for; None without the header.

    `sent` is the JSON body as the caller sent it, and `body` the same validated. Raises ApiError for a malformed key.
    """
    request = {**sent, "deadline_s": deadline_s(body, headers.cancel_after_s)}
    return idempotency(parse_idempotency_key(headers.key_lines), owner=ANONYMOUS, route=route, request=request)


class SubmitAndWait:
    """Submits the jobs of requests and waits for them. One for all requests of this process."""

    def __init__(
        self, store: JobStore, submitter: Submitter, subscriptions: Subscriptions, watch: JobWatch, waiter: Waiter
    ) -> None:
        self._store = store
        self._submitter = submitter
        self._subscriptions = subscriptions
        self._watch = watch
        self._waiter = waiter

    async def run(
        self,
        body: GenerateRequest,
        headers: SubmitHeaders,
        prefix: str,
        *,
        key: Idempotency | None,
        wait_s: float | None,
        receive: Receive,
        cancel_if_abandoned: bool = False,
    ) -> SubmittedCall:
        """Submit a job, or find the one that `key` belongs to, and wait at most `wait_s` seconds for its end.

        None for `wait_s`: do not wait. `receive` is the request's. If the client disconnects while it waits, this
        raises ClientGoneError; with `cancel_if_abandoned` it cancels the job first. Also raises ApiError and
        RedisError.
        """
        new_id = new_job_id()
        job: Job | None = None
        with self._watch.watch_end(new_id) as watched:
            submitted = await self._submitter.submit(
                body,
                job_id=new_id,
                key=key,
                cancel_after_s=headers.cancel_after_s,
                reply_to=None if wait_s is None else self._subscriptions.reply_channel,
            )
            if wait_s is not None:
                try:
                    waiting = self._waiter.wait_end(submitted, watched, timeout_s=wait_s)
                    job = await while_connected(receive, waiting)
                except ClientGoneError:
                    if cancel_if_abandoned:
                        await self.cancel_abandoned(submitted.job_id)
                    raise
                except RedisError as error:
                    raise accepted_without_redis(submitted.job_id, prefix) from error
        if job is None:
            job = await read_accepted(self._store, submitted, prefix)
        return SubmittedCall(
            job=job, replayed=submitted.replayed, wait_s=wait_s, preferences=headers.preferences, prefix=prefix
        )

    async def cancel_abandoned(self, job_id: str) -> None:
        """Cancel a job whose client has disconnected. If Redis is away, the job continues."""
        try:
            await self._store.cancel(job_id)
        except RedisError as error:
            log.warning("cancel_failed", job_id=job_id, error=type(error).__name__)
