"""What answers a conversation, and what an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from celeriac.cli.chat.screen import Screen
    from tasks.chat import Message
    from tasks.tool_call import ToolCall


class ChatError(Exception):
    """There is no answer. The message is for the user, and the conversation can go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, whole or up to where it was stopped."""

    text: str
    #: `stop` or `newline` if the model ended it, else `length` or `cancelled`.
    finish_reason: str
    #: Uses of the calculator, which are no part of the text.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Whether it ended because the context was full.
    context_full: bool = False

    @property
    def whole(self) -> bool:
        """Whether the model ended the answer."""
        return self.finish_reason in ("stop", "newline")


class Backend(Protocol):
    """Answers conversations."""

    @property
    def greeting(self) -> str:
        """What answers, in a few words."""

    def answer(self, messages: Sequence[Message], screen: Screen) -> Answer:
        """Answer the last message, and print the text to `screen` as it comes.

        Raises ChatError. After a KeyboardInterrupt the answer has been stopped, and the next one can be asked for.
        """


def too_long(message: str) -> ChatError:
    """The error of a conversation that fills the context. `message` names its tokens and the context."""
    return ChatError(f"The conversation is too long. {message} /clear begins a new one.")
