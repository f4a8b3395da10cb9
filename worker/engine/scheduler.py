"""Who decodes, who prefills, who waits. Plain Python: the whole policy can be tested without a model.

- First come, first served: the head of the queue waits until a row and its KV memory are free, and nobody overtakes it.
- What a sequence may need is reserved when it is admitted, so a running sequence is never pushed out.
- Each step, every sequence that has its prompt in the cache decodes one token; beside them at most
  `prefill_chunk_tokens` of the prompts are prefilled, the oldest first. So no decoding row waits for more than a chunk.
- As long as a running sequence is to be alone, it has the steps for itself, those of its prompt included. The others
  keep their rows and their memory. Of several the first comes first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from worker.engine.kv.allocator import Extent
from worker.engine.kv.budget import KvBudget
from worker.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Chunk:
    """Positions `start` to `start + length - 1` of a sequence, to go through the model in this step.

    Those of a step that only decodes are used again, one position on, while the same sequences decode.
    """

    sequence: Sequence
    start: int
    length: int
    #: Whether it reaches the sequence's last token, so that the next one can be drawn.
    draws: bool

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def extent(self) -> Extent:
        """Where the sequence lies in the KV memory."""
        extent = self.sequence.extent
        assert extent is not None, "a running sequence has its place"
        return extent


class Scheduler:
    """The waiting and the running sequences."""

    def __init__(self, budget: KvBudget, *, slots: int, prefill_chunk_tokens: int) -> None:
        if slots < 1 or prefill_chunk_tokens < 1:
            raise ValueError("at least one slot and one prefill token a step are needed")
        self.budget = budget
        self.slots = slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting: deque[Sequence] = deque()
        #: In order of admission.
        self.running: list[Sequence] = []
        #: Changes whenever `running` does.
        self.revision = 0

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue. ValueError if all of the KV memory would not do for it."""
        if (need := self.need(sequence)) > self.budget.capacity:
            raise ValueError(
                f"prompt and answer need KV memory for {need} tokens and there is room for {self.budget.capacity}: "
                "ask for fewer tokens, or give the worker more KV memory"
            )
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move sequences from the queue to the batch while there are rows and memory for them."""
        admitted = []
        while self.waiting and len(self.running) < self.slots and self.budget.try_reserve(self.need(self.waiting[0])):
            admitted.append(self.waiting.popleft())
            self.running.append(admitted[-1])
            self.revision += 1
        return admitted

    @property
    def alone(self) -> Sequence | None:
        """The running sequence that has the steps for itself."""
        return next((one for one in self.running if one.request.alone and one.alone), None)

    def plan(self) -> list[Chunk]:
        """What goes through the model in the next step, decoding rows first."""
        decode, prefill = [], []
        prefill_left = self.prefill_chunk_tokens
        alone = self.alone
        for sequence in self.running if alone is None else [alone]:
            cached = sequence.cached
            left = sequence.length - cached
            if left == 1:
                decode.append(Chunk(sequence, cached, 1, draws=True))
            elif prefill_left > 0:
                length = min(left, prefill_left)
                prefill_left -= length
                prefill.append(Chunk(sequence, cached, length, draws=length == left))
        return decode + prefill

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, waiting or running, and give its reservation back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.revision += 1
            self.budget.release(self.need(sequence))
        else:
            self.waiting.remove(sequence)

    def need(self, sequence: Sequence) -> int:
        """Tokens of KV memory that a sequence reserves."""
        return self.budget.need(len(sequence.request.prompt), sequence.request.sampling.max_tokens)
