"""One sequence and its state in the engine."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.generation import FinishReason
from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_chain import BlockChain
from worker.engine.philox import UniformStream
from worker.engine.request import SequenceRequest
from worker.engine.stop_criteria import StopCriteria
from worker.engine.update import Failure


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request and what the engine has done for it.

    Callers may read `tokens`, `finish`, `error` and `prompt_logits`; only the engine changes anything.
    """

    request: SequenceRequest
    #: Generated tokens so far, including those of earlier attempts.
    tokens: list[int]
    #: Why it ended; None while it waits or runs.
    finish: FinishReason | None = None
    #: Set if `finish` is `FinishReason.ERROR`.
    error: Failure | None = None
    #: Logits after the prompt, one for each id, if the request asked for them.
    prompt_logits: list[float] | None = None

    stop_criteria: StopCriteria
    uniforms: UniformStream
    #: Time of the engine's clock at which it must end.
    deadline: float | None
    #: Its places in the KV memory while it runs.
    extent: Extent | None = None
    #: The digests of its blocks, once it runs; None if prefix reuse is off.
    chain: BlockChain | None = None
    #: The running sequence that computes the first blocks of this one, which waits for them.
    leader: Sequence | None = None
    #: How many tokens of its prompt had keys and values in the memory when it began; None before that.
    cached_tokens: int | None = None
    #: How many of its tokens have been reported.
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
        """How many of its tokens have keys and values in the cache, counted from the first."""
        return 0 if self.extent is None else self.extent.filled

    @property
    def is_suspect(self) -> bool:
        """Whether it must decode its next token alone in the step (see `SequenceRequest.alone`)."""
        return len(self.tokens) - len(self.request.generated) < self.request.alone

    def token(self, position: int) -> int:
        """The id at `position`, counted from the start of the prompt."""
        prompt = self.request.prompt
        return prompt[position] if position < len(prompt) else self.tokens[position - len(prompt)]
