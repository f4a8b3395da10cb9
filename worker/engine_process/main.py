"""The engine process: torch, one checkpoint and one decode loop. It ends when its pipe closes.

`worker.engine_process.client` starts it as `python -m worker.engine_process.main FD`, where FD is its end of a socket
pair.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

import structlog

from tasks.generation import FinishReason
from tasks.logs import flush_logs, setup_logging
from tasks.settings import settings
from worker.engine.engine import Engine
from worker.engine_process.loading import LoadError, load_when_complete
from worker.engine_process.messages import (
    OUT_OF_MEMORY_EXIT,
    Abort,
    AddRequest,
    Failure,
    LoadFailed,
    Loading,
    Ready,
    Report,
    SequenceRequest,
    Start,
    Update,
)
from worker.model_loader import Progress

log = structlog.get_logger(__name__)

#: How often an idle engine reports, in seconds, to show that it is alive.
IDLE_TICK_S = 0.5
#: Steps within this time, in seconds, are reported together. Both processes then pay for at most a hundred reports a
#: second, however small the model is. First tokens and ends of sequences are reported at once.
REPORT_EVERY_S = 0.01
#: Shortest time between two messages about the progress of loading, in seconds.
PROGRESS_EVERY_S = 0.25


def serve(pipe: Connection, engine: Engine) -> None:
    """The decode loop: receive messages, run one step, report. Raises EOFError when the other side closes the pipe."""
    reported_suspect: str | None = None
    reported_at = time.monotonic()

    def report(updates: tuple[Update, ...], suspect: str | None) -> None:
        nonlocal reported_suspect, reported_at
        reported_suspect, reported_at = suspect, time.monotonic()
        pipe.send(
            Report(
                updates=updates,
                suspect=suspect,
                running=engine.running,
                waiting=engine.waiting,
                kv_tokens_free=engine.free_kv_tokens,
            )
        )

    def before_run(suspect: str | None) -> None:
        # If this process crashes in the step, the other side must know already which sequence ran alone.
        if suspect != reported_suspect:
            report((), suspect)

    while True:
        refused: list[Update] = []
        while pipe.poll(0.0 if refused or engine.has_work else IDLE_TICK_S):
            message = pipe.recv()
            if isinstance(message, AddRequest):
                refused.extend(add_request(engine, message.request))
            elif isinstance(message, Abort):
                engine.abort(message.sequence_id)
            else:
                raise TypeError(f"unexpected message {type(message).__name__}")
        updates: list[Update] = []
        held = False
        if engine.has_work:
            step = engine.step(before_run, hold_until=reported_at + REPORT_EVERY_S)
            updates, held = step.updates, step.held
        if refused or not held:
            report((*refused, *updates), engine.suspect)


def add_request(engine: Engine, request: SequenceRequest) -> list[Update]:
    """Add a request to the engine. Returns the end of a request that can never run, and nothing otherwise.

    Such a request must end alone, without ending this process and all other sequences.
    """
    try:
        engine.add_request(request)
    except ValueError as error:
        log.warning("request_refused", sequence=request.id, reason=str(error))
        return [Update(request.id, (), FinishReason.ERROR, Failure(str(error)))]
    return []


def report_loading(pipe: Connection) -> Progress:
    """A function that reports the progress of loading to the other side, at most every `PROGRESS_EVERY_S`."""
    reported_at = 0.0

    def progress(loaded: int, total: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= PROGRESS_EVERY_S:
            reported_at = time.monotonic()
            pipe.send(Loading(loaded, total))

    return progress


def main() -> int:
    """Load the checkpoint, then decode until the pipe closes. Returns the exit code: 1 if loading failed, and
    `OUT_OF_MEMORY_EXIT` if there is no memory to continue."""
    setup_logging(settings())
    pipe = Connection(int(sys.argv[1]))
    try:
        start: Start = pipe.recv()
        began = time.monotonic()
        try:
            loaded = load_when_complete(start, report_loading(pipe))
        except LoadError as error:
            pipe.send(LoadFailed(str(error)))
            return 1
        for warning in loaded.warnings:
            log.warning("checkpoint", reason=warning)
        pipe.send(
            Ready(
                card=loaded.card,
                device=loaded.device.kind,
                kv_tokens=loaded.kv_tokens,
                tokenizer_digest=loaded.tokenizer_digest,
                load_s=time.monotonic() - began,
            )
        )
        serve(pipe, loaded.engine)
    except MemoryError:
        log.exception("out_of_memory")
        return OUT_OF_MEMORY_EXIT
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The worker has ended. An orderly exit of the interpreter and torch would hold the device's memory for seconds,
        # and the next worker may need it.
        flush_logs()
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
