"""One sequence and its state in the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.generation import FinishReason
from tasks.logprobs import TokenLogprob, TokenLogprobs, pack, record_bytes
from worker.engine.adjustment import Adjustment
from worker.engine.kv.allocator import Extent
from worker.engine.philox import UniformStream
from worker.engine.request import SequenceRequest
from worker.engine.stop_criteria import StopCriteria
from worker.engine.tools.tool_use import ToolUse
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
    #: What its request changes in its logits.
    adjustment: Adjustment | None = None
    #: Records of the tokens that have not been reported, and of `stop_id`, if the request asks for log-probabilities.
    logprobs: bytearray = field(default_factory=bytearray)
    #: Records of its prompt, as far as it went through the model, until they are reported.
    prompt_logprobs: bytearray = field(default_factory=bytearray)
    #: Its uses of the calculator; None if it may not use it.
    tools: ToolUse | None = None
    #: The stop token that ended it. It is not one of `tokens`.
    stop_id: int | None = None
    #: Time of the engine's clock at which it must end.
    deadline: float | None
    #: Its places in the KV memory while it runs.
    extent: Extent | None = None
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

    def add_forced(self, token: int) -> None:
        """Add a token that was not drawn but had to follow. Its probability is 1, and it has no alternatives."""
        self.tokens.append(token)
        if (alternatives := self.request.sampling.logprobs) is not None:
            self.logprobs += pack([TokenLogprobs(TokenLogprob(token, 0.0), ())], alternatives)

    def take_logprobs(self) -> bytes:
        """The records that have not been reported."""
        records = bytes(self.logprobs)
        self.logprobs.clear()
        return records

    def take_prompt_logprobs(self) -> bytes:
        """The records of the whole prompt, once; b"" if none are asked for, or if a part is missing."""
        alternatives = self.request.sampling.prompt_logprobs
        if not self.prompt_logprobs or alternatives is None:
            return b""
        records = bytes(self.prompt_logprobs)
        self.prompt_logprobs.clear()
        return records if len(records) == (len(self.request.prompt) - 1) * record_bytes(alternatives) else b""

    def token(self, position: int) -> int:
        """The id at `position`, counted from the start of the prompt."""
        prompt = self.request.prompt
        return prompt[position] if position < len(prompt) else self.tokens[position - len(prompt)]

    def ids(self, start: int, end: int) -> list[int]:
        """The ids from position `start` up to, but not including, position `end`."""
        prompt = self.request.prompt
        return [*prompt[start:end], *self.tokens[max(0, start - len(prompt)) : max(0, end - len(prompt))]]
