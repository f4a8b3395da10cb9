"""Draws the next tokens with compiled kernels: the same ids as `torch_sampler`, as one call for each step."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from worker.engine.native.library import Long, Pointer
from worker.engine.native.thread_tuner import ThreadTuner
from worker.engine.request import SequenceRequest
from worker.engine.sampling.forbidden_ids import ForbiddenIds
from worker.engine.sequence import Sequence
from worker.engine.vocabulary import Vocabulary

#: With fewer logits in a step than this, one thread draws for all rows: to wake another thread would take longer.
_LOGITS_FOR_THREADS = 2**17


class SamplingRow(ctypes.Structure):
    """The sampling fields of a row's request. The C struct, with its comments, is in sampling.h."""

    _fields_ = (
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("top_k", Long),
        ("seed", ctypes.c_uint64),
        ("index", ctypes.c_uint64),
        ("choice", ctypes.c_uint64),
        ("forbidden", Pointer),
    )


class NativeSampler:
    """Draws the next token of each row. The rows' sampling fields are kept while the batch stays the same."""

    def __init__(self, vocabulary: Vocabulary, kernels: ctypes.CDLL, *, fixed_threads: bool = False) -> None:
        """Uses at most as many threads as torch has at this time. `fixed_threads`: always as many, even if fewer are
        faster."""
        self._kernels = kernels
        self._size = vocabulary.size
        self._forbidden = ForbiddenIds(vocabulary, torch.int32, torch.device("cpu"))
        threads = torch.get_num_threads()
        self._tuner = ThreadTuner(threads, fixed=fixed_threads)
        self._workspace = torch.empty(threads * kernels.celeriac_draw_bytes(self._size), dtype=torch.uint8)
        self._batch: list[Sequence] = []
        self._rows: list[SamplingRow] = []
        self._rows_address = 0
        #: Owners of the masks to which the rows point.
        self._masks: list[Tensor | None] = []
        self._drawn = torch.empty(0, dtype=torch.int64)

    def check(self, request: SequenceRequest) -> None:
        """Raises ValueError if there is no id that `request` may sample."""
        self._forbidden.check(request)

    def draw(self, logits: Tensor, batch: Rows[Sequence]) -> Tensor:
        """Draw the next token for each row of `logits` (R, V), fp32.

        Returns ids (R,), NO_TOKEN for a row that is not finite. The next call may overwrite them.
        """
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
            started_at = time.perf_counter()
            self._run(logits, sharing.threads)
            self._tuner.record(len(batch), sharing, time.perf_counter() - started_at)
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
        """Fill in the fields that stay the same from step to step."""
        rows = (SamplingRow * len(batch))()
        self._masks = [self._forbidden.of(sequence.request) for sequence in batch]
        for row, sequence, forbidden in zip(rows, batch, self._masks, strict=True):
            sampling = sequence.request.sampling
            row.temperature = sampling.temperature
            row.top_p = 1.0 if sampling.top_p is None else sampling.top_p
            row.min_p = sampling.min_p or 0.0
            row.top_k = min(sampling.top_k or self._size, self._size)
            row.seed = sampling.seed or 0
            row.choice = sequence.request.choice
            row.forbidden = None if forbidden is None else forbidden.data_ptr()
        self._rows = list(rows)
        self._rows_address = ctypes.addressof(rows)
        self._drawn = torch.empty(len(batch), dtype=torch.int64)
        self._batch = batch
