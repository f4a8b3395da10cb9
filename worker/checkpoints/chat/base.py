"""The parts that all chat templates share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from tasks.chat import Message


class ChatError(Exception):
    """Messages cannot become a prompt. The message is for the sender, and says what to change."""


class ChatTemplate(Protocol):
    """Turns the messages of a conversation into a prompt that the assistant's answer continues."""

    @property
    def kind(self) -> Literal["nanochat", "jinja"]: ...

    @property
    def source(self) -> str:
        """The template in Jinja, for other programs."""
        ...

    @property
    def variables(self) -> Mapping[str, Any]:
        """What `source` uses beside the messages."""
        ...

    def render(self, messages: Sequence[Message], *, now: float | None = None) -> tuple[int, ...]:
        """The token ids of the whole prompt, BOS included. Names of special tokens in a message are ordinary text.

        `now`: the time that a template may write, in seconds since 1970; None: the current time. A job that is run
        again must pass the time of its submission, so that its prompt stays the same.

        Raises ChatError, and what `Tokenizer.encode` raises.
        """
        ...
