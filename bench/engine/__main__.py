"""Measures decoding and prefill of the engine alone, without queue and HTTP, and optionally of something else.

    python -m bench.engine --checkpoint checkpoints/step_003650 --batch 1,8,32 --tokens 200
    python -m bench.engine --shape 24,1536,12,65536 --batch 1,8,32 --tokens 32 --vs transformers
    python -m bench.engine --shape 4,256,4,512 --vs vllm
    python -m bench.engine --checkpoint SmolLM2-135M-Instruct --vs llama.cpp
    python -m bench.engine --shape 24,1536,12,32 --weights bf16 --compute fast --vs fp32
    python -m bench.engine --processor x86-64-v3 --vs transformers

For each batch size, a round measures the limits of the machine, Celeriac and what `--vs` names directly one after the
other, so that a change in the machine's speed affects all of them. The first round is a warm-up. Figures are medians of
the other rounds. Ratios and shares are computed within a round, and their medians are reported.

`--vs` names a peer, or `fp32`: Celeriac itself with the same weights in fp32. Peers get weights of the same form:
`--weights int8` is compared with llama.cpp's Q8_0. If a peer can run the model in several ways, all are measured, and
the ratio is that to the fastest one.

`tokens_per_s` and `step_ms` are of decoding. `ratio` is the peer's time divided by Celeriac's for whole texts, prompts
included; `decode_ratio` is the same for the time after every text has its first token. For a peer on torch that time
begins with the next forward pass, which a hook on its model records. `limit_share` is the least time in which this
machine could do the work (read every matrix and the batch's keys and values, and do the arithmetic in fp32; see
`bench.engine.limits`) divided by the measured time. It can be above 1 for a model that fits into the processor's cache.

`--processor x86-64-v3` runs Celeriac's kernels, torch, oneDNN and MKL, also in the peer, as on a machine that has AVX2
and no AVX-512. The limits are measured in the same way. Clock rates and caches remain those of this machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from bench.decoding import prompts, timed_decode
from bench.engine.baseline import Baseline, OwnEngine
from bench.engine.figures import Round, engine_figures, peer_figures
from bench.engine.limits import LimitMeter
from bench.engine.measured_model import InFp32, matrix_elements, refusal
from bench.engine.older_processor import ENVIRONMENTS, older_device, restart_as
from bench.options import add_decoding_options, add_form_options, add_model_options, batch_sizes
from bench.peers.peer import (
    NEAR_TIE,
    REQUIREMENTS,
    ROUNDED_NEAR_TIE,
    Peer,
    Times,
    default_folder,
    disagreements,
    install,
)
from bench.report import report
from bench.source import Source, source_of
from worker.checkpoints.errors import CheckpointError
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device, physical_cores
from worker.engine.engine import Engine
from worker.engine.kv.budget import KvBudget
from worker.engine.native.library import processor_kinds
from worker.engine.vocabulary import Vocabulary

#: Celeriac itself, with the same weights in fp32.
_OWN = "fp32"


def engine_of(model: DecodingModel, args: argparse.Namespace) -> Engine:
    """Return an engine for the batches of the command line, which decodes bare ids."""
    slots = max(batch_sizes(args))
    return Engine(
        model,
        Vocabulary.without_text(model.config.vocab_size),
        slots=slots,
        kv_tokens=slots * KvBudget.need(args.prompt, args.tokens),
        prefill_chunk_tokens=args.chunk,
        prefix_cache=False,
    )


def measure(args: argparse.Namespace, source: Source, model: DecodingModel, baseline: Baseline | None) -> None:
    """Run all rounds and report."""
    batches = batch_sizes(args)
    engine = engine_of(model, args)
    meter = LimitMeter()
    texts = {batch: prompts(batch, args.prompt, source.config.vocab_size) for batch in batches}
    same = {batch: baseline is None or is_same(args, engine, baseline, texts[batch]) for batch in batches}
    rounds: dict[int, list[Round]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            limits = meter.measure()
            before = round_ % 2
            times = all_variants(baseline, texts[batch], args.tokens) if before else {}
            run = timed_decode(engine, texts[batch], args.tokens)
            if not before:
                times = all_variants(baseline, texts[batch], args.tokens)
            if round_:
                rounds[batch].append(Round(run, times, limits))
    rows = []
    for batch in batches:
        figures = engine_figures(model, batch, rounds[batch], prompt=args.prompt, tokens=args.tokens)
        row = {"batch": batch, **figures}
        if baseline is not None:
            row |= peer_figures(batch, rounds[batch], tokens=args.tokens)
        rows.append(row)
    report(
        "engine",
        rows,
        quiet=args.json,
        checkpoint=source.name,
        device=model.device.kind,
        weights=args.weights,
        compute=args.compute,
        # None: this machine's own processor, without limitation.
        processor=args.processor,
        rounds=args.rounds,
        tokens=args.tokens,
        prompt=args.prompt,
        parameters=sum(matrix_elements(source.config)),
        bytes_per_s=statistics.median(each.limits.bytes_per_s for found in rounds.values() for each in found),
        flop_per_s=statistics.median(each.limits.flop_per_s for found in rounds.values() for each in found),
        peer=None
        if baseline is None
        else {"name": args.vs, "versions": baseline.versions, "same_ids": all(same.values())},
    )


def all_variants(baseline: Baseline | None, texts: list[list[int]], tokens: int) -> dict[str, Times]:
    """Measure all variants of the baseline, one after the other."""
    return {} if baseline is None else {name: baseline.run(texts, tokens, name) for name in baseline.variants}


def is_same(args: argparse.Namespace, engine: Engine, baseline: Baseline, texts: list[list[int]]) -> bool:
    """Whether both generate the same ids. Exits if they differ and that is no near tie."""
    checked = baseline.check(texts, args.tokens)
    ids = timed_decode(engine, texts, args.tokens).ids
    near_tie = ROUNDED_NEAR_TIE if args.vs == "llama.cpp" or args.compute == "fast" else NEAR_TIE
    if different := disagreements(ids, checked, near_tie=near_tie):
        sys.exit(f"batch {len(texts)}: the texts differ\n" + "\n".join(different))
    return ids == checked.ids


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description="Measure decoding and prefill of the engine alone."
    )
    add_model_options(parser)
    add_decoding_options(parser, tokens=100)
    add_form_options(parser)
    parser.add_argument(
        "--chunk", type=int, default=256, help="prompt tokens a step, CELERIAC_PREFILL_CHUNK_TOKENS (%(default)s)"
    )
    parser.add_argument(
        "--processor",
        choices=sorted(ENVIRONMENTS.keys() & processor_kinds()),
        help="run Celeriac, and the peer, as on this older kind of processor",
    )
    parser.add_argument(
        "--vs", choices=(_OWN, *REQUIREMENTS), help="also measure this peer, or Celeriac in fp32, with the same weights"
    )
    parser.add_argument(
        "--peers", type=Path, default=default_folder(), help="folder where peers are installed (%(default)s)"
    )
    args = parser.parse_args()
    if args.processor is not None:
        if args.vs == "llama.cpp":
            parser.error("llama.cpp is compiled for this machine's own processor: leave --processor out")
        restart_as(args.processor)
    try:
        source = source_of(args.shape, args.checkpoint)
    except CheckpointError as error:
        sys.exit(f"{error}")
    is_peer = args.vs not in (None, _OWN)
    if is_peer and (reason := refusal(args.vs, source, args.weights)):
        parser.error(reason)
    if args.processor is None:
        device = Device.choose("auto", threads=args.threads)
    else:
        device = older_device(args.processor, threads=args.threads)
    with ExitStack() as stack:
        baseline: Baseline | None = None
        if is_peer:
            baseline = peer = stack.enter_context(Peer(args.vs, install(args.vs, args.peers)))
            sizes = {"rows": max(batch_sizes(args)), "length": args.prompt + args.tokens}
            threads = args.threads or physical_cores()
            peer.load(threads=threads, weights=args.weights, **sizes, **source.peer_fields)
        elif args.vs == _OWN:
            widened = load_weights(source.config, InFp32(source.weights), device)
            baseline = OwnEngine(engine_of(widened, args), _OWN)
        model = load_weights(source.config, source.weights, device, args.weights, args.compute)
        measure(args, source, model, baseline)


if __name__ == "__main__":
    main()
