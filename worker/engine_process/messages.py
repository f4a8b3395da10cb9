"""The seam between a worker's two processes: every message that crosses the pipe, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.card import Card
from worker.checkpoints.folder import CheckpointFolder
from worker.engine.architecture.weight_form import WeightForm
from worker.engine.request import SequenceRequest
from worker.engine.update import Update


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


@dataclass(frozen=True, slots=True)
class Submit:
    """Decode this sequence."""

    request: SequenceRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop decoding a sequence before the next step; it is reported as cancelled. An unknown id is ignored."""

    sequence_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """First message from the engine process: the checkpoint is in memory."""

    card: Card
    device: str
    kv_tokens: int
    load_s: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """First and last message from an engine process that cannot serve: why, for people."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One engine step, for all of its rows together; without updates it is an idle tick, or tells `alone` in time."""

    updates: tuple[Update, ...]
    #: The sequence that runs alone in the next step, told before that begins. None: whoever is there runs.
    alone: str | None
    running: int
    waiting: int
    kv_tokens_free: int


ToEngine = Start | Submit | Abort
FromEngine = Ready | LoadFailed | Report
