"""What the engine is asked to do with one sequence: token ids and sampling fields, nothing of queues or HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """One sequence. Plain data: it crosses the pipe to the engine process as it is."""

    id: str
    #: Prompt ids, BOS included where the card asks for it; at least one.
    prompt: tuple[int, ...]
    #: With a seed unless it is greedy. `max_tokens` includes the tokens of `generated`; prompt + max_tokens fits the
    #: context. The tokens that spell a stop text are kept (the text is cut elsewhere).
    sampling: SamplingParams
    #: Tokens that earlier attempts generated: prefilled after the prompt, and counted.
    generated: tuple[int, ...] = ()
    #: Sample over every id of the vocabulary, also those without text.
    every_id: bool = False
    #: Keep the logits after the prompt in `Sequence.prompt_logits`.
    keep_prompt_logits: bool = False
    #: Time left for decoding, in seconds from the request's arrival; None for no limit.
    time_limit_s: float | None = None
    #: The first so many new tokens are decoded with no other sequence in the step: if the process dies then, this
    #: sequence is the reason.
    alone: int = 0
