"""Small real models and engines for tests of decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tests.helpers.fake_graph import FakeGraph
from tests.helpers.requests import sequence_request
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.architecture.config import ModelConfig
from worker.engine.backends import load_weights
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.kv.cache import KvCache
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence
from worker.engine.torch.graph_decode import GraphDecode
from worker.engine.torch.model import Model
from worker.engine.vocabulary import Vocabulary

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
#: Every reference checkpoint, as `<era>/<step folder>`.
FOLDERS = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/*/expected.json"))

# The models are tiny. A second thread would mostly wait for a core that other tests use.
torch.set_num_threads(1)


@cache
def checkpoint(folder: str) -> Checkpoint:
    """A reference checkpoint. E5 is E4 with another softcap, which the file does not contain."""
    return load(find(str(GOLDEN / folder), GOLDEN), softcap=20.0 if folder.startswith("E5") else None)


@cache
def model(folder: str) -> DecodingModel:
    """A reference checkpoint on the CPU, on the backend that serves it."""
    found = checkpoint(folder)
    return load_weights(found.config, found.weights, Device("cpu"))


@cache
def torch_model(folder: str) -> Model:
    """A reference checkpoint on the CPU, on torch."""
    found = checkpoint(folder)
    return Model.load(found.config, found.weights, Device("cpu"))


@cache
def graph_model(folder: str) -> GraphDecode:
    """A reference checkpoint on the CPU with the code path of CUDA graphs, and fake graphs."""
    return GraphDecode(torch_model(folder), FakeGraph.capture)


class Bf16Cpu(Device):
    """A CPU with the number format and the operations of a GPU."""

    dtype = torch.bfloat16
    packs = False
    uses_complex = False


def vocabulary(config: ModelConfig) -> Vocabulary:
    """A vocabulary in which all ids but the last four are letters or newlines, and the last but one is the stop id."""
    text = [b"\n" if token % 16 == 7 else bytes([97 + token % 26]) for token in range(config.vocab_size - 4)]
    return Vocabulary(config.vocab_size, (*text, None, None, None, None), frozenset({config.vocab_size - 2}))


def engine(
    decoding: DecodingModel,
    *,
    slots: int = 4,
    kv_tokens: int = 1024,
    prefill_chunk_tokens: int = 16,
    prefix_cache: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """An engine with the vocabulary of `vocabulary`."""
    return Engine(
        decoding,
        vocabulary(decoding.config),
        slots=slots,
        kv_tokens=kv_tokens,
        prefill_chunk_tokens=prefill_chunk_tokens,
        prefix_cache=prefix_cache,
        clock=clock,
    )


def request(name: str, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 8, **fields: object) -> SequenceRequest:
    """A request with defaults: greedy, and it ends only at `max_tokens`. `fields` override them."""
    fields.setdefault("ignore_eos", True)
    return sequence_request(id=name, prompt=prompt, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def run_until_done(running: Engine, sequence: Sequence) -> Sequence:
    """Step an engine until one of its sequences has ended."""
    while sequence.finish is None:
        running.step()
    return sequence


def run_until_idle(running: Engine) -> None:
    """Step an engine until it has no work left, and check that it then holds nothing."""
    while running.has_work:
        running.step()
    running.check_idle()


def decode(running: Engine, one: SequenceRequest) -> Sequence:
    """Add a request to an engine and return its sequence, which has ended."""
    return run_until_done(running, running.add_request(one))


class Tampered:
    """A model that calls `tamper` with each batch and its logits, and returns the logits that `tamper` returns."""

    def __init__(self, decoding: DecodingModel, tamper: Callable[[Batch, Tensor], Tensor]) -> None:
        self._decoding = decoding
        self._tamper = tamper
        self.config = decoding.config
        self.device = decoding.device
        self.reads_beyond = decoding.reads_beyond

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        return self._tamper(batch, self._decoding.forward(batch, cache))
