"""nanochat's layout of a conversation.

Source: `render_for_completion` in https://github.com/karpathy/nanochat/blob/master/nanochat/tokenizer.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tasks.chat import Message
from worker.checkpoints.chat.conversation import turns

BOS = "<|bos|>"
_BEGIN = {"user": "<|user_start|>", "assistant": "<|assistant_start|>"}
_END = {"user": "<|user_end|>", "assistant": "<|assistant_end|>"}

#: The same layout and rules as a Jinja template, for programs of Hugging Face. They take names of special tokens in
#: messages for special tokens.
SOURCE = """\
{%- if messages and messages[0]['role'] in ['system', 'developer'] %}
    {%- if messages | length < 2 or messages[1]['role'] != 'user' %}
        {{- raise_exception('A system message must be followed by one of the user.') }}
    {%- endif %}
    {%- set before = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set before = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|bos|>' }}
{%- for message in turns %}
    {%- set due = 'assistant' if loop.index0 % 2 else 'user' %}
    {%- if message['role'] != due %}
        {{- raise_exception('The user and the assistant must alternate, beginning with the user.') }}
    {%- endif %}
    {{- '<|' + due + '_start|>' + (before if loop.first else '') + message['content'] + '<|' + due + '_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant_start|>' }}
{%- endif %}
"""


class NanochatTemplate:
    """BOS, then each message between the two special tokens of its role, then the token that begins an answer."""

    kind: Literal["nanochat"] = "nanochat"
    source = SOURCE

    @property
    def variables(self) -> Mapping[str, Any]:
        """See `ChatTemplate`."""
        return {}

    def __init__(self, special_ids: Mapping[str, int], encode: Callable[[str], Sequence[int]]) -> None:
        self._special_ids = special_ids
        self._encode = encode

    @classmethod
    def of(cls, special_ids: Mapping[str, int], encode: Callable[[str], Sequence[int]]) -> NanochatTemplate | None:
        """The template of a tokenizer. None if it lacks one of the special tokens.

        `encode`: the ids of a text, in which names of special tokens are ordinary text.
        """
        needed = {BOS, *_BEGIN.values(), *_END.values()}
        return cls(special_ids, encode) if needed <= special_ids.keys() else None

    def render(self, messages: Sequence[Message], *, now: float | None = None) -> tuple[int, ...]:
        """See `ChatTemplate`."""
        ids = [self._special_ids[BOS]]
        for message in turns(messages):
            ids += (
                self._special_ids[_BEGIN[message.role]],
                *self._encode(message.content),
                self._special_ids[_END[message.role]],
            )
        return (*ids, self._special_ids[_BEGIN["assistant"]])
