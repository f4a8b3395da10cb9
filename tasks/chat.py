"""The messages of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Which roles there are, and in which order, is decided by the chat template of the checkpoint."""

    #: `system` (or `developer`, which means the same), `user` or `assistant`.
    role: str
    content: str
