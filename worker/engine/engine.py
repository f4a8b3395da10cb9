"""The decode loop: sequences in, tokens out, everything that runs in one batch.

One thread calls everything. A step admits waiting sequences, puts one batch through the model, draws a token for each
row, and ends what is over; whoever owns the engine calls `step` while there is work and passes the report on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tasks.generation import FinishReason
from worker.engine.architecture.config import ModelConfig
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.budget import KvBudget
from worker.engine.kv.cache import KvCache
from worker.engine.request import SequenceRequest
from worker.engine.sampling.philox import SEED_BITS, UniformStream
from worker.engine.sampling.torch_sampler import fastest_sampler
from worker.engine.scheduler import Chunk, Scheduler
from worker.engine.sequence import Sequence
from worker.engine.stop_criteria import EndOfText
from worker.engine.transfer import Arrival
from worker.engine.update import Update
from worker.engine.vocabulary import NO_TOKEN, Vocabulary

log = logging.getLogger(__name__)


class DecodingModel(Protocol):
    """What the engine asks of a model; `worker.engine.torch.model.Model` is one."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> Device: ...

    @property
    def reads_beyond(self) -> bool:
        """Whether attention may read places of the cache that are not its sequence's."""
        ...

    def forward(self, batch: Batch, cache: KvCache) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did."""

    #: Every sequence that got tokens or ended since the last report; none where they are held.
    updates: list[Update]
    #: Whether they wait for the next report.
    held: bool
    #: Positions that went through the model: decoded ones and those of prompts.
    decoded: int
    prefilled: int


class Engine:
    """A model and the sequences that it decodes."""

    def __init__(
        self,
        model: DecodingModel,
        vocabulary: Vocabulary,
        *,
        slots: int,
        kv_tokens: int,
        prefill_chunk_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots` sequences run at once, in KV memory for `kv_tokens` tokens. `clock` gives seconds for time limits."""
        config = model.config
        if vocabulary.size != config.vocab_size:
            raise ValueError(f"the vocabulary has {vocabulary.size} ids and the model {config.vocab_size}")
        self.model = model
        self.vocabulary = vocabulary
        self.budget = KvBudget(kv_tokens)
        self._scheduler = Scheduler(self.budget, slots=slots, prefill_chunk_tokens=prefill_chunk_tokens)
        full = self.budget.need(config.sequence_len, 0)
        #: Where every slot has room for a full context it keeps that room: stretches then lie at equal distances, and
        #: the rows' attention takes the fewest calls.
        self._lane = full if slots * full <= self.budget.capacity else None
        # Ordinary tensors, not inference tensors: an abort clears places outside of a step.
        self._cache = KvCache(config, self.budget.capacity, model.device, clears=model.reads_beyond)
        self._sampler = fastest_sampler(vocabulary, model.device)
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        #: The batch of the next step, where it is the last one's with one more token each: as long as the scheduler's
        #: rows are those of this revision.
        self._decoding: Batch | None = None
        self._decoding_revision = 0
        #: Sequences that ended and whose end was not reported yet.
        self._ended: list[Sequence] = []

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row or for memory."""
        return len(self._scheduler.waiting)

    @property
    def alone(self) -> str | None:
        """Id of the sequence that the next step runs alone, as things stand. What the step admits or ends before it
        runs may change that; the step itself tells."""
        alone = self._scheduler.alone
        return None if alone is None else alone.id

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        return bool(self._sequences or self._ended)

    @property
    def free_kv_tokens(self) -> int:
        """Tokens of KV memory that no running sequence has reserved."""
        return self.budget.free

    def add_request(self, request: SequenceRequest) -> Sequence:
        """Put a request in the queue. ValueError, with a message for its sender, if it can never run."""
        self._check(request)
        sequence = Sequence(
            request=request,
            tokens=list(request.generated),
            end_of_text=EndOfText(request, self.vocabulary),
            uniforms=UniformStream(request.sampling.seed or 0),
            deadline=None if request.time_limit_s is None else self._clock() + request.time_limit_s,
            reported=len(request.generated),
        )
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        for token in request.generated:
            if (finish := sequence.end_of_text.push(token)) is not None:
                self._end(sequence, finish)  # an earlier attempt had written all but the end
                break
        return sequence

    def abort(self, sequence_id: str) -> None:
        """End a sequence as cancelled before the next step, which reports it; nothing happens if it is over."""
        if sequence_id in self._sequences:
            self._end(self._sequences[sequence_id], FinishReason.CANCELLED)

    @torch.inference_mode()
    def step(
        self, before_run: Callable[[str | None], None] = lambda _: None, *, hold_until: float = -math.inf
    ) -> StepReport:
        """One turn of the loop. `before_run` hears which sequence it runs alone, if it does, before the model runs.

        Where the step ends before `hold_until`, by the engine's clock, its tokens wait for the next report, unless one
        of them is a text's first, a sequence has ended, or one runs alone.
        """
        self._end_overdue()
        for sequence in self._scheduler.admit():
            sequence.extent = self._cache.allocate(self._lane or self._scheduler.need(sequence))
        alone = self.alone
        before_run(alone)
        if self._decoding is not None and self._decoding_revision == self._scheduler.revision:
            chunks = self._decoding.chunks
        else:
            self._decoding = None
            chunks = self._scheduler.plan()
        if chunks:
            self._run(chunks)
        if alone is not None or self._decoding_revision != self._scheduler.revision:
            self._decoding = None
        held = self._clock() < hold_until and alone is None and not self._somebody_waits()
        updates = [] if held else self._report()
        if not self._sequences:
            self.check_idle()
        decoded = sum(chunk.length == 1 for chunk in chunks)
        return StepReport(updates, held, decoded, sum(chunk.length for chunk in chunks) - decoded)

    def check_idle(self) -> None:
        """With no sequence left, nothing may be held. RuntimeError if something is."""
        held = {
            "reserved tokens": self.budget.reserved,
            "stretches of the cache": len(self._cache.extents.used),
            "rows": self.running,
            "waiting sequences": self.waiting,
        }
        if any(held.values()):
            raise RuntimeError(f"the engine is idle and holds {held}")

    def _check(self, request: SequenceRequest) -> None:
        config = self.model.config
        sampling = request.sampling
        length = len(request.prompt) + sampling.max_tokens
        if request.id in self._sequences:
            raise ValueError(f"there is a sequence {request.id!r} already")
        if not request.prompt:
            raise ValueError("the prompt has no tokens")
        if not all(0 <= token < config.vocab_size for token in (*request.prompt, *request.generated)):
            raise ValueError(f"token ids must be within 0 to {config.vocab_size - 1}")
        if sampling.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        if length > config.sequence_len:
            raise ValueError(
                f"{len(request.prompt)} prompt tokens and {sampling.max_tokens} more are over the context of "
                f"{config.sequence_len} tokens"
            )
        if len(request.generated) > sampling.max_tokens:
            raise ValueError(f"{len(request.generated)} tokens are there already, more than {sampling.max_tokens}")
        if sampling.seed is not None and not 0 <= sampling.seed < 1 << SEED_BITS:
            raise ValueError(f"the seed must be within 0 and 2^{SEED_BITS} - 1")
        if not 0 <= sampling.temperature < float("inf"):
            raise ValueError("the temperature must be a number that is not negative")
        if sampling.seed is None and sampling.temperature > 0:
            raise ValueError("a seed is needed above temperature 0")
        if sampling.top_k is not None and sampling.top_k < 1:
            raise ValueError("top_k must be at least 1")
        if sampling.top_p is not None and not 0 <= sampling.top_p <= 1:
            raise ValueError("top_p must be within 0 and 1")
        self._sampler.check(request)

    def _end_overdue(self) -> None:
        now = self._clock()
        for sequence in [*self._sequences.values()]:
            if sequence.deadline is not None and now >= sequence.deadline:
                self._end(sequence, FinishReason.DEADLINE)

    def _run(self, chunks: Rows[Chunk]) -> None:
        """Put chunks through the model. If that raises, each is tried alone, and the one that raises again ends."""
        batch, self._decoding = self._decoding, None
        try:
            self._forward(batch or Batch.of(chunks, self.model.device.torch_device))
        except Exception as error:
            if self.model.device.is_fatal(error):
                raise
            log.warning("a step of %d sequences failed; trying each alone", len(chunks), exc_info=True)
        else:
            return
        for chunk in chunks:
            try:
                self._forward(Batch.of([chunk], self.model.device.torch_device))
                self._decoding = None
            except Exception as error:
                if self.model.device.is_fatal(error):
                    raise
                log.warning("sequence %s failed alone", chunk.sequence.id, exc_info=True)
                self._end(chunk.sequence, FinishReason.ERROR, f"{type(error).__name__}: {error}")

    def _forward(self, batch: Batch) -> None:
        """Put a batch through the model and draw; nothing of a sequence changes before all of that has worked."""
        for chunk in batch.chunks:
            chunk.extent.touched = chunk.end
        logits = self.model.forward(batch, self._cache)
        goes_on = batch.decodes_only
        drawing = [row for row, output in enumerate(batch.outputs) if output.draws]
        drawn: list[int] = []
        if drawing:
            rows = logits if len(drawing) == len(batch.outputs) else logits[drawing]
            ids = self._sampler.draw(rows, [batch.outputs[row].sequence for row in drawing])
            arrival = Arrival(ids)
            if goes_on:
                batch.feed(ids)  # on the device, while the ids travel
            drawn = arrival.wait()
        for row, output in enumerate(batch.outputs):
            if output.keeps:
                output.sequence.prompt_logits = logits[row].tolist()
        for chunk in batch.chunks:
            chunk.extent.filled = chunk.end
        revision = self._scheduler.revision
        for row, token in zip(drawing, drawn, strict=True):
            self._take(batch.outputs[row].sequence, token)
        # Whoever ended has changed the rows.
        if goes_on and revision == self._scheduler.revision:
            batch.advance()
            self._decoding, self._decoding_revision = batch, revision

    def _take(self, sequence: Sequence, token: int) -> None:
        """Give a sequence its next token."""
        if token == NO_TOKEN:
            self._end(sequence, FinishReason.ERROR, "the model's logits are not finite")
        elif sequence.end_of_text.is_stop(token):
            self._end(sequence, FinishReason.STOP)
        else:
            sequence.tokens.append(token)
            finish = sequence.end_of_text.push(token)
            if finish is not None:
                self._end(sequence, finish)

    def _end(self, sequence: Sequence, finish: FinishReason, error: str | None = None) -> None:
        """Take a sequence out of everything; the next report tells of it."""
        sequence.finish = finish
        sequence.error = error
        self._scheduler.remove(sequence)
        if sequence.extent is not None:
            self._cache.free(sequence.extent)
            sequence.extent = None
        del self._sequences[sequence.id]
        self._ended.append(sequence)

    def _somebody_waits(self) -> bool:
        """Whether there is something to report that a reader waits for."""
        return bool(self._ended) or any(one.tokens and not one.reported for one in self._scheduler.running)

    def _report(self) -> list[Update]:
        """Updates for the sequences that got tokens or ended since the last."""
        going = [one for one in self._scheduler.running if len(one.tokens) > one.reported]
        ended, self._ended = self._ended, []
        updates = []
        for sequence in going + ended:
            tokens = tuple(sequence.tokens[sequence.reported :])
            sequence.reported = len(sequence.tokens)
            updates.append(Update(sequence.id, tokens, sequence.finish, sequence.error))
        return updates
