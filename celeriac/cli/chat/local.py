"""Answers of a checkpoint in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from celeriac.cli.chat.backend import Answer, ChatError, too_long
from tasks.generation import FinishReason
from worker.local import LocalModelError, PromptTooLongError

if TYPE_CHECKING:
    from celeriac.cli.chat.screen import Screen
    from tasks.chat import Message
    from tasks.sampling_params import SamplingParams
    from worker.local import LocalModel


class LocalBackend:
    """Renders the whole conversation each time. What the engine still knows of it is not computed again."""

    def __init__(self, model: LocalModel, sampling: SamplingParams) -> None:
        self._model = model
        self._sampling = sampling

    @property
    def greeting(self) -> str:
        """See `Backend`."""
        return f"Chat with {self._model.card.name}."

    def answer(self, messages: Sequence[Message], screen: Screen) -> Answer:
        """See `Backend`."""
        try:
            prompt = self._model.encode_messages(messages)
            completion = self._model.generate(
                prompt, self._sampling, tools=self._model.card.tokenizer.calculator, on_text=screen.print_text
            )
        except PromptTooLongError as error:
            raise too_long(str(error)) from error
        except LocalModelError as error:
            raise ChatError(str(error)) from error
        full = len(completion.token_ids) < self._sampling.max_tokens
        return Answer(
            text=completion.text or "",
            finish_reason=completion.finish_reason.value,
            tool_calls=completion.tool_calls,
            context_full=completion.finish_reason is FinishReason.LENGTH and full,
        )
