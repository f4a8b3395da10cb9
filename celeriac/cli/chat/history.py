"""What was said in a conversation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.chat import Message

if TYPE_CHECKING:
    from celeriac.cli.chat.backend import Answer


class History:
    """The messages of one conversation, after an optional system message."""

    def __init__(self, system: str | None = None) -> None:
        #: The system message; None or empty: there is none.
        self.system = system
        self._said: list[Message] = []
        #: Index of an answer in `_said`: why it ended, if the model did not end it.
        self._cut: dict[int, str] = {}

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, as a backend gets them. What was cut short is there as far as it went."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self._said)

    def add_question(self, text: str) -> None:
        """Add a message of the user."""
        self._said.append(Message("user", text))

    def remove_question(self) -> None:
        """Remove the message of the user that was added last, which has no answer."""
        self._said.pop()

    def add_answer(self, answer: Answer) -> None:
        """Add the answer to the last question."""
        if not answer.whole:
            self._cut[len(self._said)] = answer.finish_reason
        self._said.append(Message("assistant", answer.text))

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._said.clear()
        self._cut.clear()

    def save(self, path: Path) -> None:
        """Write the messages to a new file: a JSON list of objects with `role` and `content`.

        An answer that the model did not end also has a `finish_reason`: `cancelled` or `length`. Raises OSError, a
        FileExistsError if there is something at `path`.
        """
        messages: list[dict[str, str]] = [asdict(message) for message in self.messages]
        first = len(messages) - len(self._said)
        for index, finish_reason in self._cut.items():
            messages[first + index]["finish_reason"] = finish_reason
        text = json.dumps(messages, indent=2, ensure_ascii=False) + "\n"
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
