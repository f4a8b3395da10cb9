"""Drawing the next tokens with compiled kernels: the same ids as `torch_sampler`, as one call a step."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from worker.engine.native.library import Row
from worker.engine.native.thread_tuner import ThreadTuner
from worker.engine.request import SequenceRequest
from worker.engine.sampling.forbidden_ids import ForbiddenIds
from worker.engine.sequence import Sequence
from worker.engine.vocabulary import Vocabulary

#: Logits of a step below which one thread draws for all rows: to wake another one up takes longer.
_LOGITS_FOR_THREADS = 2**17


class NativeSampler:
    """Draws for a batch. What depends on the requests alone is kept while the batch stays the same."""

    def __init__(self, vocabulary: Vocabulary, kernels: ctypes.CDLL, *, fixed_threads: bool = False) -> None:
        """As many threads as torch has at this time, always where `fixed_threads` is set, else fewer where that is
        faster."""
        self._kernels = kernels
        self._size = vocabulary.size
        self._forbidden = ForbiddenIds(vocabulary, torch.int32, torch.device("cpu"))
        threads = torch.get_num_threads()
        self._tuner = ThreadTuner(threads, fixed=fixed_threads)
        self._workspace = torch.empty(threads * kernels.celeriac_draw_bytes(self._size), dtype=torch.uint8)
        self._batch: list[Sequence] = []
        self._rows: list[Row] = []
        self._rows_address = 0
        self._drawn = torch.empty(0, dtype=torch.int64)

    def check(self, request: SequenceRequest) -> None:
        """ValueError if there is no id that `request` may sample."""
        self._forbidden.check(request)

    def draw(self, logits: Tensor, batch: Rows[Sequence]) -> Tensor:
        """The next token for each row of `logits` (R, V), fp32, as ids (R,) that are valid until the next call;
        NO_TOKEN where the row is not finite."""
        if logits.shape != (len(batch), self._size) or logits.dtype is not torch.float32:
            raise ValueError(
                f"logits for {len(batch)} rows of {self._size} ids are {tuple(logits.shape)} {logits.dtype}"
            )
        if self._batch != batch:
            self._prepare(list(batch))
        for row, sequence in zip(self._rows, batch, strict=True):
            row.index = len(sequence.tokens)
        logits = logits.contiguous()
        if len(batch) == 1 or logits.numel() < _LOGITS_FOR_THREADS:
            self._run(logits, 1)
        else:
            sharing = self._tuner.choose(len(batch))
            began = time.perf_counter()
            self._run(logits, sharing.threads)
            self._tuner.record(len(batch), sharing, time.perf_counter() - began)
        return self._drawn

    def _run(self, logits: Tensor, threads: int) -> None:
        self._kernels.celeriac_draw(
            logits.data_ptr(),
            len(self._rows),
            self._size,
            self._rows_address,
            self._workspace.data_ptr(),
            self._drawn.data_ptr(),
            threads,
        )

    def _prepare(self, batch: list[Sequence]) -> None:
        rows = (Row * len(batch))()
        for row, sequence in zip(rows, batch, strict=True):
            sampling = sequence.request.sampling
            forbidden = self._forbidden.of(sequence.request)
            row.temperature = sampling.temperature
            row.top_p = 1.0 if sampling.top_p is None else sampling.top_p
            row.top_k = min(sampling.top_k or self._size, self._size)
            row.seed = sampling.seed or 0
            row.forbidden = None if forbidden is None else forbidden.data_ptr()
        self._rows = list(rows)
        self._rows_address = ctypes.addressof(rows)
        self._drawn = torch.empty(len(batch), dtype=torch.int64)
        self._batch = batch
