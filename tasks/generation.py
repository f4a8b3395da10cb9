"""A request to the model, and the reasons why a text ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from tasks import record
from tasks.chat import Message
from tasks.logprobs import record_bytes
from tasks.sampling_params import SAMPLING_FIELDS, SamplingParams


class FinishReason(StrEnum):
    """Why a text ended. The engine, the record and the API share these values."""

    #: The model ended the text, or a stop text was found.
    STOP = "stop"
    #: `stop_on_newline` was set, and the last character is a newline.
    NEWLINE = "newline"
    #: `max_tokens` tokens were generated, or the context is full.
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


#: Special tokens that a chat template may write for a message, as far as memory is reserved for them.
TEMPLATE_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A validated request. The record stores it as JSON in the field `input`.

    What to continue is given in one of three ways: a text, token ids, or the messages of a conversation.
    """

    #: Empty if the prompt is given in another way.
    prompt: str = ""
    #: Token ids that the model gets as they are.
    prompt_ids: tuple[int, ...] | None = None
    #: Messages that the worker renders with the checkpoint's chat template.
    messages: tuple[Message, ...] | None = None
    #: Always with a seed.
    sampling: SamplingParams
    #: Index of this answer among those to one prompt. Each index has random draws of its own.
    choice: int = 0
    #: Whether BOS comes before the text; None: as the checkpoint requires it.
    add_bos: bool | None = None
    #: Whether the model may use the calculator; None: in conversations, if the checkpoint knows it.
    tools: bool | None = None
    #: Fields that this version does not know, from a process of a newer version, with their JSON values.
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The request as one line of JSON.

        Fields that are unset (None, False, ()) are left out: a process of an older version can run the job unless the
        request uses a field that it does not know.
        """
        values = ((one, getattr(self.sampling, one.name)) for one in SAMPLING_FIELDS)
        sampling = {one.name: one.json(value) for one, value in values if not _is_unset(value)}
        others: dict[str, Any] = {
            "prompt_ids": self.prompt_ids,
            "messages": self.messages and [asdict(message) for message in self.messages],
            "choice": self.choice or None,
            "add_bos": self.add_bos,
            "tools": self.tools,
        }
        given = {name: value for name, value in others.items() if value is not None}
        fields = {"prompt": self.prompt, **given, **sampling, **self.unknown}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Generation:
        """The request that `to_json` encoded, perhaps in another version.

        Values outside of the bounds are accepted: see `unsupported`. Raises ValueError or TypeError for anything that
        is no such request.
        """
        fields = record.json_value(text if isinstance(text, str) else text.decode(), dict)
        prompt = record.checked_text(fields.pop("prompt", None))
        others = {name: _PARSERS[name](fields.pop(name)) for name in _PARSERS if name in fields}
        known = {one.name: fields.pop(one.name) for one in SAMPLING_FIELDS if one.name in fields}
        sampling = SamplingParams(
            **{one.name: one.checked(known[one.name]) for one in SAMPLING_FIELDS if one.name in known}
        )
        if sampling.seed is None:
            raise ValueError("no seed")
        return cls(prompt=prompt, sampling=sampling, unknown=fields, **others)

    @property
    def most_prompt_tokens(self) -> int:
        """An upper bound of the length of the prompt in tokens: no token has less than a byte.

        For a conversation it counts a few special tokens for each message; a chat template may write more.
        """
        if self.prompt_ids is not None:
            return len(self.prompt_ids)
        if self.messages is None:
            return 1 + _bytes_of(self.prompt)
        return sum(TEMPLATE_TOKENS + _bytes_of(message.content) for message in self.messages)

    def most_logprob_bytes(self, context: int | None) -> int:
        """An upper bound of the packed log-probabilities of prompt and answer, in bytes; 0 if none are asked for.

        `context`: the longest sequence of the checkpoint, in tokens; None if it is not known.
        """
        sampling, most = self.sampling, 0
        if sampling.logprobs is not None:
            most += record_bytes(sampling.logprobs) * sampling.max_tokens
        if sampling.prompt_logprobs is not None:
            tokens = self.most_prompt_tokens if context is None else min(self.most_prompt_tokens, context)
            most += record_bytes(sampling.prompt_logprobs) * tokens
        return most

    def unsupported(self) -> list[str]:
        """Names of the fields with which this version cannot run the request.

        It does not know the field, or the value is outside of its bounds.
        """
        beyond = [one.name for one in SAMPLING_FIELDS if not one.bounds.contain(getattr(self.sampling, one.name))]
        return [*self.unknown, *beyond]


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value == ()


def _bytes_of(text: str) -> int:
    # A lone surrogate, which no tokenizer takes, must not raise here.
    return len(text.encode("utf-8", "replace"))


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise TypeError("not a list of token ids")
    return tuple(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list of messages")
    fields = [dict(one) for one in value]
    return tuple(
        Message(role=record.checked_text(one.get("role")), content=record.checked_text(one.get("content")))
        for one in fields
    )


def _choice(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("not the index of an answer")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not a truth value")
    return value


#: How the fields beside the prompt and the sampling fields are read.
_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "prompt_ids": _token_ids,
    "messages": _messages,
    "choice": _choice,
    "add_bos": _flag,
    "tools": _flag,
}
