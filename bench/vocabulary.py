"""Measures which part of a step the head and sampling take in models with many ids.

    python -m bench.vocabulary --checkpoint FOLDER --ids 49152,151936 --batch 32
    python -m bench.vocabulary --shape 24,1536,12,32 --ids 65536 --weights int8

The model has the layers of the checkpoint, and as many ids as `--ids` says: the rows of its embedding and of its head
are repeated. It is compared with the same layers with 64 ids, whose head and sampling take next to no time. In a round
all models decode the same batches, one after the other, greedily and with `top_p`. The first round is a warm-up.
Figures are medians of the other rounds; shares are computed within a round.

`elements_share` is the head's share of all elements of matrices: if every element cost the same, the head alone would
take this share of a step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.decoding import GREEDY, prompts, timed_decode
from bench.engine.measured_model import matrix_elements
from bench.options import add_decoding_options, add_form_options, add_model_options, batch_sizes
from bench.report import report
from bench.source import Source, source_of
from tasks.sampling_params import SamplingParams
from worker.engine.architecture.tensors import EMBEDDING, HEAD
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.kv.budget import KvBudget
from worker.engine.vocabulary import Vocabulary

#: A number of ids whose head and sampling take next to no time.
FEW = 64
#: The samplings that are measured.
SAMPLINGS = {"greedy": GREEDY, "top_p": SamplingParams(temperature=0.8, top_p=0.95, seed=1)}


class Resized(Mapping[str, Tensor]):
    """The weights of a model with another number of ids: its rows are repeated, or left out."""

    def __init__(self, weights: Mapping[str, Tensor], ids: int) -> None:
        self._weights = weights
        self._ids = ids

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        has_ids = name in (EMBEDDING, HEAD) or name.startswith("value_embeds.")
        return tensor[torch.arange(self._ids) % len(tensor)] if has_ids else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def engine_of(source: Source, ids: int, args: argparse.Namespace) -> Engine:
    """Return an engine with the layers of a model and with `ids` ids."""
    config = replace(source.config, vocab_size=ids, rows=ids)
    device = Device.choose("cpu", threads=args.threads)
    slots = max(batch_sizes(args))
    return Engine(
        load_weights(config, Resized(source.weights, ids), device, args.weights, args.compute),
        Vocabulary.without_text(ids),
        slots=slots,
        kv_tokens=slots * KvBudget.need(args.prompt, args.tokens),
        prefill_chunk_tokens=256,
        prefix_cache=False,
    )


def measure(source: Source, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all rounds. Returns a row for each number of ids and each batch size."""
    counts = [int(count) for count in args.ids.split(",")]
    engines = {ids: engine_of(source, ids, args) for ids in (FEW, *counts)}
    rows = []
    for batch in batch_sizes(args):
        texts = prompts(batch, args.prompt, FEW)
        rounds: list[dict[tuple[int, str], float]] = []
        for _ in range(args.rounds + 1):
            steps = {}
            for ids, engine in engines.items():
                for name, sampling in SAMPLINGS.items():
                    run = timed_decode(engine, texts, args.tokens, sampling=sampling)
                    steps[ids, name] = 1000 * run.decode_s / run.steps
            rounds.append(steps)
        rows += [row_of(source, ids, batch, rounds[1:]) for ids in counts]
    return rows


def row_of(source: Source, ids: int, batch: int, rounds: list[dict[tuple[int, str], float]]) -> dict[str, Any]:
    """Return the figures of a model with `ids` ids. `rounds` have the time of a step by ids and sampling, in ms."""
    layers, head = matrix_elements(replace(source.config, vocab_size=ids, rows=ids))
    row: dict[str, Any] = {"ids": ids, "batch": batch, "elements_share": round(head / (layers + head), 3)}
    for name in SAMPLINGS:
        row[f"{name}_step_ms"] = statistics.median(steps[ids, name] for steps in rounds)
        shares = sorted(1 - steps[FEW, "greedy"] / steps[ids, name] for steps in rounds)
        row[f"{name}_share"] = round(statistics.median(shares), 3)
        row[f"{name}_shares"] = [round(share, 3) for share in shares]
    return row


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.vocabulary", description="Measure which part of a step the head and sampling take."
    )
    add_model_options(parser)
    add_decoding_options(parser, tokens=32)
    add_form_options(parser)
    parser.add_argument("--ids", default="49152,151936", help="numbers of ids, separated by commas (%(default)s)")
    args = parser.parse_args()
    source = source_of(args.shape, args.checkpoint)
    report(
        "vocabulary",
        measure(source, args),
        quiet=args.json,
        model=source.name,
        weights=args.weights,
        compute=args.compute,
        rounds=args.rounds,
        tokens=args.tokens,
        prompt=args.prompt,
    )


if __name__ == "__main__":
    main()
