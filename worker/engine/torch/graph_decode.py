"""Decoding with CUDA graphs: steps of a few fixed shapes, each captured once and then replayed.

Rows and keys are rounded up to fixed sizes. Rows that only pad a step write to a place of the cache that belongs to no
sequence. Steps that contain prompts go through the model without a graph.
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
from worker.engine.torch.graph_attention import graph_attention_calls
from worker.engine.torch.model import Model

log = logging.getLogger(__name__)

#: Numbers of rows that steps are captured with; beyond the last one, multiples of `_ROW_MULTIPLE`.
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_ROW_MULTIPLE = 32
#: The smallest number of keys; beyond it, powers of two up to the context.
_MIN_KEYS = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a captured step: `rows` rows, each of which attends to at most `keys` keys."""

    rows: int
    keys: int

    @classmethod
    def of(cls, rows: int, keys: int, context: int) -> Shape:
        """The smallest shape that has room for `rows` rows and `keys` keys, of at most `context`."""
        rounded = next((size for size in _ROWS if size >= rows), -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE)
        return cls(rounded, min(context, max(_MIN_KEYS, 1 << (keys - 1).bit_length())))


class CapturedStep:
    """A decoding step of one shape, with its inputs at fixed addresses, so that it can be captured."""

    def __init__(self, shape: Shape, model: Model, cache: KvCache) -> None:
        self._shape = shape
        self._model = model
        self._cache = cache
        device = model.device.torch_device
        #: The inputs of a padding row: it reads and writes the spare place, and its token does not matter.
        self._padding = torch.tensor([[0], [-1], [0], [cache.spare]], device=device)
        columns = self._padding.repeat(1, shape.rows)
        tokens, previous, positions, places = columns
        self._batch = Batch(
            columns=columns,
            tokens=tokens,
            previous=previous,
            positions=positions,
            # The table of angles is built for all positions before the step is captured, so that it never moves.
            last_position=model.config.sequence_len - 1,
            places=places,
            chunks=[],
            longest=1,
            wanted=None,
            outputs=[],
        )

    def set_inputs(self, batch: Batch) -> None:
        """Copy the rows of `batch`, at most as many as the shape has, to the inputs."""
        rows = batch.columns.shape[1]
        self._batch.columns[:, :rows].copy_(batch.columns)
        self._batch.columns[:, rows:].copy_(self._padding)

    def __call__(self) -> Tensor:
        """Run the step on its inputs: the logits (rows, V), fp32."""
        batch, config = self._batch, self._model.config
        calls = graph_attention_calls(
            batch.positions, batch.places, self._shape.keys, frozenset(config.windows), self._cache.memory
        )
        return self._model.run(batch, self._cache, calls)


class GraphDecode:
    """A model that captures its decoding steps. Each shape is captured at the first step that needs it.

    If a capture fails, a warning gives the reason and no more captures are tried. Steps without a graph then go through
    the model directly, which takes longer and gives the same tokens. If the device itself is broken, that raises.
    """

    #: Steps that contain prompts run `Model`, whose attention may read beyond.
    reads_beyond = True

    def __init__(self, model: Model, capture: Callable[[Step], Step]) -> None:
        """`capture` works like `worker.engine.torch.cuda_graphs.CudaGraphs.capture`."""
        self._model = model
        self._capture = capture
        self._can_capture = True
        #: The cache that the captured steps read and write.
        self._cache: KvCache | None = None
        #: For each shape, the step, which holds the inputs, and its graph, which runs it.
        self._captured: dict[Shape, tuple[CapturedStep, Step]] = {}

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def device(self) -> Device:
        return self._model.device

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Like `Model.forward`. The logits of a decoding step are valid until the next one."""
        if not batch.decodes_only:
            return self._model.forward(batch, cache)
        if cache is not self._cache:
            self._cache = cache
            self._captured = {}
        rows = batch.columns.shape[1]
        shape = Shape.of(rows, batch.last_position + 1, self.config.sequence_len)
        if shape in self._captured:
            step, replay = self._captured[shape]
            step.set_inputs(batch)
            return replay()[:rows]
        if self._can_capture:
            try:
                return self._capture_and_run(shape, batch, cache)[:rows]
            except RuntimeError as error:  # includes errors of the driver and out of memory
                self._can_capture = False
                log.warning(
                    "cannot capture the decoding step of %d rows and %d keys; no more captures are tried, "
                    "and decoding continues without them: %s",
                    shape.rows,
                    shape.keys,
                    error,
                )
        return self._model.forward(batch, cache)

    def _capture_and_run(self, shape: Shape, batch: Batch, cache: KvCache) -> Tensor:
        """Capture the step of a shape and run it for `batch`."""
        step = CapturedStep(shape, self._model, cache)
        step.set_inputs(batch)
        replay = self._capture(step)
        logits = replay()
        self._captured[shape] = step, replay
        return logits
