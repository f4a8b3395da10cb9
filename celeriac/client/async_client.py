"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from types import TracebackType
from typing import TypeVar, Unpack

import httpx

from celeriac.client import bodies
from celeriac.client.defaults import LIMITS, RETRY_S, TIMEOUT_S
from celeriac.client.environment import connection_options, server_url
from celeriac.client.events import Event, piece_of
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job, id_of
from celeriac.client.options import JOB_DEFAULTS, GenerationOptions, JobOptions
from celeriac.client.per_process import PerProcess
from celeriac.client.protocol import Protocol
from celeriac.client.steps import Call, Flow, Open, Pause, Read, StreamFlow, is_stream
from celeriac.errors import CeleriacError

T = TypeVar("T")


class AsyncInferenceClient:
    """`InferenceClient` for asyncio. The tasks of one event loop may share it.

    A forked child may use it in an event loop of its own. An iterator of a stream stays with the event loop that
    began it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
        retry_s: float = RETRY_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """See `InferenceClient`."""
        self._protocol = Protocol(server_url(base_url), retry_s=retry_s, timeout=timeout)
        url = self._protocol.base_url
        # A transport of the caller has its own proxy and certificates.
        connection = connection_options(url) if transport is None else {"transport": transport}
        self._connections = PerProcess(
            lambda: httpx.AsyncClient(base_url=url, headers=headers, limits=LIMITS, **connection)
        )

    @property
    def base_url(self) -> str:
        """The URL of the server, without a slash at the end."""
        return self._protocol.base_url

    async def health(self) -> Health:
        """See `InferenceClient.health`."""
        return await self._run(self._protocol.health())

    async def info(self, model: str | None = None) -> Info:
        """See `InferenceClient.info`."""
        return await self._run(self._protocol.info(model))

    async def generate(
        self,
        prompt: str | None = None,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        stop_on_newline: bool = False,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in InferenceClient
        idempotency_key: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GeneratedText:
        """See `InferenceClient.generate`, and `celeriac.client.options.GenerationOptions` for `options`.

        Cancelling the task cancels the job.
        """
        body = bodies.generation("generate", prompt, max_tokens, temperature, top_k, stop_on_newline, options)
        call = self._protocol.generate_call(body, key=idempotency_key, timeout=timeout)
        try:
            return await self._run(self._protocol.generate(call))
        except asyncio.CancelledError:
            with suppress(CeleriacError):
                await self._run(self._protocol.abandon(call))
            raise

    def generate_stream(
        self,
        prompt: str | None = None,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        stop_on_newline: bool = False,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncGenerator[str, None]:
        """See `InferenceClient.generate_stream`, and `celeriac.client.options.GenerationOptions` for `options`.

        Cancelling the task cancels the job. After a `break` the iterator stays open until it is garbage-collected; use
        `contextlib.aclosing` to close it, and so cancel the job, at once.
        """
        body = bodies.generation("generate_stream", prompt, max_tokens, temperature, top_k, stop_on_newline, options)
        return self._pieces(self._protocol.generate_stream_call(body, key=idempotency_key, timeout=timeout))

    async def submit(
        self,
        prompt: str | None = None,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        stop_on_newline: bool = False,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """See `InferenceClient.submit`, and `celeriac.client.options.JobOptions` for `options`."""
        job_options = JOB_DEFAULTS | options
        body = bodies.generation("submit", prompt, max_tokens, temperature, top_k, stop_on_newline, job_options)
        return await self._run(self._protocol.submit(self._protocol.submit_call(body, key=idempotency_key)))

    async def job(self, job_id: str) -> Job:
        """See `InferenceClient.job`."""
        return await self._run(self._protocol.job(job_id))

    async def wait(self, job: str | Job, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as in InferenceClient
        """See `InferenceClient.wait`."""
        return await self._run(self._protocol.wait(id_of(job), timeout=timeout))

    async def watch(self, job: str | Job) -> AsyncIterator[Job]:
        """See `InferenceClient.watch`."""
        current = await self.job(id_of(job))
        yield current
        while not current.done:
            current = await self._run(self._protocol.changed(current))
            yield current

    def stream(self, job: str | Job, starting_after: int | str | None = None) -> AsyncGenerator[Event, None]:
        """See `InferenceClient.stream`."""
        return self._stream(self._protocol.stream(id_of(job), starting_after=starting_after))

    async def retry(self, job: str | Job) -> Job:
        """See `InferenceClient.retry`."""
        return await self._run(self._protocol.retry(id_of(job)))

    async def delete(self, job: str | Job) -> None:
        """See `InferenceClient.delete`."""
        await self._run(self._protocol.delete(id_of(job)))

    async def cancel(self, job: str | Job) -> Job:
        """See `InferenceClient.cancel`."""
        return await self._run(self._protocol.cancel(id_of(job)))

    async def jobs(self, status: str | None = None, *, limit: int = 20) -> list[Job]:
        """See `InferenceClient.jobs`."""
        return await self._run(self._protocol.jobs(status=status, limit=limit))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.get().aclose()

    async def __aenter__(self) -> AsyncInferenceClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        """See `InferenceClient._run`."""
        response: httpx.Response | None = None
        failure: httpx.RequestError | None = None
        while True:
            try:
                step = flow.send(response) if failure is None else flow.throw(failure)
            except StopIteration as end:
                result: T = end.value
                return result
            response = failure = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                response = await self._connections.get().request(**step.to_httpx())
            except httpx.RequestError as error:
                failure = error

    async def _pieces(self, call: Call) -> AsyncGenerator[str, None]:
        """See `InferenceClient._pieces`."""
        try:
            async with aclosing(self._stream(self._protocol.generate_stream(call))) as events:
                async for event in events:
                    if piece := piece_of(event):
                        yield piece
        except (GeneratorExit, asyncio.CancelledError):
            with suppress(CeleriacError):
                await self._run(self._protocol.abandon(call))
            raise

    async def _stream(self, flow: StreamFlow) -> AsyncGenerator[Event, None]:
        """See `InferenceClient._stream`."""
        response: httpx.Response | bytes | None = None
        failure: httpx.RequestError | None = None
        async with AsyncExitStack() as connection:
            chunks: AsyncIterator[bytes] | None = None
            while True:
                try:
                    step = flow.send(response) if failure is None else flow.throw(failure)
                except StopIteration:
                    return
                response = failure = None
                try:
                    match step:
                        case Event():
                            yield step
                        case Pause():
                            await asyncio.sleep(step.seconds)
                        case Call():
                            response = await self._connections.get().request(**step.to_httpx())
                        case Open():
                            await connection.aclose()
                            http = self._connections.get()
                            response = await http.send(http.build_request(**step.call.to_httpx()), stream=True)
                            connection.push_async_callback(response.aclose)
                            if is_stream(response):
                                chunks = response.aiter_bytes()
                            else:
                                await response.aread()
                        case Read():
                            assert chunks is not None
                            response = await anext(chunks, b"")
                except httpx.RequestError as error:
                    failure = error
