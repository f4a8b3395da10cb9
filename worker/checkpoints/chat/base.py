"""The parts that all chat templates share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tasks.chat import Message


class ChatError(Exception):
    """Messages cannot become a prompt. The message is for the sender, and says what to change."""


class ChatTemplate(Protocol):
    """Turns the messages of a conversation into a prompt that the assistant's answer continues."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The token ids of the whole prompt, BOS included. Names of special tokens in a message are ordinary text.

        Raises ChatError, and what `Tokenizer.encode` raises.
        """
        ...
