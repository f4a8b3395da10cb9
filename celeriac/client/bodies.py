"""What a caller's arguments become in a request. What is not asked for is left out: the original guide's server, and
servers older than this client, take that, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def generation(
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    stop_on_newline: bool,
    *,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str] | None,
    ignore_eos: bool,
    model: str | None,
) -> dict[str, Any]:
    """The body of `POST /generate`."""
    optional = {
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": None if stop is None else list(stop),
        "ignore_eos": ignore_eos or None,
        "model": model,
    }
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop_on_newline": stop_on_newline,
        **_given(optional),
    }


def queueing(
    *,
    priority: int,
    metadata: Mapping[str, str] | None,
    result_ttl_s: int | None,
    wait_for_worker: bool,
    queue_timeout_s: float | None,
    run_timeout_s: float | None,
    deadline_s: float | None,
    max_queue_position: int | None,
) -> dict[str, Any]:
    """What the body of `POST /v1/jobs` says beyond the generation."""
    optional = {
        "metadata": None if metadata is None else dict(metadata),
        "result_ttl_s": result_ttl_s,
        "queue_timeout_s": queue_timeout_s,
        "run_timeout_s": run_timeout_s,
        "deadline_s": deadline_s,
        "max_queue_position": max_queue_position,
    }
    return {"priority": priority, "wait_for_worker": wait_for_worker, **_given(optional)}


def _given(optional: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in optional.items() if value is not None}
