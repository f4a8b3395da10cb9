"""The decode loop: takes requests and produces tokens, with all running sequences in one batch.

The engine is not thread-safe: one thread makes all calls. The owner of an engine calls `step` while there is work, and
passes each report on.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from tasks.generation import FinishReason
from worker.engine.adjustment import Adjustment
from worker.engine.backends import fastest_sampler
from worker.engine.batch import Batch
from worker.engine.batch_reuse import BatchReuse
from worker.engine.decoding_model import DecodingModel
from worker.engine.device_errors import is_fatal, is_out_of_memory
from worker.engine.kv.budget import KvBudget
from worker.engine.kv.cache import KvCache
from worker.engine.philox import UniformStream
from worker.engine.prefix_reuse import PrefixReuse
from worker.engine.request import SequenceRequest
from worker.engine.request_check import check_request
from worker.engine.sampling.adjust import adjust
from worker.engine.sampling.batch_logprobs import BatchLogprobs
from worker.engine.scheduler import Chunk, Scheduler
from worker.engine.sequence import Sequence
from worker.engine.step_report import StepReport, Unreported
from worker.engine.stop_criteria import StopCriteria
from worker.engine.tools.tool_use import ToolUse
from worker.engine.transfer import PendingIds
from worker.engine.update import Failure
from worker.engine.vocabulary import NO_TOKEN, Vocabulary

log = logging.getLogger(__name__)

#: Dependents copy at most this many times as many positions in a step as prompts may have in it. So a step with copies
#: takes little longer than one with a prompt: a position is copied at least 100 times as fast as it is computed.
_COPIES_PER_PREFILLED = 16


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
        prefix_cache: bool = True,
        tool_use: Callable[[], ToolUse] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `slots` sequences run at once, in KV memory for `kv_tokens` tokens.

        `prefix_cache`: sequences with equal beginnings compute the keys and values of these once. `tool_use` makes the
        tools of a sequence whose request has `tools`; None: there are none. `clock` returns seconds; time limits use
        it. Raises ValueError if `vocabulary` does not fit the model, or if a size is too
        small.
        """
        config = model.config
        if vocabulary.size != config.vocab_size:
            raise ValueError(f"the vocabulary has {vocabulary.size} ids and the model {config.vocab_size}")
        self.model = model
        self.vocabulary = vocabulary
        self.kv_budget = KvBudget(kv_tokens)
        self._scheduler = Scheduler(self.kv_budget, slots=slots, prefill_chunk_tokens=prefill_chunk_tokens)
        full_context = self.kv_budget.need(config.sequence_len, 0)
        #: Size of every extent if each slot has room for a full context: extents then lie at equal distances, and the
        #: attention of all rows takes the fewest calls. None: each extent has the size that its sequence needs.
        self._extent_size = full_context if slots * full_context <= self.kv_budget.capacity else None
        # Ordinary tensors, not inference tensors: an abort clears places outside of a step.
        self._cache = KvCache(
            config,
            self.kv_budget.capacity,
            model.device,
            clears=model.reads_beyond,
            equal_extents=self._extent_size is not None,
        )
        self._prefixes = PrefixReuse(
            self._cache, enabled=prefix_cache, max_copied=_COPIES_PER_PREFILLED * prefill_chunk_tokens
        )
        self._sampler = fastest_sampler(vocabulary, model.device)
        self._tool_use = tool_use
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        self._batches = BatchReuse(self._scheduler, model.device.torch_device)
        self._unreported = Unreported(self._scheduler)

    @property
    def running(self) -> int:
        """Number of sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Number of sequences that wait for a row or for KV memory."""
        return len(self._scheduler.waiting)

    @property
    def suspect(self) -> str | None:
        """Id of the sequence that the next step would run alone, or None.

        The step may admit or end sequences before it runs the model; `before_run` gets the final answer.
        """
        suspect = self._scheduler.suspect
        return None if suspect is None else suspect.id

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        return bool(self._sequences or self._unreported.has_ends)

    @property
    def free_kv_tokens(self) -> int:
        """Tokens of KV memory that no running sequence has reserved."""
        return self.kv_budget.free

    def add_request(self, request: SequenceRequest) -> Sequence:
        """Add a request to the queue. Raises ValueError, with a message for the sender, if it can never run."""
        if request.id in self._sequences:
            raise ValueError(f"there is already a sequence {request.id!r}")
        check_request(request, self.model.config)
        self._sampler.check(request)
        stop_criteria = StopCriteria(request, self.vocabulary)
        sequence = Sequence(
            request=request,
            tokens=list(request.generated),
            stop_criteria=stop_criteria,
            uniforms=UniformStream(request.sampling.seed or 0, request.choice),
            adjustment=Adjustment.of(request, stop_criteria.stop_ids),
            tools=self._tool_use() if request.tools and self._tool_use is not None else None,
            deadline=None if request.time_limit_s is None else self._clock() + request.time_limit_s,
            reported=len(request.generated),
        )
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        finish: FinishReason | None = None
        forced: tuple[int, ...] = ()
        for token in request.generated:
            if finish is None:
                finish, forced = self._count(sequence, token)
        # An earlier attempt may have ended between a token and those that must follow it.
        if (finish := finish or self._force(sequence, forced)) is not None:
            self._end(sequence, finish)  # an earlier attempt generated all its tokens, but its end was not recorded
        return sequence

    def abort(self, sequence_id: str) -> None:
        """End a sequence as cancelled. The next step reports it. An unknown id, or one that has ended, is ignored."""
        if sequence_id in self._sequences:
            self._end(self._sequences[sequence_id], FinishReason.CANCELLED)

    @torch.inference_mode()
    def step(
        self, before_run: Callable[[str | None], None] = lambda _: None, *, hold_until: float = -math.inf
    ) -> StepReport:
        """Admit waiting sequences, run one batch, sample, and report.

        `before_run` is called before the model runs, with the id of the suspect that runs alone, or None. If the step
        ends before `hold_until`, a time of the engine's clock, its tokens wait for the next report, unless one of them
        is the first of its sequence, a sequence has ended, or a suspect runs alone. Raises the error of the device if
        this process can no longer use it (see `device_errors.is_fatal`).
        """
        self._end_overdue()
        self._admit()
        suspect = self.suspect
        before_run(suspect)
        chunks = self._batches.plan()
        if chunks:
            failure = self._forward_and_sample(chunks)
            if failure is not None:
                self._retry_row_by_row(chunks)
        report = self._report(chunks, hold_until=hold_until if suspect is None else -math.inf)
        if not self._sequences:
            self.check_idle()
        return report

    def check_idle(self) -> None:
        """Raise RuntimeError if the engine still holds something. Call this when no sequence is left."""
        held = {
            "reserved tokens": self.kv_budget.reserved,
            "extents of the cache": self._cache.in_use,
            "rows": self.running,
            "waiting sequences": self.waiting,
        }
        if any(held.values()):
            raise RuntimeError(f"the engine is idle and still holds {held}")

    def _end_overdue(self) -> None:
        """End the sequences that have reached their time limit."""
        now = self._clock()
        for sequence in [*self._sequences.values()]:
            if sequence.deadline is not None and now >= sequence.deadline:
                self._end(sequence, FinishReason.DEADLINE)

    def _admit(self) -> None:
        """Give rows and KV memory to waiting sequences, as far as both are free."""
        if admitted := self._scheduler.admit():
            self._prefixes.publish()
            for sequence in admitted:
                self._prefixes.place(sequence, self._extent_size or self._scheduler.need(sequence))
        self._prefixes.start_dependents()

    def _forward_and_sample(self, chunks: Rows[Chunk]) -> Failure | None:
        """Run the model on `chunks` and sample. Returns None, or what went wrong.

        Raises the error of the device if this process can no longer use it.
        """
        try:
            batch = self._batches.take(chunks)
            logits = self._forward(batch)
            self._sample(batch, logits)
        except Exception as error:
            if is_fatal(error):
                raise
            log.warning("a step failed", exc_info=True)
            return Failure(f"{type(error).__name__}: {error}", out_of_memory=is_out_of_memory(error))
        return None

    def _forward(self, batch: Batch) -> Tensor:
        """Run the model on a batch. Returns its logits (R, V)."""
        for chunk in batch.chunks:
            chunk.extent.touched = chunk.end
        return self.model.forward(batch, self._cache)

    def _sample(self, batch: Batch, logits: Tensor) -> None:
        """Draw the next tokens and add them to their sequences. No sequence changes before every draw has succeeded."""
        rows = [row for row, output in enumerate(batch.outputs) if output.draws]
        tokens: list[int] = []
        for row, output in enumerate(batch.outputs):
            if output.keeps:
                output.sequence.prompt_logits = logits[row].tolist()
        drawn_from = logits if len(rows) == len(batch.outputs) else logits[rows]
        # Taken from the logits before requests change them.
        logprobs = BatchLogprobs(batch, logits, drawn_from) if batch.scored or batch.logged else None
        if rows:
            sequences = [batch.outputs[row].sequence for row in rows]
            if batch.adjusted:
                adjust(drawn_from, [(row, sequences[row]) for row in batch.adjusted])
            ids = self._sampler.draw(drawn_from, sequences)
            pending = PendingIds(ids)
            self._batches.feed(batch, ids)  # on the device, while the ids are copied to the host
            if logprobs is not None:
                logprobs.choose(ids)
            tokens = pending.wait()
        for chunk in batch.chunks:
            chunk.extent.filled = chunk.end
        if logprobs is not None:
            logprobs.keep_prompts()
        records = itertools.repeat(b"", len(rows)) if logprobs is None else map(logprobs.record, range(len(rows)))
        for row, token, record in zip(rows, tokens, records, strict=True):
            self._append(batch.outputs[row].sequence, token, record)
        self._batches.keep(batch)

    def _retry_row_by_row(self, chunks: Rows[Chunk]) -> None:
        """Run each chunk of a failed step alone, and end the sequences whose chunk fails again."""
        log.warning("the %d sequences of the failed step run again, one by one", len(chunks))
        for chunk in chunks:
            if (failure := self._forward_and_sample([chunk])) is not None:
                log.warning("sequence %s failed again when it ran alone", chunk.sequence.id)
                self._end(chunk.sequence, FinishReason.ERROR, failure)

    def _append(self, sequence: Sequence, token: int, record: bytes) -> None:
        """Add a drawn token with the record of its log-probabilities to its sequence, or end the sequence."""
        if token == NO_TOKEN:
            self._end(sequence, FinishReason.ERROR, Failure("the model's logits are not finite"))
        elif sequence.stop_criteria.is_stop(token):
            sequence.stop_id = token
            sequence.logprobs += record
            self._end(sequence, FinishReason.STOP)
        else:
            sequence.tokens.append(token)
            if record:
                sequence.logprobs += record
            finish, forced = self._count(sequence, token)
            if (finish := finish or self._force(sequence, forced)) is not None:
                self._end(sequence, finish)

    def _force(self, sequence: Sequence, forced: Iterable[int]) -> FinishReason | None:
        """Add tokens that must follow, such as the result of a calculation. Returns why the text ends with them."""
        for token in forced:
            sequence.add_forced(token)
            self._scheduler.changed()
            finish, _ = self._count(sequence, token)
            if finish is not None:
                return finish
        return None

    @staticmethod
    def _count(sequence: Sequence, token: int) -> tuple[FinishReason | None, tuple[int, ...]]:
        """Count a token of the answer. Returns why the text ends after it, if it does, and what must follow it."""
        if sequence.tools is None:
            return sequence.stop_criteria.push(token), ()
        forced = sequence.tools.push(token)
        return sequence.stop_criteria.push(token, in_text=sequence.tools.in_text), forced

    def _end(self, sequence: Sequence, finish: FinishReason, error: Failure | None = None) -> None:
        """Free all that a sequence holds; the next report contains its end."""
        sequence.finish = finish
        sequence.error = error
        self._scheduler.remove(sequence)
        self._prefixes.end(sequence)
        del self._sequences[sequence.id]
        self._unreported.add_end(sequence)

    def _report(self, chunks: Rows[Chunk], *, hold_until: float) -> StepReport:
        """The report of a step that ran `chunks`. Before `hold_until`, updates are held unless one is urgent."""
        held = self._clock() < hold_until and not self._unreported.is_urgent
        decoded = sum(chunk.length == 1 for chunk in chunks)
        prefilled = sum(chunk.length for chunk in chunks) - decoded
        return StepReport([] if held else self._unreported.take(), held, decoded, prefilled)
