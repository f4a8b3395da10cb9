"""One call of OpenAI's API: what it asks of the queue, and how it wants the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.http.problems import invalid
from api.schemas.openai.request import MAX_GROUP, OpenAiRequest
from tasks.generation import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The jobs of one call, in the order of the choices in its answer."""

    #: None: the default checkpoint.
    model: str | None
    generations: Sequence[Generation]
    #: Sampling fields that get the checkpoint's defaults.
    unset_fields: frozenset[str] = frozenset()
    priority: int
    metadata: Mapping[str, str]
    wait_for_worker: bool
    stream: bool
    #: Whether a stream ends with the token counts, and whether every chunk has them.
    include_usage: bool = False
    continuous_usage: bool = False
    #: How long the finished jobs are kept, in seconds; None: the server's default.
    result_ttl_s: float | None = None
    #: Names of fields without an effect that the request has.
    ignored: tuple[str, ...] = ()
    #: Whether the text begins with the prompt.
    echo: bool = False
    #: Whether the answer has log-probabilities.
    logprobs: bool = False
    #: Whether tokens are named by their ids instead of by their texts.
    tokens_as_ids: bool = False
    #: Whether to leave out the text that was generated: only the prompt was asked for.
    prompt_only: bool = False


def check_group(prompts: int, n: int) -> None:
    """Raises ApiError if a call would have too many jobs."""
    if prompts * n > MAX_GROUP:
        raise invalid(
            ("body", "n" if n > 1 else "prompt"),
            f"{prompts * n} answers are too many: a call may have {MAX_GROUP} of them, in all prompts together.",
            "too_many_choices",
            given=n,
        )


def stream_options_of(body: OpenAiRequest) -> tuple[bool, bool]:
    """Whether to send the token counts at the end, and with every chunk."""
    options = body.stream_options
    if options is None:
        return False, False
    return bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats)
