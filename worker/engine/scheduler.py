"""Decides which sequences decode, prefill or wait in each step. Plain Python: it needs no model and no torch.

- Sequences are admitted in order of arrival. The first one in the queue waits until a row and enough KV memory are
  free, and no other sequence overtakes it.
- A sequence reserves all the KV memory that it may need when it is admitted, so a running sequence is never evicted.
- In each step, every sequence whose prompt is in the cache decodes one token. In the same step at most
  `prefill_chunk_tokens` tokens of prompts are prefilled, oldest sequence first. So a decoding row never waits for more
  than one chunk.
- A running sequence whose first blocks another one computes (its `leader`) waits until they are there. The leader was
  admitted before it, so it would be prefilled first anyway. A suspect has no leader.
- While a running sequence is a suspect, the steps contain it alone, those of its prompt included. The others keep their
  rows and their KV memory. Of several suspects, the first to be admitted runs first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from worker.engine.kv.allocator import Extent
from worker.engine.kv.budget import KvBudget
from worker.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Chunk:
    """Positions `start` to `start + length - 1` of a sequence, which go through the model in one step.

    The chunks of a step that only decodes are reused, one position further, while the same sequences decode.
    """

    sequence: Sequence
    start: int
    length: int
    #: Whether it contains the sequence's last token, so that the next token can be drawn.
    draws: bool

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self.start + self.length

    @property
    def extent(self) -> Extent:
        """The sequence's places in the KV memory."""
        extent = self.sequence.extent
        assert extent is not None, "a running sequence has an extent"
        return extent


class Scheduler:
    """The waiting and the running sequences."""

    def __init__(self, kv_budget: KvBudget, *, slots: int, prefill_chunk_tokens: int) -> None:
        if slots < 1 or prefill_chunk_tokens < 1:
            raise ValueError("slots and prefill_chunk_tokens must be at least 1")
        self.kv_budget = kv_budget
        self.slots = slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting: deque[Sequence] = deque()
        #: In order of admission.
        self.running: list[Sequence] = []
        #: A number that changes whenever `running` changes, or a row needs more than its next token computed.
        self.revision = 0

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the end of the queue. Raises ValueError if it needs more KV memory than there is."""
        if (need := self.need(sequence)) > self.kv_budget.capacity:
            raise ValueError(
                f"prompt and answer need KV memory for {need} tokens and there is room for {self.kv_budget.capacity}: "
                "ask for fewer tokens, or give the worker more KV memory"
            )
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move sequences from the queue to the running ones while there are rows and KV memory for them."""
        admitted = []
        while (
            self.waiting and len(self.running) < self.slots and self.kv_budget.try_reserve(self.need(self.waiting[0]))
        ):
            admitted.append(self.waiting.popleft())
            self.running.append(admitted[-1])
            self.revision += 1
        return admitted

    def changed(self) -> None:
        """Note that a running sequence got more than one token: the next step is no repetition of the last one."""
        self.revision += 1

    @property
    def suspect(self) -> Sequence | None:
        """The running sequence that the next step runs alone."""
        return next((one for one in self.running if one.request.alone and one.is_suspect), None)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step, those of decoding rows first."""
        decode, prefill = [], []
        prefill_left = self.prefill_chunk_tokens
        suspect = self.suspect
        for sequence in self.running if suspect is None else [suspect]:
            if sequence.leader is not None:
                continue
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
        """Remove a waiting or running sequence and release its reservation."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.revision += 1
            self.kv_budget.release(self.need(sequence))
        else:
            self.waiting.remove(sequence)

    def need(self, sequence: Sequence) -> int:
        """Tokens of KV memory that a sequence reserves."""
        return self.kv_budget.need(len(sequence.request.prompt), sequence.request.sampling.max_tokens)
