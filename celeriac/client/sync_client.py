"""The blocking client, for scripts, notebooks and threads."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
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


class InferenceClient:
    """A client of one server. Threads may share it. Close it, or use it in a `with` statement.

    A forked child may use the client of its parent: it opens connections of its own.

    Every operation raises ServerUnreachableError, or ApiError with the server's own message (see
    `celeriac.client.errors`). Temporary failures are retried for `retry_s` seconds: a lost connection, and a full queue
    or a missing worker if the server says when to retry. A retry never creates a second job, because each submission
    carries an Idempotency-Key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
        retry_s: float = RETRY_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`base_url`: URL of the server; None: that of CELERIAC_URL, or else http://127.0.0.1:8000.

        `timeout`: how long `generate` waits for its text, in seconds; None: without a limit.
        `retry_s`: how long an operation is retried, in seconds; 0: not at all. `headers`: sent with every request.
        `transport`: an httpx transport, for tests and unusual networks; a forked child uses the same object. Raises
        ConfigurationError if a variable of the environment, such as HTTPS_PROXY, cannot be used for this URL.
        """
        self._protocol = Protocol(server_url(base_url), retry_s=retry_s, timeout=timeout)
        url = self._protocol.base_url
        # A transport of the caller has its own proxy and certificates.
        connection = connection_options(url) if transport is None else {"transport": transport}
        self._connections = PerProcess(lambda: httpx.Client(base_url=url, headers=headers, limits=LIMITS, **connection))

    @property
    def base_url(self) -> str:
        """The URL of the server, without a slash at the end."""
        return self._protocol.base_url

    def health(self) -> Health:
        """The guide's health check, without retries."""
        return self._run(self._protocol.health())

    def info(self, model: str | None = None) -> Info:
        """The guide's information about a checkpoint. `model` names it if the server serves several."""
        return self._run(self._protocol.info(model))

    def generate(
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
    ) -> GeneratedText:
        """Continue `prompt`, or answer `messages`, and wait for the text.

        Give exactly one of `prompt`, `messages` and `prompt_token_ids`. Without `prompt`, the `prompt` of the result is
        empty, and its `generated_text` is the answer alone.

        `timeout`: seconds to wait, instead of the client's `timeout`; after it WaitTimeoutError names the job, which
        continues. `idempotency_key`: your own key; the server accepts a job with it only once. `options`: see
        `celeriac.client.options.GenerationOptions`. Ctrl-C cancels the job, and so does SystemExit from the handler of
        a signal. Raises JobFailedError if the job fails.
        """
        body = bodies.generation("generate", prompt, max_tokens, temperature, top_k, stop_on_newline, options)
        call = self._protocol.generate_call(body, key=idempotency_key, timeout=timeout)
        try:
            return self._run(self._protocol.generate(call))
        except (KeyboardInterrupt, SystemExit):
            with suppress(CeleriacError):
                self._run(self._protocol.abandon(call))
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
    ) -> Generator[str, None, None]:
        """Continue `prompt`, or answer `messages`, and yield the text piece by piece, as it is decoded.

        The job is submitted when you ask for the first piece. Leaving the iterator early, by `break`, by its `close()`
        or by Ctrl-C, cancels the job. Raises JobFailedError if the job fails.

        `timeout`: seconds that each piece, also the first, may take, instead of the client's `timeout`; after it
        WaitTimeoutError names the job, which continues. `idempotency_key`: as for `generate`. `options`: see
        `celeriac.client.options.GenerationOptions`.
        """
        body = bodies.generation("generate_stream", prompt, max_tokens, temperature, top_k, stop_on_newline, options)
        return self._pieces(self._protocol.generate_stream_call(body, key=idempotency_key, timeout=timeout))

    def submit(
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
        """Queue a generation, and return its job without waiting.

        Give exactly one of `prompt`, `messages` and `prompt_token_ids`. `idempotency_key`: as for `generate`.
        `options`: see `celeriac.client.options.JobOptions`.
        """
        job_options = JOB_DEFAULTS | options
        body = bodies.generation("submit", prompt, max_tokens, temperature, top_k, stop_on_newline, job_options)
        return self._run(self._protocol.submit(self._protocol.submit_call(body, key=idempotency_key)))

    def job(self, job_id: str) -> Job:
        """The job in its current state, with its text so far. Raises NotFoundError."""
        return self._run(self._protocol.job(job_id))

    def wait(self, job: str | Job, timeout: float | None = None) -> Job:
        """Wait until the job has ended, with or without success, and return it.

        `.result()` of the returned job is the guide's dictionary. Raises WaitTimeoutError after `timeout` seconds; the
        job continues. None: without a limit.
        """
        return self._run(self._protocol.wait(id_of(job), timeout=timeout))

    def watch(self, job: str | Job) -> Iterator[Job]:
        """Yield the job in its current state, and again after each change, until it has ended."""
        current = self.job(id_of(job))
        yield current
        while not current.done:
            current = self._run(self._protocol.changed(current))
            yield current

    def stream(self, job: str | Job, starting_after: int | str | None = None) -> Generator[Event, None, None]:
        """Yield what happens to the job, as it happens: queue position, text, end. See `celeriac.client.events`.

        A connection that breaks is opened again, and the stream continues there: no text is repeated or lost. The
        DoneEvent is the last event. `starting_after`: skip what comes before, given as a number of tokens or the `id`
        of an event. Leaving the iterator does not affect the job. Raises NotFoundError if the job is deleted.
        """
        return self._stream(self._protocol.stream(id_of(job), starting_after=starting_after))

    def retry(self, job: str | Job) -> Job:
        """Resubmit a job that failed, expired or was cancelled, and return the new job.

        Raises ApiError with code `not_retryable` if the job is in another status.
        """
        return self._run(self._protocol.retry(id_of(job)))

    def delete(self, job: str | Job) -> None:
        """Delete a job with its prompt and its text; stop it if it has not ended. Deleting it twice is not an error."""
        self._run(self._protocol.delete(id_of(job)))

    def cancel(self, job: str | Job) -> Job:
        """Stop a job, and return it with its text so far. A job that has ended stays unchanged.

        A running job ends shortly after this call returns.
        """
        return self._run(self._protocol.cancel(id_of(job)))

    def jobs(self, status: str | None = None, *, limit: int = 20) -> list[Job]:
        """The newest jobs, newest first; only those in `status` if it is given."""
        return self._run(self._protocol.jobs(status=status, limit=limit))

    def close(self) -> None:
        """Close the connections."""
        self._connections.get().close()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        """Carry out the steps of a flow, and return its result."""
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
                time.sleep(step.seconds)
                continue
            try:
                response = self._connections.get().request(**step.to_httpx())
            except httpx.RequestError as error:
                failure = error

    def _pieces(self, call: Call) -> Generator[str, None, None]:
        """The pieces of text of a `generate_stream_call`. An interruption cancels the job."""
        pid = os.getpid()
        try:
            with closing(self._stream(self._protocol.generate_stream(call))) as events:
                for event in events:
                    if piece := piece_of(event):
                        yield piece
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            # A forked child has a copy of the iterator. The end of the copy does not end the job of the parent.
            if os.getpid() == pid:
                with suppress(CeleriacError):
                    self._run(self._protocol.abandon(call))
            raise

    def _stream(self, flow: StreamFlow) -> Generator[Event, None, None]:
        """Carry out the steps of a flow, and yield its events."""
        response: httpx.Response | bytes | None = None
        failure: httpx.RequestError | None = None
        with ExitStack() as connection:
            chunks: Iterator[bytes] = iter(())
            http: httpx.Client | None = None
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
                            time.sleep(step.seconds)
                        case Call():
                            response = self._connections.get().request(**step.to_httpx())
                        case Open():
                            connection.close()
                            http = self._connections.get()
                            response = http.send(http.build_request(**step.call.to_httpx()), stream=True)
                            connection.callback(response.close)
                            if is_stream(response):
                                chunks = response.iter_bytes()
                            else:
                                response.read()
                        case Read() if http is not None and not self._connections.owns(http):
                            raise httpx.ReadError("this process was forked from the one that opened the stream")
                        case Read():
                            response = next(chunks, b"")
                except httpx.RequestError as error:
                    failure = error
