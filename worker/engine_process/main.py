"""The engine process: torch, one checkpoint, one decode loop. It ends when its pipe closes.

Started by `worker.engine_process.client` as `python -m worker.engine_process.main FD`, where FD is its end of a socket
pair.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

import structlog

from tasks.generation import FinishReason
from tasks.logs import setup_logging
from tasks.settings import settings
from worker.checkpoints import meta
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.update import Update
from worker.engine_process.messages import Abort, LoadFailed, Ready, Report, Start, Submit
from worker.model_loader import LoadedModel, load_model

log = structlog.get_logger(__name__)

#: An idle engine reports this often, in seconds: its sign of life.
IDLE_TICK_S = 0.5
#: Steps that take less are reported together, in seconds: what a report costs both processes is then spent a hundred
#: times a second, however small the model. First tokens and ends do not wait for it.
REPORT_EVERY_S = 0.01


def serve(pipe: Connection, engine: Engine) -> None:
    """The decode loop: take what came in, do one step, report. Raises EOFError when the other side is gone."""
    told: str | None = None
    told_at = time.monotonic()

    def report(updates: tuple[Update, ...], alone: str | None) -> None:
        nonlocal told, told_at
        told, told_at = alone, time.monotonic()
        pipe.send(
            Report(
                updates=updates,
                alone=alone,
                running=engine.running,
                waiting=engine.waiting,
                kv_tokens_free=engine.free_kv_tokens,
            )
        )

    def before_run(alone: str | None) -> None:
        # Whoever hears of this process's death then knows whether one sequence is to blame.
        if alone != told:
            report((), alone)

    while True:
        refused: list[Update] = []
        while pipe.poll(0.0 if refused or engine.has_work else IDLE_TICK_S):
            message = pipe.recv()
            if isinstance(message, Submit):
                refused.extend(submit(engine, message.request))
            elif isinstance(message, Abort):
                engine.abort(message.sequence_id)
            else:
                raise TypeError(f"unexpected message {type(message).__name__}")
        updates: list[Update] = []
        held = False
        if engine.has_work:
            step = engine.step(before_run, hold_until=told_at + REPORT_EVERY_S)
            updates, held = step.updates, step.held
        if refused or not held:
            report((*refused, *updates), engine.suspect)


def submit(engine: Engine, request: SequenceRequest) -> list[Update]:
    """Hand a request to the engine; one that can never run ends here, and not the process with all the others."""
    try:
        engine.add_request(request)
    except ValueError as error:
        log.warning("refused", sequence=request.id, reason=str(error))
        return [Update(request.id, (), FinishReason.ERROR, str(error))]
    return []


def load(start: Start) -> LoadedModel:
    """Load what `start` names. Raises CheckpointError, ValueError, and what torch raises."""
    vocab_size = meta.read(start.folder.meta_file).sizes["vocab_size"]
    return load_model(
        start.folder,
        load_tokenizer(start.folder, vocab_size),
        device=start.device,
        threads=start.threads,
        softcap=start.softcap,
        weights=start.weights,
        slots=start.slots,
        kv_memory_mb=start.kv_memory_mb,
        prefill_chunk_tokens=start.prefill_chunk_tokens,
    )


def main() -> int:
    """Load, then decode until the pipe closes. Exit code 1 where loading failed."""
    setup_logging(settings())
    pipe = Connection(int(sys.argv[1]))
    try:
        start: Start = pipe.recv()
        began = time.monotonic()
        try:
            loaded = load(start)
        except (CheckpointError, OSError, ValueError, MemoryError, RuntimeError) as error:
            # RuntimeError is what torch raises for a missing or exhausted device.
            pipe.send(LoadFailed(str(error) or type(error).__name__))
            return 1
        for warning in loaded.warnings:
            log.warning("checkpoint", reason=warning)
        pipe.send(
            Ready(
                card=loaded.card,
                device=loaded.device.kind,
                kv_tokens=loaded.kv_tokens,
                load_s=time.monotonic() - began,
            )
        )
        serve(pipe, loaded.engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # Nobody is left to hear of anything: taking the interpreter and torch apart in good order would hold the
        # device's memory for seconds, which the next worker may need.
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
