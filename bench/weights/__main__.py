"""Compares forms of the weights and ways to compute: gain of speed and memory, loss of quality.

    python -m bench.weights --shape 24,1536,12,65536 --threads 2 --tokens 8
    python -m bench.weights --shape 24,1536,12,65536 --threads 1 --tokens 2 --prompt 512 --batch 1
    python -m bench.weights --checkpoint checkpoints/step_003650

A form is a value of CELERIAC_WEIGHTS, and `+fast` after it means fast compute. The first of `--forms` is the one that
the others are compared with. A round decodes each batch with all forms, one after the other. Figures are medians of
the rounds, and a gain is computed within a round. With one thread, times are processor time, so that other programs
disturb them less.

The loss is measured with a checkpoint on documents that it was not trained on: the held-out sums of
examples/arithmetic, or the lines of `--text`. `nats` is the cross entropy of the actual next token with the first form.
`kl` is the divergence of a form's distribution of the next token from that of the first form. Both are means over all
positions. `same_top` is the share of positions at which both forms have the same most likely token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.decoding import Run, prompts, timed_decode
from bench.options import add_decoding_options, add_model_options, batch_sizes
from bench.report import report
from bench.source import Source, source_of
from bench.weights.engines import engine_of
from bench.weights.loss import Document, held_out_sums, measure_quality
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.architecture.weight_form import Compute, WeightForm
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.native.model import NativeModel
from worker.jobs.prompt import encode_prompt

#: Each form and way to compute.
FORMS: dict[str, tuple[WeightForm, Compute]] = {
    "exact": ("exact", "exact"),
    "exact+fast": ("exact", "fast"),
    "bf16": ("bf16", "exact"),
    "bf16+fast": ("bf16", "fast"),
    "int8": ("int8", "exact"),
    "int8+fast": ("int8", "fast"),
}
#: Longest document whose loss is measured, in tokens.
LONGEST = 1024


def gains(models: dict[str, NativeModel], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all forms. Returns a row for each batch size and form."""
    batches = batch_sizes(args)
    sizes = {"slots": max(batches), "tokens": args.prompt + args.tokens}
    engines = {form: engine_of(model, **sizes) for form, model in models.items()}
    first, *_ = engines
    vocab_size = models[first].config.vocab_size
    clock = time.process_time if args.threads == 1 else time.perf_counter
    runs: dict[int, list[dict[str, Run]]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            texts = prompts(batch, args.prompt, vocab_size)
            forms = list(engines) if round_ % 2 else list(engines)[::-1]
            run = {form: timed_decode(engines[form], texts, args.tokens, clock=clock) for form in forms}
            if round_:
                runs[batch].append(run)
    return [row_of(first, form, batch, rounds) for batch, rounds in runs.items() for form in engines]


def row_of(first: str, form: str, batch: int, rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """Return the figures of a form beside those of the first one."""
    decoding = sorted(run[first].decode_s / run[form].decode_s for run in rounds)
    return {
        "batch": batch,
        "form": form,
        "step_ms": statistics.median(1000 * run[form].decode_s / run[form].steps for run in rounds),
        "gain": statistics.median(decoding),
        "gains": [round(decoding[0], 2), round(decoding[-1], 2)],
        "prefill_gain": statistics.median(run[first].prefill_s / run[form].prefill_s for run in rounds),
    }


def load(source: Source, forms: list[str], threads: int) -> dict[str, NativeModel]:
    """Load a model in several forms."""
    device = Device.choose("cpu", threads=threads)
    models: dict[str, NativeModel] = {}
    for form in forms:
        model = load_weights(source.config, source.weights, device, *FORMS[form])
        if not isinstance(model, NativeModel):
            sys.exit("the forms are those of the compiled kernels, and they are not available here")
        models[form] = model
    return models


def documents_of(args: argparse.Namespace, vocab_size: int) -> list[Document]:
    """Return the held-out sums, or the lines of `--text`."""
    if args.text is None:
        return held_out_sums()[: args.documents]
    tokenizer = load_tokenizer(find(args.checkpoint, Path()), vocab_size)
    lines = [line for line in args.text.read_text().splitlines() if line][: args.documents]
    return [Document(list(encode_prompt(tokenizer, line)[0])[:LONGEST], 0) for line in lines]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.weights", description="Compare forms of the weights: speed, memory and quality."
    )
    add_model_options(parser)
    add_decoding_options(parser, tokens=50)
    parser.add_argument(
        "--forms", default="exact,bf16,bf16+fast,int8,int8+fast", help="forms, separated by commas (%(default)s)"
    )
    parser.add_argument("--text", type=Path, help="file with one document a line, used instead of sums")
    parser.add_argument("--documents", type=int, default=1000, help="number of documents at most (%(default)s)")
    args = parser.parse_args()
    forms = args.forms.split(",")
    if unknown := set(forms) - FORMS.keys():
        parser.error(f"unknown forms: {', '.join(unknown)}. There are {', '.join(FORMS)}")
    source = source_of(args.shape, args.checkpoint)
    models = load(source, forms, args.threads)
    rows = gains(models, args)
    right = None
    if not args.shape:
        documents = documents_of(args, source.config.vocab_size)
        qualities = measure_quality(forms[0], models, documents)
        for form in forms[1:]:
            rows += qualities[form].rows(form)
        if args.text is None:
            right = {"documents": len(documents)} | {form: quality.right for form, quality in qualities.items()}
    report(
        "weights",
        rows,
        quiet=args.json,
        model=source.name,
        rounds=args.rounds,
        matrix_bytes={form: model.matrix_bytes for form, model in models.items()},
        right_answers=right,
    )


if __name__ == "__main__":
    main()
