"""Request bodies, made from the arguments of the clients' methods."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

from celeriac.client.options import JOB_DEFAULTS, GenerationOptions, check_options

#: Fields of a body that only `POST /v1/jobs` knows. The guide's `POST /generate` takes a text.
JOB_FIELDS = ("messages", "prompt_token_ids", "tools")


def generation(
    method: str,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    stop_on_newline: bool,
    options: GenerationOptions,
) -> dict[str, Any]:
    """The body that the client's `method` sends.

    Raises TypeError if the method has no such option, or unless exactly one of `prompt`, `messages` and
    `prompt_token_ids` is given. Options that are not given, None, or `ignore_eos=False` are left out, so that the
    original guide's server and older servers accept the body. The options in JOB_DEFAULTS are never left out.
    """
    check_options(method, options)
    prompts = (prompt, options.get("messages"), options.get("prompt_token_ids"))
    if sum(one is not None for one in prompts) != 1:
        raise TypeError(f"{method}() needs exactly one of prompt, messages and prompt_token_ids")
    encoded = {name: _encoded(name, value) for name, value in {"top_k": top_k, **options}.items()}
    return {
        **({} if prompt is None else {"prompt": prompt}),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop_on_newline": stop_on_newline,
        **{name: value for name, value in encoded.items() if value is not None or name in JOB_DEFAULTS},
    }


def needs_job_route(body: Mapping[str, Any]) -> bool:
    """Whether the guide's `POST /generate` cannot take a body."""
    return any(name in body for name in JOB_FIELDS)


def _encoded(name: str, value: Any) -> Any:
    """The value of an option as `json` can encode it; None if the server's default says the same."""
    match name:
        case "stop" if value is not None:
            return list(value)
        case "stop_token_ids" | "prompt_token_ids" if value is not None:
            return [*map(index, value)]
        case "logit_bias" if value is not None:
            return {str(token_id): bias for token_id, bias in value.items()}
        case "messages" if value is not None:
            return [dict(message) for message in value]
        case "metadata" if value is not None:
            return dict(value)
        case "ignore_eos":
            return value or None
        case _:
            return value
