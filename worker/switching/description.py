"""What the process that describes checkpoints sends: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.card import Card


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The device on which checkpoints are loaded."""

    #: `cpu`, `cuda` or `mps`.
    kind: str
    #: Its total memory.
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A checkpoint that can be loaded."""

    card: Card
    #: Memory that it takes when it is loaded: an estimate.
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a checkpoint cannot be loaded, for people."""

    reason: str
