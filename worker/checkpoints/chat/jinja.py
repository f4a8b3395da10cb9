"""Chat templates of Hugging Face tokenizers, which are Jinja templates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tasks.chat import Message
from worker.checkpoints.chat.base import ChatError
from worker.checkpoints.chat.conversation import checked
from worker.checkpoints.chat.special_names import SpecialNames
from worker.checkpoints.chat.template_process import TemplateProcess


class JinjaTemplate:
    """A template that the checkpoint brings. Its mistakes show when messages are rendered, as a ChatError."""

    kind: Literal["jinja"] = "jinja"

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        special_names: Iterable[str],
        encode: Callable[[Iterable[tuple[bool, str]]], Sequence[int]],
    ) -> None:
        """`variables`: what the template can use beside the messages, such as `bos_token`.

        `encode`: the ids of the parts of a text, which are (True, the name of a special token) and (False, text).
        """
        self.source = source
        self.variables = variables
        self._names = SpecialNames(special_names)
        self._encode = encode
        self._process = TemplateProcess(source, variables)

    def render(self, messages: Sequence[Message], *, now: float | None = None) -> tuple[int, ...]:
        """See `ChatTemplate`."""
        known = checked(messages)
        contents, table = self._names.hide([message.content for message in known], self.source)
        hidden = [Message(message.role, content) for message, content in zip(known, contents, strict=True)]
        try:
            text = self._process.render(hidden, time.time() if now is None else now)
        except ChatError as error:
            # The template may quote a message.
            raise ChatError(str(error).translate(table)) from error
        return tuple(self._encode(self._names.split(text, table)))
