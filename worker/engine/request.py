"""What the engine is asked to do with one sequence: token ids in, nothing of text, queues or HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Finish(StrEnum):
    """Why the engine stopped decoding a sequence."""

    STOP = "stop"
    NEWLINE = "newline"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """One sequence. Plain data: it crosses the pipe to the engine process as it is."""

    id: str
    #: Prompt ids, BOS included where the card asks for it; at least one.
    prompt: tuple[int, ...]
    #: Most tokens to generate, those of `generated` included; prompt + max_tokens fits the context.
    max_tokens: int
    #: 0 is greedy.
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    #: Tokens that earlier attempts generated: prefilled after the prompt, and counted.
    generated: tuple[int, ...] = ()
    #: End the sequence at a token whose text has a newline; that token is kept.
    stop_on_newline: bool = False
    #: Byte strings that end the sequence; the tokens that spell them are kept (the text is cut elsewhere).
    stop: tuple[bytes, ...] = ()
    #: Never sample a stop token.
    ignore_eos: bool = False
    #: Sample over every id of the vocabulary, also those without text.
    every_id: bool = False
    #: Keep the logits after the prompt in `Sequence.prompt_logits`.
    keep_prompt_logits: bool = False
    #: Time left for decoding, in seconds from submission; None for no limit.
    time_limit_s: float | None = None
    #: So many new tokens it decodes with no other sequence in the step: if the process dies, nobody else is to blame.
    alone: int = 0
