"""The log-probabilities that the requests of one batch ask for."""

from __future__ import annotations

from torch import Tensor

from worker.engine.batch import Batch
from worker.engine.sampling.logprobs import ScoredRows, prompt_records, record


class BatchLogprobs:
    """Records of drawn tokens and of prompts, from logits that may change once this object exists."""

    def __init__(self, batch: Batch, logits: Tensor, drawn_from: Tensor) -> None:
        """`logits` (R, V): those of the batch, fp32. `drawn_from`: its rows that draw."""
        self._batch = batch
        self._prompts = [prompt_records(logits, part) for part in batch.scored]
        drawing = [output.sequence for output in batch.outputs if output.draws]
        self._alternatives = {row: drawing[row].request.sampling.logprobs or 0 for row in batch.logged}
        self._rows: ScoredRows | None = None
        if batch.logged:
            rows = drawn_from if len(batch.logged) == len(drawing) else drawn_from[batch.logged]
            self._rows = ScoredRows(rows, max(self._alternatives.values()))
        self._records: dict[int, bytes] = {}

    def choose(self, ids: Tensor) -> None:
        """Take note of the ids that the rows have drawn. Waits for the device if some rows ask for records."""
        if self._rows is not None:
            pairs = self._rows.pairs(ids if len(ids) == len(self._alternatives) else ids[self._batch.logged])
            for (row, alternatives), found in zip(self._alternatives.items(), pairs, strict=True):
                self._records[row] = record(found, alternatives)

    def record(self, row: int) -> bytes:
        """The record of the token that the drawing row number `row` has drawn; b"" if none is asked for."""
        return self._records.get(row, b"")

    def keep_prompts(self) -> None:
        """Give the records of prompts to their sequences."""
        for part, records in zip(self._batch.scored, self._prompts, strict=True):
            part.sequence.prompt_logprobs += records
