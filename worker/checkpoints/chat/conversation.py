"""The rules for the roles of messages that hold for all templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.chat import Message
from worker.checkpoints.chat.base import ChatError

#: What OpenAI's API calls the system role of newer models.
_DEVELOPER = "developer"
_ROLES = ("system", "user", "assistant")


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with known roles: `developer` becomes `system`. Raises ChatError for others, and for no messages."""
    if not messages:
        raise ChatError("messages is empty: a conversation needs at least one message, from the user.")
    known = tuple(replace(one, role="system") if one.role == _DEVELOPER else one for one in messages)
    for index, message in enumerate(known):
        if message.role in ("tool", "function"):
            raise ChatError(
                f"messages[{index}] has the role {message.role}: messages of tools are not supported. The calculator "
                "of a checkpoint runs on the server."
            )
        if message.role not in _ROLES:
            raise ChatError(
                f"messages[{index}] has the unknown role {message.role[:100]!r}; roles are system, developer, user and "
                "assistant."
            )
    return known


def turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages as nanochat's models know them: from the user and the assistant in turn, ending with the user.

    A leading system message joins the first message of the user, with a blank line between them. Raises ChatError for
    everything else.
    """
    rest = checked(messages)
    first = 0
    if rest[0].role == "system":
        if len(rest) < 2 or rest[1].role != "user":
            raise ChatError("messages[0] has the role system, so messages[1] must come from the user.")
        rest = (Message("user", f"{rest[0].content}\n\n{rest[1].content}"), *rest[2:])
        first = 1
    for index, message in enumerate(rest):
        due = "assistant" if index % 2 else "user"
        if message.role == "system":
            raise ChatError(f"messages[{index + first}] has the role system, which only the first message may have.")
        if message.role != due:
            raise ChatError(
                f"messages[{index + first}] has the role {message.role} and must have {due}: after a system message, "
                "if there is one, the user and the assistant alternate, beginning with the user."
            )
    if rest[-1].role != "user":
        raise ChatError("The last message must come from the user: this checkpoint cannot continue an answer.")
    return rest
