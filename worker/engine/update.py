"""The progress of one sequence, as the engine reports it. Free of torch: it is sent through the pipe to the worker."""

from __future__ import annotations

from typing import NamedTuple

from tasks.generation import FinishReason


class Failure(NamedTuple):
    """Why the engine could not decode a sequence."""

    #: A description of the error, for people.
    message: str
    #: Whether the device or the process had no memory left. The same request may succeed later.
    out_of_memory: bool = False


class Update(NamedTuple):
    """The changes of one sequence since its last update."""

    id: str
    #: New tokens.
    tokens: tuple[int, ...]
    #: Why it ended; None while it continues.
    finish: FinishReason | None = None
    #: Set if `finish` is `FinishReason.ERROR`.
    error: Failure | None = None
    #: Packed records (`tasks.logprobs`) of `tokens`, and one more for `stop_id` if that is set. Empty if the request
    #: does not ask for log-probabilities.
    logprobs: bytes = b""
    #: Packed records of the whole prompt, once: in the update that has the first token or the end.
    prompt_logprobs: bytes = b""
    #: The stop token that ended the text. It is not in `tokens`.
    stop_id: int | None = None
    #: In the first update of a sequence: tokens of its prompt whose keys and values were there already.
    cached_tokens: int | None = None
