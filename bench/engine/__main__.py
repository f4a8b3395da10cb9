"""Measures decoding and prefill of the engine alone, without queue and HTTP, and optionally of a peer.

    python -m bench.engine --checkpoint checkpoints/step_003650 --batch 1,8,32 --tokens 200
    python -m bench.engine --shape 24,1536,12,65536 --batch 1,8,32 --tokens 32 --vs transformers
    python -m bench.engine --shape 4,256,4,512 --vs vllm
    python -m bench.engine --processor x86-64-v3 --vs transformers

For each batch size, a round measures the limits of the machine, Celeriac and the peer directly one after the other, so
that a change in the machine's speed affects all of them. The first round is a warm-up. Figures are medians of the other
rounds. Ratios and shares are computed within a round, and their medians are reported.

`tokens_per_s` and `step_ms` are of decoding. `ratio` is the peer's time divided by Celeriac's for whole texts, prompts
included; `decode_ratio` is the same for the time after every text has its first token. For the peer that time begins
with the next forward pass, which a hook on its model records. `limit_share` is the least time in which this machine
could do the work (read every matrix and the batch's keys and values, and do the arithmetic; see `bench.engine.limits`)
divided by the measured time. It can be above 1 for a model that fits into the processor's cache.

`--processor x86-64-v3` runs Celeriac's kernels, torch, oneDNN and MKL, also in the peer, as on a machine that has AVX2
and no AVX-512. The limits are measured in the same way. Clock rates and caches remain those of this machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.decoding import Run, prompts, timed_decode
from bench.engine.limits import LimitMeter, Limits
from bench.engine.older_processor import ENVIRONMENTS, older_device, restart_as
from bench.options import add_decoding_options, add_model_options, batch_sizes, shape_config
from bench.peers.peer import REQUIREMENTS, Peer, default_folder, disagreements, install
from bench.random_weights import random_weights
from bench.report import report
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import INT8_GROUP
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device, physical_cores
from worker.engine.engine import Engine
from worker.engine.native.library import processor_kinds
from worker.engine.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """The model that is measured, and the data with which a peer loads the same one."""

    name: str
    model: DecodingModel
    #: Bytes of one element of a matrix.
    element_bytes: float
    #: Fields of the peer's `load` request: the files of a checkpoint, or a shape.
    peer_fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PeerRun:
    """The times of one batch in the peer, in seconds."""

    #: From the prompts to the last token.
    seconds: float
    #: After every text has its first token.
    decode_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """The measurements of one batch size in one round."""

    celeriac: Run
    peer: PeerRun | None
    limits: Limits


def matrix_elements(config: ModelConfig) -> tuple[int, int]:
    """Return the number of elements of all layers' matrices, and of the head's."""
    layers = config.n_layer * config.n_embd * (2 * config.n_embd + 2 * config.kv_dim + 8 * config.n_embd)
    return layers, config.vocab_size * config.n_embd


def least_step_s(measured: MeasuredModel, limits: Limits, batch: int, context: float) -> float:
    """Return the least time for a step that decodes `batch` rows, each with `context` tokens."""
    model = measured.model
    elements = sum(matrix_elements(model.config))
    kv = batch * context * model.device.kv_bytes_per_token(model.config)
    attention = 4 * batch * context * model.config.n_layer * model.config.n_embd
    return limits.seconds(elements * measured.element_bytes + kv, 2.0 * elements * batch + attention)


def least_prefill_s(measured: MeasuredModel, limits: Limits, batch: int, length: int) -> float:
    """Return the least time for `batch` prompts of `length` tokens. Only the last token of each needs logits."""
    config = measured.model.config
    layers, head = matrix_elements(config)
    attention = 2 * batch * length * length * config.n_layer * config.n_embd  # half of all pairs, 4 operations each
    flop = 2.0 * batch * (length * layers + head) + attention
    return limits.seconds((layers + head) * measured.element_bytes, flop)


def load(args: argparse.Namespace) -> MeasuredModel:
    """Load the model of the command line."""
    if args.processor is None:
        device = Device.choose("auto", threads=args.threads)
    else:
        device = older_device(args.processor, threads=args.threads)
    element_bytes = 1 + 4 / INT8_GROUP if args.weights == "int8" else float(device.dtype.itemsize)
    if args.shape:
        config = shape_config(args.shape)
        layers, width, heads, vocab_size = config.n_layer, config.n_embd, config.n_head, config.vocab_size
        model = load_weights(config, random_weights(layers, width, vocab_size), device, args.weights)
        return MeasuredModel(args.shape, model, element_bytes, {"shape": [layers, width, heads, vocab_size]})
    checkpoint = formats.load(find(args.checkpoint, Path()))
    files = {"meta_file": str(checkpoint.folder.meta_file), "model_file": str(checkpoint.folder.model_file)}
    era = checkpoint.config.era
    if args.vs and era not in ("E1a", "E1b"):
        sys.exit(f"{args.vs} runs checkpoints of eras E1a and E1b only; this one is of era {era}")
    model = load_weights(checkpoint.config, checkpoint.weights, device, args.weights)
    return MeasuredModel(checkpoint.folder.name, model, element_bytes, {"shape": None, **files})


def measure(args: argparse.Namespace, measured: MeasuredModel, peer: Peer | None, versions: dict[str, str]) -> None:
    """Run all rounds and report."""
    model, config = measured.model, measured.model.config
    batches = batch_sizes(args)
    engine = Engine(
        model,
        Vocabulary.without_text(config.vocab_size),
        slots=max(batches),
        kv_tokens=model.device.kv_tokens(config, slots=max(batches)),
        prefill_chunk_tokens=args.chunk,
        prefix_cache=False,
    )
    meter = LimitMeter()
    texts = {batch: prompts(batch, args.prompt, config.vocab_size) for batch in batches}
    if peer is not None:
        for batch in batches:
            checked = peer.request("check", prompts=texts[batch], tokens=args.tokens)
            ids = timed_decode(engine, texts[batch], args.tokens).ids
            if different := disagreements(ids, checked["ids"], checked["margins"]):
                sys.exit(f"batch {batch}: the texts differ\n" + "\n".join(different))
    rounds: dict[int, list[Round]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            limits = meter.measure()
            peer_run = None
            if peer is not None and round_ % 2:
                peer_run = PeerRun(**peer.request("run", prompts=texts[batch], tokens=args.tokens))
            run = timed_decode(engine, texts[batch], args.tokens)
            if peer is not None and peer_run is None:
                peer_run = PeerRun(**peer.request("run", prompts=texts[batch], tokens=args.tokens))
            if round_:
                rounds[batch].append(Round(run, peer_run, limits))
    rows = []
    for batch in batches:
        figures = engine_figures(measured, batch, rounds[batch], prompt=args.prompt, tokens=args.tokens)
        row = {"batch": batch, **figures}
        if peer is not None:
            row |= peer_figures(batch, rounds[batch], tokens=args.tokens)
        rows.append(row)
    report(
        "engine",
        rows,
        quiet=args.json,
        checkpoint=measured.name,
        device=model.device.kind,
        weights=args.weights,
        # None: this machine's own processor, without limitation.
        processor=args.processor,
        rounds=args.rounds,
        tokens=args.tokens,
        prompt=args.prompt,
        parameters=sum(matrix_elements(config)),
        bytes_per_s=statistics.median(each.limits.bytes_per_s for found in rounds.values() for each in found),
        flop_per_s=statistics.median(each.limits.flop_per_s for found in rounds.values() for each in found),
        peer={"name": args.vs, "versions": versions, "same_ids": True} if peer is not None else None,
    )


def engine_figures(
    measured: MeasuredModel, batch: int, rounds: list[Round], *, prompt: int, tokens: int
) -> dict[str, Any]:
    """Return Celeriac's figures, also as shares of the limit. Each text has `prompt` and `tokens` tokens."""
    context = prompt + tokens / 2
    runs = [(each.celeriac, each.limits) for each in rounds]
    return {
        "tokens_per_s": _median(batch * run.steps / run.decode_s for run, _ in runs),
        "step_ms": _median(1000 * run.decode_s / run.steps for run, _ in runs),
        "limit_share": _median(
            least_step_s(measured, limits, batch, context) * run.steps / run.decode_s for run, limits in runs
        ),
        "prefill_tokens_per_s": _median(batch * prompt / run.prefill_s for run, _ in runs),
        "prefill_ms": _median(1000 * run.prefill_s for run, _ in runs),
        "prefill_limit_share": _median(
            least_prefill_s(measured, limits, batch, prompt) / run.prefill_s for run, limits in runs
        ),
    }


def peer_figures(batch: int, rounds: list[Round], *, tokens: int) -> dict[str, Any]:
    """Return the peer's figures, and how many times as fast Celeriac is."""
    pairs = [(each.celeriac, each.peer) for each in rounds if each.peer is not None]
    ratios = [peer.seconds / run.seconds for run, peer in pairs]
    decode_ratios = [peer.decode_s / run.decode_s for run, peer in pairs]
    return {
        "peer_tokens_per_s": _median(batch * tokens / peer.seconds for _, peer in pairs),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": _median(ratios),
        "peer_decode_tokens_per_s": _median(batch * (tokens - 1) / peer.decode_s for _, peer in pairs),
        "decode_ratios": [round(ratio, 3) for ratio in decode_ratios],
        "decode_ratio": _median(decode_ratios),
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description="Measure decoding and prefill of the engine alone."
    )
    add_model_options(parser)
    add_decoding_options(parser, tokens=100)
    parser.add_argument(
        "--chunk", type=int, default=256, help="prompt tokens a step, CELERIAC_PREFILL_CHUNK_TOKENS (%(default)s)"
    )
    parser.add_argument(
        "--weights", choices=["exact", "int8"], default="exact", help="form of the weights in memory (%(default)s)"
    )
    parser.add_argument(
        "--processor",
        choices=sorted(ENVIRONMENTS.keys() & processor_kinds()),
        help="run Celeriac, and the peer, as on this older kind of processor",
    )
    parser.add_argument("--vs", choices=tuple(REQUIREMENTS), help="also measure this peer, with the same weights")
    parser.add_argument(
        "--peers", type=Path, default=default_folder(), help="folder where peers are installed (%(default)s)"
    )
    args = parser.parse_args()
    if args.vs and args.weights != "exact":
        parser.error("--vs compares equal weights, so it needs --weights exact")
    if args.processor is not None:
        restart_as(args.processor)
    with ExitStack() as stack:
        peer, versions = None, {}
        if args.vs:
            peer = stack.enter_context(Peer(args.vs, install(args.vs, args.peers)))
        measured = load(args)
        if peer is not None:
            sizes = {"rows": max(batch_sizes(args)), "length": args.prompt + args.tokens}
            threads = args.threads or physical_cores()
            versions = peer.request("load", threads=threads, **sizes, **measured.peer_fields)["versions"]
        measure(args, measured, peer, versions)


if __name__ == "__main__":
    main()
