"""Decoding in steps of a few fixed shapes, each recorded once and then repeated.

Rows and keys are rounded up to the next rung of a ladder. Rows that only fill up a rung write to a place of the cache
that is no sequence's. Steps with prompts in them go through the model as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache
from worker.engine.torch.cuda_graphs import Step
from worker.engine.torch.graph_attention import gathered_calls
from worker.engine.torch.model import Model

log = logging.getLogger(__name__)

#: Rungs of rows; above, multiples of the second figure.
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_MANY_ROWS = 32
#: The lowest rung of keys; above, powers of two up to the context.
_FEWEST_KEYS = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """A rung: the step has `rows` rows, which see `keys` keys at most."""

    rows: int
    keys: int

    @classmethod
    def of(cls, rows: int, keys: int, context: int) -> Shape:
        """The smallest that has room for `rows` rows and `keys` keys, of `context` at most."""
        rung = next((rung for rung in _ROWS if rung >= rows), -(-rows // _MANY_ROWS) * _MANY_ROWS)
        return cls(rung, min(context, max(_FEWEST_KEYS, 1 << (keys - 1).bit_length())))


class StaticStep:
    """A decoding step of one shape, whose inputs lie at fixed addresses."""

    def __init__(self, shape: Shape, model: Model, cache: KvCache) -> None:
        self._shape = shape
        self._model = model
        self._cache = cache
        device = model.device.torch_device
        #: The figures of a row that only fills up: it reads and writes the spare place, whatever its token.
        self._filler = torch.tensor([[0], [-1], [0], [cache.spare]], device=device)
        columns = self._filler.repeat(1, shape.rows)
        tokens, previous, positions, places = columns
        self._batch = Batch(
            columns=columns,
            tokens=tokens,
            previous=previous,
            positions=positions,
            # The table of angles is made for all positions before it is recorded where it lies.
            last_position=model.config.sequence_len - 1,
            places=places,
            chunks=[],
            longest=1,
            wanted=None,
            outputs=[],
        )

    def take(self, batch: Batch) -> None:
        """Put the rows of `batch`, no more than the shape has, in place."""
        rows = batch.columns.shape[1]
        self._batch.columns[:, :rows].copy_(batch.columns)
        self._batch.columns[:, rows:].copy_(self._filler)

    def __call__(self) -> Tensor:
        """The logits (rows, V), fp32."""
        batch, config = self._batch, self._model.config
        calls = gathered_calls(
            batch.positions, batch.places, self._shape.keys, frozenset(config.windows), self._cache.memory
        )
        return self._model.run(batch, self._cache, calls)


class StaticDecode:
    """A model that records its decoding steps, each shape at its first step.

    Where one cannot be recorded, a warning says why and no more are tried: what has no record then goes through the
    model as it is, which takes longer and gives the same tokens. If the device itself is broken, that raises.
    """

    #: Steps with prompts do.
    reads_beyond = True

    def __init__(self, model: Model, record: Callable[[Step], Step]) -> None:
        """`record` is as `worker.engine.torch.cuda_graphs.CudaGraphs.record`."""
        self._model = model
        self._record = record
        self._records = True
        #: The cache that the recorded steps read and write.
        self._cache: KvCache | None = None
        #: By shape: the step, which takes the inputs, and its record, which runs it.
        self._recorded: dict[Shape, tuple[StaticStep, Step]] = {}

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def device(self) -> Device:
        return self._model.device

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """As `worker.engine.torch.model.Model.forward`; the logits of a decoding step are valid until the next one."""
        if not batch.decodes_only:
            return self._model.forward(batch, cache)
        if cache is not self._cache:
            self._cache = cache
            self._recorded = {}
        rows = batch.columns.shape[1]
        shape = Shape.of(rows, batch.last_position + 1, self.config.sequence_len)
        if shape in self._recorded:
            step, run = self._recorded[shape]
            step.take(batch)
            return run()[:rows]
        if self._records:
            try:
                return self._first(shape, batch, cache)[:rows]
            except RuntimeError as error:  # that of the device's memory and of its driver are such, too
                self._records = False
                log.warning(
                    "the decoding step of %d rows and %d keys could not be recorded, and no more will be tried: "
                    "decoding goes on without: %s",
                    shape.rows,
                    shape.keys,
                    error,
                )
        return self._model.forward(batch, cache)

    def _first(self, shape: Shape, batch: Batch, cache: KvCache) -> Tensor:
        """Record the step of a shape and run it for `batch`."""
        step = StaticStep(shape, self._model, cache)
        step.take(batch)
        run = self._record(step)
        logits = run()
        self._recorded[shape] = step, run
        return logits
