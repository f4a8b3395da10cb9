"""Decodes with an engine in this process, without a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.sampling_params import SamplingParams
from worker.checkpoints.folder import find
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence
from worker.model_loader import DeviceName, LoadedModel, load_model

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """The result and the times of one batch."""

    #: The generated ids of each text.
    ids: list[list[int]]
    #: From the first prompt to the last token.
    seconds: float
    #: Until every text has its first token.
    prefill_s: float
    #: From then to the last token.
    decode_s: float
    #: Engine steps within `decode_s`.
    steps: int


def load_engine(
    checkpoint: str | Path, root: Path, *, device: DeviceName, threads: int, slots: int
) -> tuple[LoadedModel, Tokenizer]:
    """Load a checkpoint with exact weights, without prefix reuse: every prompt is computed.

    `checkpoint` is a folder's path, or its name below `root`.

    Raises CheckpointError.
    """
    folder = find(str(checkpoint), root)
    tokenizer = load_tokenizer(folder, sizes_of(folder).vocab_size)
    loaded = load_model(
        folder,
        tokenizer,
        device=device,
        threads=threads,
        softcap=None,
        weights="exact",
        slots=slots,
        kv_memory_mb=0,
        prefill_chunk_tokens=256,
        prefix_cache=False,
    )
    return loaded, tokenizer


def run_to_end(engine: Engine, requests: Iterable[SequenceRequest]) -> list[Sequence]:
    """Decode all requests to their ends."""
    sequences = [engine.add_request(request) for request in requests]
    while engine.has_work:
        engine.step()
    return sequences


def prompts(batch: int, length: int, vocab_size: int) -> list[list[int]]:
    """Return `batch` prompts of `length` ids. They differ, so that no two rows do the same work."""
    return [[1 + (7 * row + 3 * position) % (vocab_size - 1) for position in range(length)] for row in range(batch)]


def timed_decode(
    engine: Engine,
    batch: list[list[int]],
    tokens: int,
    *,
    sampling: SamplingParams = GREEDY,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Decode `tokens` tokens for each prompt of `batch`, and measure the time by `clock`, in seconds."""
    sampling = replace(sampling, max_tokens=tokens, ignore_eos=True)
    began = clock()
    sequences = [
        engine.add_request(SequenceRequest(id=str(row), prompt=tuple(prompt), sampling=sampling, every_id=True))
        for row, prompt in enumerate(batch)
    ]
    while not all(sequence.tokens for sequence in sequences):
        engine.step()
    prefilled = clock()
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
    ended = clock()
    ids = [sequence.tokens for sequence in sequences]
    return Run(ids, ended - began, prefilled - began, ended - prefilled, steps)
