"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

import httpx

from celeriac.client import bodies
from celeriac.client.defaults import DEFAULT_URL, LIMITS, RETRY_S, TIMEOUT_S
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job, id_of
from celeriac.client.protocol import Flow, Pause, Protocol
from celeriac.errors import CeleriacError

T = TypeVar("T")


class AsyncInferenceClient:
    """`InferenceClient` for asyncio. Safe to share between the tasks of one event loop."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | None = TIMEOUT_S,
        retry_s: float = RETRY_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout`: seconds that `generate` waits for its text; None: without a limit."""
        self._protocol = Protocol(base_url, retry_s=retry_s)
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            base_url=self._protocol.base_url, headers=headers, limits=LIMITS, transport=transport
        )

    @property
    def base_url(self) -> str:
        """Where the server is."""
        return self._protocol.base_url

    async def health(self) -> Health:
        """See `InferenceClient.health`."""
        return await self._run(self._protocol.health())

    async def info(self, model: str | None = None) -> Info:
        """See `InferenceClient.info`."""
        return await self._run(self._protocol.info(model))

    async def generate(
        self,
        prompt: str,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        stop_on_newline: bool = False,
        *,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        ignore_eos: bool = False,
        model: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as its twin
        idempotency_key: str | None = None,
    ) -> GeneratedText:
        """See `InferenceClient.generate`. Cancelling the task cancels the job."""
        body = bodies.generation(
            prompt,
            max_tokens,
            temperature,
            top_k,
            stop_on_newline,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            model=model,
        )
        limit = self._timeout if timeout is None else timeout
        call = self._protocol.generate_call(body, key=idempotency_key, timeout=limit)
        try:
            return await self._run(self._protocol.generate(call, timeout=limit))
        except asyncio.CancelledError:
            with suppress(CeleriacError):
                await self._run(self._protocol.abandon(call))
            raise

    async def submit(
        self,
        prompt: str,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        stop_on_newline: bool = False,
        *,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        ignore_eos: bool = False,
        model: str | None = None,
        priority: int = 5,
        metadata: Mapping[str, str] | None = None,
        result_ttl_s: int | None = None,
        wait_for_worker: bool = False,
        idempotency_key: str | None = None,
    ) -> Job:
        """See `InferenceClient.submit`."""
        body = bodies.generation(
            prompt,
            max_tokens,
            temperature,
            top_k,
            stop_on_newline,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            model=model,
        )
        body |= bodies.queueing(
            priority=priority, metadata=metadata, result_ttl_s=result_ttl_s, wait_for_worker=wait_for_worker
        )
        return await self._run(self._protocol.submit(body, key=idempotency_key))

    async def job(self, job_id: str) -> Job:
        """See `InferenceClient.job`."""
        return await self._run(self._protocol.job(job_id))

    async def wait(self, job: str | Job, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as its twin
        """See `InferenceClient.wait`."""
        return await self._run(self._protocol.wait(id_of(job), timeout=timeout))

    async def watch(self, job: str | Job) -> AsyncIterator[Job]:
        """See `InferenceClient.watch`."""
        current = await self.job(id_of(job))
        yield current
        while not current.done:
            current = await self._run(self._protocol.changed(current))
            yield current

    async def cancel(self, job: str | Job) -> Job:
        """See `InferenceClient.cancel`."""
        return await self._run(self._protocol.cancel(id_of(job)))

    async def jobs(self, status: str | None = None, *, limit: int = 20) -> list[Job]:
        """See `InferenceClient.jobs`."""
        return await self._run(self._protocol.jobs(status=status, limit=limit))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncInferenceClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        """See `InferenceClient._run`."""
        answer: httpx.Response | None = None
        lost: httpx.RequestError | None = None
        while True:
            try:
                step = flow.send(answer) if lost is None else flow.throw(lost)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = lost = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._http.request(**step.to_httpx())
            except httpx.RequestError as error:
                lost = error
