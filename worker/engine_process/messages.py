"""The messages between the two processes of a worker, as plain data: all that both processes share.

The Celery side imports `SequenceRequest` and `Update` from here, so that this file shows all that crosses the pipe.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

from tasks.card import Card
from tasks.settings import Settings
from worker.checkpoints.folder import CheckpointFolder
from worker.engine.architecture.weight_form import Compute, WeightForm
from worker.engine.request import SequenceRequest
from worker.engine.update import Failure, Update

__all__ = [
    "OUT_OF_MEMORY_EXIT",
    "Abort",
    "AddRequest",
    "Failure",
    "FromEngine",
    "LoadFailed",
    "Loading",
    "Ready",
    "Report",
    "SequenceRequest",
    "Start",
    "ToEngine",
    "Update",
    "start_message",
]

#: Exit code of an engine process that ended because it could allocate no memory.
OUT_OF_MEMORY_EXIT = errno.ENOMEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """First message to the engine process: what to load, and how."""

    folder: CheckpointFolder
    slots: int
    kv_memory_mb: int
    prefill_chunk_tokens: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int
    softcap: float | None
    weights: WeightForm
    compute: Compute = "exact"
    #: Longest sequence in tokens; 0: that of the checkpoint, or what fits.
    context: int = 0
    prefix_cache: bool = True
    #: Whether an earlier engine has loaded the checkpoint. Files that are incomplete now are being replaced then.
    loaded_before: bool = False


def start_message(settings: Settings, folder: CheckpointFolder) -> Start:
    """The first message for a checkpoint with these settings."""
    return Start(
        folder=folder,
        slots=settings.slots,
        kv_memory_mb=settings.kv_memory_mb,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        device=settings.device,
        threads=settings.threads,
        softcap=settings.softcap,
        weights=settings.weights,
        compute=settings.compute,
        context=settings.context,
        prefix_cache=settings.prefix_cache == "on",
    )


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Decode this sequence."""

    request: SequenceRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop decoding a sequence before the next step. It is reported as cancelled; an unknown id is ignored."""

    sequence_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The checkpoint is in memory. Reports follow."""

    card: Card
    device: str
    #: Size of the KV cache in tokens.
    kv_tokens: int
    #: SHA-256 (hex) of the tokenizer's files that the engine read; empty if it has none.
    tokenizer_digest: str
    #: How long loading took, in seconds.
    load_s: float


@dataclass(frozen=True, slots=True)
class Loading:
    """The engine process still loads: how many bytes of the weights are in memory. Comes repeatedly before `Ready`."""

    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Last message from an engine process that cannot serve. The message is for people."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of one or more engine steps, for all rows together.

    Without updates it is an idle tick, or announces a change of `suspect`.
    """

    updates: tuple[Update, ...]
    #: Id of the sequence that runs alone in the next step; None if sequences run together. A change is reported
    #: before that step begins.
    suspect: str | None
    running: int
    waiting: int
    kv_tokens_free: int


ToEngine = Start | AddRequest | Abort
FromEngine = Loading | Ready | LoadFailed | Report
