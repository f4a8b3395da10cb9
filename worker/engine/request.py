"""A request to the engine: token ids and sampling fields. It does not depend on queues or HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """A request to decode one sequence. Plain data: it is sent through the pipe to the engine process as it is."""

    id: str
    #: Ids of the prompt, at least one. BOS is included if the card asks for it.
    prompt: tuple[int, ...]
    #: Has a seed unless the temperature is 0. `max_tokens` counts the tokens of `generated` too, and prompt +
    #: max_tokens must fit the context. Tokens that spell a stop text are kept; the worker cuts them from the text.
    sampling: SamplingParams
    #: Tokens that earlier attempts generated. They are prefilled after the prompt and count as generated.
    generated: tuple[int, ...] = ()
    #: Which of several answers of one prompt this is. Each draws its own numbers from the same seed.
    choice: int = 0
    #: Sequences share the KV of equal beginnings only if this text is equal, too.
    cache_salt: str = ""
    #: Whether the sequence may use the model's tools: the vocabulary's `tool_ids` may then be sampled.
    tools: bool = False
    #: Sample from every id of the vocabulary, including ids without text.
    every_id: bool = False
    #: Keep the logits after the prompt in `Sequence.prompt_logits`.
    keep_prompt_logits: bool = False
    #: Time limit in seconds, counted from the arrival of the request; None: no limit.
    time_limit_s: float | None = None
    #: How many new tokens this sequence decodes alone, as a suspect: its steps then contain no other sequence, so that
    #: a crash during them can only be its own. 0: it is not a suspect.
    alone: int = 0
