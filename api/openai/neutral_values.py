"""Fields of OpenAI's API and of vLLM that this server does not have: accepted if their value changes nothing.

Many clients always send such fields. A field that is in no table here is ignored, and named in a header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from api.http.problems import ApiError, invalid

#: The header that names the fields of a request that were ignored.
IGNORED_HEADER = "X-Celeriac-Ignored"
#: Most fields that the header names, and most characters of a name.
MAX_IGNORED = 20
MAX_NAME = 64

#: Fields without an effect on the answer, with any value.
NO_EFFECT = frozenset(
    {
        "user",
        "store",
        "request_id",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "include_reasoning",
        "include_obfuscation",
        "stream_interval",
    }
)

#: Fields that both routes refuse, unless they have one of these values. null is neutral for every field.
_SHARED: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": ([],),
    "guided_grammar": (),
    "structural_tag": (),
    "cache_salt": ("",),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "best_of": (1,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "prompt_embeds": (),
}
_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {**_SHARED, "suffix": ("",)}
_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_SHARED,
    "add_special_tokens": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
}
_RESPONSE: Mapping[str, tuple[Any, ...]] = {
    **_SHARED,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "max_tool_calls": (),
    "text": ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": "none"}),
    "conversation": (),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "n": (1,),
}
#: The members of a message that it may not have, unless they have one of these values.
_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "tool_call_id": (),
}


def ignored_in_completion(extra: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of the ignored fields among those that the body does not declare. Raises ApiError for a refused one."""
    return _checked(extra or {}, _COMPLETIONS)


def ignored_in_chat(extra: Mapping[str, Any] | None) -> tuple[str, ...]:
    """As `ignored_in_completion`, for a conversation."""
    return _checked(extra or {}, _CHAT)


def ignored_in_response(extra: Mapping[str, Any] | None) -> tuple[str, ...]:
    """As `ignored_in_completion`, for a response."""
    return _checked(extra or {}, _RESPONSE)


def check_message(index: int, extra: Mapping[str, Any] | None) -> None:
    """Raises ApiError for a member of the message `index` that this server cannot do."""
    _checked(extra or {}, _MESSAGE, ("messages", index))


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """The header that names the ignored fields, without names that do not fit into a header."""
    fit = [name for name in names if name.isascii() and name.isprintable() and "," not in name and len(name) < MAX_NAME]
    return {IGNORED_HEADER: ", ".join(fit[:MAX_IGNORED])} if fit else {}


def _checked(
    extra: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], within: tuple[str | int, ...] = ()
) -> tuple[str, ...]:
    ignored = []
    for name, value in extra.items():
        if name in neutral:
            if value is not None and not any(_same(value, one) for one in neutral[name]):
                raise _refused((*within, name), value, neutral[name])
        elif name not in NO_EFFECT:
            ignored.append(name)
    return tuple(ignored)


def _same(value: Any, neutral: Any) -> bool:
    # In Python True equals 1.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _refused(path: tuple[str | int, ...], value: Any, neutral: tuple[Any, ...]) -> ApiError:
    accepted = " or ".join(["null", *map(json.dumps, neutral)])
    return invalid(
        ("body", *path),
        f"This server does not support `{path[-1]}`. Leave it out, or send {accepted}.",
        "unsupported_parameter",
        given=value,
    )
