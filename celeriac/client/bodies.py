"""Request bodies, made from the arguments of the clients' methods."""

from __future__ import annotations

from typing import Any

from celeriac.client.options import JOB_DEFAULTS, GenerationOptions, check_options


def generation(
    method: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    stop_on_newline: bool,
    options: GenerationOptions,
) -> dict[str, Any]:
    """The body that the client's `method` sends. Raises TypeError if the method has no such option.

    Options that are not given, None, or `ignore_eos=False` are left out, so that the original guide's server and older
    servers accept the body. The options in JOB_DEFAULTS are never left out.
    """
    check_options(method, options)
    encoded = {name: _encoded(name, value) for name, value in {"top_k": top_k, **options}.items()}
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop_on_newline": stop_on_newline,
        **{name: value for name, value in encoded.items() if value is not None or name in JOB_DEFAULTS},
    }


def _encoded(name: str, value: Any) -> Any:
    """The value of an option as `json` can encode it; None if the server's default says the same."""
    match name:
        case "stop" | "stop_token_ids" if value is not None:
            return list(value)
        case "logit_bias" if value is not None:
            return {str(token_id): bias for token_id, bias in value.items()}
        case "metadata" if value is not None:
            return dict(value)
        case "ignore_eos":
            return value or None
        case _:
            return value
