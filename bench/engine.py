"""Decoding by the engine alone, without queue or HTTP.

    python -m bench.engine --checkpoint checkpoints/step_003650 --batch 1,8,32 --tokens 200

Each batch size is decoded once to warm up, then in rounds, in turns with the others, so that a machine whose speed
drifts does so for all of them. The figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from bench.report import report
from worker.checkpoints import meta
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.loading import load_model

PROMPT_TOKENS = 8
ROUNDS = 5


def decode(engine: Engine, batch: int, tokens: int) -> tuple[float, int]:
    """Seconds and steps of decoding `tokens` for each of `batch` sequences, their first token not counted."""
    for row in range(batch):
        request = SequenceRequest(
            id=f"row-{row}",
            prompt=tuple(1 + (row + position) % 9 for position in range(PROMPT_TOKENS)),
            max_tokens=tokens,
            temperature=0.8,
            seed=row,
            ignore_eos=True,
        )
        engine.submit(request)
    engine.step()
    steps, began = 0, time.perf_counter()
    while engine.has_work:
        engine.step()
        steps += 1
    return time.perf_counter() - began, steps


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Decoding by the engine alone.")
    parser.add_argument("--checkpoint", default="checkpoints/step_003650", help="folder of the checkpoint")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes, separated by commas")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each sequence")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the physical cores")
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batch.split(",")]
    folder = find(args.checkpoint, Path())
    loaded = load_model(
        folder,
        load_tokenizer(folder, meta.read(folder.meta_file).sizes["vocab_size"]),
        device="auto",
        threads=args.threads,
        softcap=None,
        slots=max(batches),
        kv_memory_mb=0,
        prefill_chunk_tokens=PROMPT_TOKENS * max(batches),
    )
    for batch in batches:
        decode(loaded.engine, batch, args.tokens)
    rounds: dict[int, list[tuple[float, int]]] = {batch: [] for batch in batches}
    for _ in range(ROUNDS):
        for batch in batches:
            rounds[batch].append(decode(loaded.engine, batch, args.tokens))
    rows = [
        {
            "batch": batch,
            "tokens_per_s": round(statistics.median(batch * (args.tokens - 1) / s for s, _ in rounds[batch]), 1),
            "step_ms": round(statistics.median(1000 * s / steps for s, steps in rounds[batch]), 3),
        }
        for batch in batches
    ]
    report("engine", rows, checkpoint=loaded.card.name, device=loaded.device.kind, rounds=ROUNDS, tokens=args.tokens)


if __name__ == "__main__":
    main()
