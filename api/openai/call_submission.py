"""Submits the jobs of a call and waits for them: what all routes that generate share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from starlette.types import Receive

from api.http.disconnect import ClientGoneError, while_connected
from api.http.problems import ApiError
from api.http.request_headers import SubmitHeaders
from api.jobs.job_watch import JobWatch, WatchedJob
from api.jobs.responses import accepted_without_redis, job_headers, read_accepted, replayed_headers
from api.jobs.submission import JobOptions, SubmittedGroup, Submitter
from api.jobs.subscriptions import Subscriptions
from api.jobs.waiter import Waiter
from api.openai.call import Call
from api.openai.neutral_values import ignored_header
from tasks.job import Job, Status, TimeLimits
from tasks.job_id import group_ids, new_job_id
from tasks.store.job_store import JobStore
from tasks.store.new_job import Idempotency, Submitted

log = structlog.get_logger(__name__)

_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class SubmittedCall:
    """A call whose jobs were accepted."""

    call: Call
    group: SubmittedGroup
    #: The jobs after the wait; empty if there was none.
    jobs: Sequence[Job]
    #: The path prefix that a proxy adds.
    prefix: str
    #: Headers of any answer.
    headers: Mapping[str, str]

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """Turn RedisError into the ApiError that names the first job: a repeated call would be submitted again."""
        try:
            yield
        except RedisError as error:
            raise accepted_without_redis(self.group.job_ids[0], self.prefix) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSubmission:
    """Submits calls. One for all requests of this process."""

    store: JobStore
    submitter: Submitter
    subscriptions: Subscriptions
    watch: JobWatch
    waiter: Waiter

    async def submit(
        self,
        call: Call,
        headers: SubmitHeaders,
        prefix: str,
        *,
        key: Idempotency | None,
        wait_s: float | None,
        receive: Receive,
    ) -> SubmittedCall:
        """Submit the jobs of a call, or find those that `key` belongs to, and wait at most `wait_s` seconds for them.

        None for `wait_s`: do not wait. If one of the jobs does not succeed meanwhile, the others are cancelled. If the
        client disconnects meanwhile, all are cancelled, unless there is a key with which it can get the answer later.
        `receive` is the request's. Raises ApiError, RedisError and ClientGoneError.
        """
        first_id = new_job_id()
        waits = wait_s is not None
        with ExitStack() as stack:
            ids = group_ids(first_id, len(call.generations)) if waits else ()
            watched = [stack.enter_context(self.watch.watch_end(job_id)) for job_id in ids]
            group = await self.submitter.submit_group(
                _options(call, headers.cancel_after_s),
                call.generations,
                first_id=first_id,
                key=key,
                reply_to=self.subscriptions.reply_channel if waits else None,
            )
            jobs: Sequence[Job] = ()
            if wait_s is not None:
                try:
                    jobs = await while_connected(receive, self._wait(group, watched, wait_s, prefix))
                except ClientGoneError:
                    if key is None:
                        await self.cancel(group.job_ids)
                    raise
        all_headers = {
            **job_headers(group.job_ids[0], prefix),
            **replayed_headers(group.replayed),
            **ignored_header(call.ignored),
        }
        return SubmittedCall(call, group, jobs, prefix, all_headers)

    async def read(self, group: SubmittedGroup, job_id: str, prefix: str) -> Job:
        """A job of a group. Raises ApiError if it is gone, or if Redis is away."""
        return await read_accepted(self.store, Submitted(job_id, group.replayed), prefix)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel the jobs of a call. If Redis is away, they continue."""
        try:
            await asyncio.gather(*map(self.store.cancel, job_ids))
        except RedisError as error:
            log.warning("cancel_failed", job_id=job_ids[0], error=type(error).__name__)

    async def _wait(
        self, group: SubmittedGroup, watched: Sequence[WatchedJob], wait_s: float, prefix: str
    ) -> list[Job]:
        """The jobs when all are over, or when the time is."""
        cancelled = False

        async def cancel_all() -> None:
            # Once: each of the jobs that it cancels ends without success, too.
            nonlocal cancelled
            if not cancelled:
                cancelled = True
                await self.cancel(group.job_ids)

        async def wait(job_id: str, one: WatchedJob) -> Job | Exception:
            try:
                job = await self.waiter.wait_end(Submitted(job_id, group.replayed), one, timeout_s=wait_s)
                job = job or await self.read(group, job_id, prefix)
            except RedisError:
                return accepted_without_redis(group.job_ids[0], prefix)
            except ApiError as error:
                await cancel_all()
                return error
            if job.status.terminal and job.status is not Status.SUCCEEDED:
                await cancel_all()
            return job

        found = await asyncio.gather(*map(wait, group.job_ids, watched))
        for job in found:
            if isinstance(job, Exception):
                raise job
        return [job for job in found if isinstance(job, Job)]


def _options(call: Call, cancel_after_s: float | None) -> JobOptions:
    return JobOptions(
        model=call.model,
        wait_for_worker=call.wait_for_worker,
        unset_fields=call.unset_fields,
        priority=call.priority,
        metadata=call.metadata,
        limits=TimeLimits(deadline_ms=None if cancel_after_s is None else max(1, round(cancel_after_s * _MS_PER_S))),
        result_ttl_s=call.result_ttl_s,
    )
