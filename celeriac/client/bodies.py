"""Request bodies, made from the arguments of the clients' methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celeriac.client.options import GenerationOptions, check_options

#: Options that callers may give as another kind of collection than `json` can encode.
_COLLECTIONS: Mapping[str, Callable[[Any], Any]] = {"stop": list, "metadata": dict}


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

    Options that are not given, or None, are left out, so that the original guide's server and older servers accept it.
    """
    check_options(method, options)
    given: Mapping[str, Any] = {"top_k": top_k, **options}
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop_on_newline": stop_on_newline,
        **{
            name: _COLLECTIONS[name](value) if name in _COLLECTIONS else value
            for name, value in given.items()
            if value is not None
        },
    }
