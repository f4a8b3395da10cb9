"""One sequence on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.generation import FinishReason
from worker.engine.kv.allocator import Extent
from worker.engine.request import SequenceRequest
from worker.engine.sampling.philox import UniformStream
from worker.engine.stop_criteria import EndOfText


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """What the engine knows of a request. `tokens` and `finish` are for callers to read, the rest is the engine's."""

    request: SequenceRequest
    #: Generated so far, those of earlier attempts included.
    tokens: list[int]
    #: Why it ended; None while it waits or runs.
    finish: FinishReason | None = None
    #: What went wrong, where `finish` is `FinishReason.ERROR`.
    error: str | None = None
    #: Logits after the prompt, one for each id, where the request asked for them.
    prompt_logits: list[float] | None = None

    end_of_text: EndOfText
    uniforms: UniformStream
    #: Time of the engine's clock at which it must end.
    deadline: float | None
    #: Its place in the KV memory while it runs.
    extent: Extent | None = None
    #: Tokens that were reported to the caller.
    reported: int

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def cached(self) -> int:
        """How many of these have keys and values in the cache."""
        return 0 if self.extent is None else self.extent.filled

    @property
    def alone(self) -> bool:
        """Whether its next token is one of those that it decodes with no other sequence in the step."""
        return len(self.tokens) - len(self.request.generated) < self.request.alone

    def token(self, position: int) -> int:
        """The id at `position`, counted from the beginning of the prompt."""
        prompt = self.request.prompt
        return prompt[position] if position < len(prompt) else self.tokens[position - len(prompt)]
