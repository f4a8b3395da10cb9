"""An engine process in which a step only sleeps, to measure the queue around it.

`python -m bench.queue.sleeping_worker` is its worker. Everything except the model's forward pass is the normal code.
"""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import Tensor

from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.kv.cache import KvCache
from worker.engine_process import loading
from worker.engine_process import main as engine_process
from worker.engine_process.messages import Start
from worker.model_loader import LoadedModel, Progress

#: Environment variable with the duration of a step, in ms.
STEP_MS = "BENCH_STEP_MS"


class SleepingModel:
    """A model that sleeps for each step. All tokens are equally likely."""

    #: It does not read the KV cache.
    reads_beyond = False

    def __init__(self, model: DecodingModel, step_s: float) -> None:
        self.config = model.config
        self.device = model.device
        self._step_s = step_s

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Sleep, and return logits (R, V) that are all zero."""
        time.sleep(self._step_s)
        return torch.zeros(len(batch.outputs), self.config.vocab_size)


def load(start: Start, progress: Progress) -> LoadedModel:
    """Load what `worker.engine_process.loading` loads, and replace the model."""
    loaded = real_load(start, progress)
    loaded.engine.model = SleepingModel(loaded.engine.model, float(os.environ[STEP_MS]) / 1000)
    return loaded


real_load = loading.load_once

if __name__ == "__main__":
    loading.load_once = load
    sys.exit(engine_process.main())
