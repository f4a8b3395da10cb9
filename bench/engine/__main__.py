"""Decoding and prefill by the engine alone, without queue or HTTP, beside what the machine can do and beside a peer.

    python -m bench.engine --checkpoint checkpoints/step_003650 --batch 1,8,32 --tokens 200
    python -m bench.engine --shape 24,1536,12,65536 --batch 1,8,32 --tokens 32 --vs transformers
    python -m bench.engine --shape 4,256,4,512 --vs vllm
    python -m bench.engine --processor x86-64-v3 --vs transformers

One round measures the machine, then each batch size, ours and the peer's in turns, so that a machine whose speed drifts
does so for all of them. After a round of warm-up the figures are medians of the rounds, and so are ratios and shares,
which are taken within a round.

`tokens_per_s` and `step_ms` are those of decoding. The peer's time by ours is `ratio` for whole texts, prompt included,
and `decode_ratio` for what comes when all texts have their first token: with the peer, from the start of the next
forward pass on, which a hook on its model notes. `limit_share` is the least time in which this machine could have done
the work (read every matrix and the batch's keys and values, do the arithmetic; see `bench.engine.limits`) as a share of
the time that it took. A model that fits into the processor's cache can be above it.

`--processor x86-64-v3` runs our kernels, torch, oneDNN and MKL, and the peer's, as on a machine that has AVX2 and no
AVX-512; the limits are measured with the same. Clocks and caches stay those of this machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.limits import LimitMeter, Limits
from bench.engine.older_processor import LIMITS, begin_anew_as, older_device
from bench.peers.peer import REQUIREMENTS, Peer, default_folder, disagreements, install
from bench.report import report
from bench.shapes import CONTEXT, random_weights
from tasks.sampling_params import SamplingParams
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import ERAS
from worker.engine.architecture.weight_form import INT8_GROUP
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device, physical_cores
from worker.engine.engine import Engine
from worker.engine.native.library import processor_kinds
from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, and how a peer finds the same one."""

    name: str
    model: DecodingModel
    #: Bytes that one element of a matrix takes.
    element_bytes: float
    #: What the peer is told: the files of a checkpoint, or a shape.
    order: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of texts, from their prompts to their last token."""

    ids: list[list[int]]
    seconds: float
    #: Until each text had its first token.
    prefill_s: float
    #: Behind that.
    decode_s: float
    steps: int


@dataclass(frozen=True, slots=True)
class PeerRun:
    """The same by the peer."""

    seconds: float
    #: Behind the first token of each text.
    decode_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """One batch size in one round."""

    ours: Run
    theirs: PeerRun | None
    limits: Limits


def prompts(batch: int, length: int, vocab_size: int) -> list[list[int]]:
    """Prompts that differ, so that no two rows do the same."""
    return [[1 + (7 * row + 3 * position) % (vocab_size - 1) for position in range(length)] for row in range(batch)]


def decode(engine: Engine, batch: list[list[int]], tokens: int) -> Run:
    """Greedy texts of `tokens` tokens each."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    began = time.perf_counter()
    sequences = [
        engine.add_request(SequenceRequest(id=str(row), prompt=tuple(prompt), sampling=sampling, every_id=True))
        for row, prompt in enumerate(batch)
    ]
    while not all(sequence.tokens for sequence in sequences):
        engine.step()
    prefilled = time.perf_counter()
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
    ended = time.perf_counter()
    ids = [sequence.tokens for sequence in sequences]
    return Run(ids, ended - began, prefilled - began, ended - prefilled, steps)


def matrix_elements(config: ModelConfig) -> tuple[int, int]:
    """Elements of the matrices of all layers, and of the head."""
    layers = config.n_layer * config.n_embd * (2 * config.n_embd + 2 * config.kv_dim + 8 * config.n_embd)
    return layers, config.vocab_size * config.n_embd


def least_step_s(found: Subject, limits: Limits, batch: int, context: float) -> float:
    """The least time for a step that decodes `batch` rows, each over `context` tokens."""
    model = found.model
    elements = sum(matrix_elements(model.config))
    kv = batch * context * model.device.kv_bytes_per_token(model.config)
    attention = 4 * batch * context * model.config.n_layer * model.config.n_embd
    return limits.seconds(elements * found.element_bytes + kv, 2.0 * elements * batch + attention)


def least_prefill_s(found: Subject, limits: Limits, batch: int, length: int) -> float:
    """The least time for `batch` prompts of `length` tokens, of which the last ones give logits."""
    config = found.model.config
    layers, head = matrix_elements(config)
    attention = 2 * batch * length * length * config.n_layer * config.n_embd  # half of all pairs, 4 operations each
    flop = 2.0 * batch * (length * layers + head) + attention
    return limits.seconds((layers + head) * found.element_bytes, flop)


def shape_config(shape: str) -> ModelConfig:
    """The model of a shape: layers, width, heads and ids."""
    layers, width, heads, vocab_size = (int(size) for size in shape.split(","))
    return ModelConfig(
        sequence_len=CONTEXT,
        vocab_size=vocab_size,
        rows=vocab_size,
        n_layer=layers,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        era=ERAS["E1b"],
        softcap=ERAS["E1b"].softcap,
    )


def batch_sizes(args: argparse.Namespace) -> list[int]:
    """The batch sizes of the command line."""
    return [int(batch) for batch in args.batch.split(",")]


def subject(args: argparse.Namespace) -> Subject:
    """The model of the command line."""
    if args.processor is None:
        device = Device.choose("auto", threads=args.threads)
    else:
        device = older_device(args.processor, threads=args.threads)
    element_bytes = 1 + 4 / INT8_GROUP if args.weights == "int8" else float(device.dtype.itemsize)
    if args.shape:
        config = shape_config(args.shape)
        layers, width, heads, vocab_size = config.n_layer, config.n_embd, config.n_head, config.vocab_size
        model = load_weights(config, random_weights(layers, width, vocab_size), device, args.weights)
        return Subject(args.shape, model, element_bytes, {"shape": [layers, width, heads, vocab_size]})
    checkpoint = formats.load(find(args.checkpoint, Path()))
    files = {"meta_file": str(checkpoint.folder.meta_file), "model_file": str(checkpoint.folder.model_file)}
    if args.vs and not checkpoint.config.era.name.startswith("E1"):
        sys.exit(f"{args.vs} has the model of eras E1a and E1b alone, and this one is of {checkpoint.config.era.name}")
    model = load_weights(checkpoint.config, checkpoint.weights, device, args.weights)
    return Subject(checkpoint.folder.name, model, element_bytes, {"shape": None, **files})


def measure(args: argparse.Namespace, found: Subject, peer: Peer | None, versions: dict[str, str]) -> None:
    """All rounds, and the report."""
    model, config = found.model, found.model.config
    batches = batch_sizes(args)
    engine = Engine(
        model,
        Vocabulary.without_text(config.vocab_size),
        slots=max(batches),
        kv_tokens=model.device.kv_tokens(config, slots=max(batches)),
        prefill_chunk_tokens=args.chunk,
    )
    meter = LimitMeter()
    texts = {batch: prompts(batch, args.prompt, config.vocab_size) for batch in batches}
    if peer is not None:
        for batch in batches:
            expected = peer.ask("check", prompts=texts[batch], tokens=args.tokens)
            ours = decode(engine, texts[batch], args.tokens).ids
            if different := disagreements(ours, expected["ids"], expected["margins"]):
                sys.exit(f"batch {batch}: the texts are not the same\n" + "\n".join(different))
    rounds: dict[int, list[Round]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            limits = meter.measure()
            theirs = None
            if peer is not None and round_ % 2:
                theirs = PeerRun(**peer.ask("run", prompts=texts[batch], tokens=args.tokens))
            run = decode(engine, texts[batch], args.tokens)
            if peer is not None and theirs is None:
                theirs = PeerRun(**peer.ask("run", prompts=texts[batch], tokens=args.tokens))
            if round_:
                rounds[batch].append(Round(run, theirs, limits))
    rows = []
    for batch in batches:
        row = {"batch": batch, **own_figures(found, batch, rounds[batch], prompt=args.prompt, tokens=args.tokens)}
        if peer is not None:
            row |= peer_figures(batch, rounds[batch], tokens=args.tokens)
        rows.append(row)
    report(
        "engine",
        rows,
        quiet=args.json,
        checkpoint=found.name,
        device=model.device.kind,
        weights=args.weights,
        # None: this machine's own, with all that it has.
        processor=args.processor,
        rounds=args.rounds,
        tokens=args.tokens,
        prompt=args.prompt,
        parameters=sum(matrix_elements(config)),
        bytes_per_s=statistics.median(each.limits.bytes_per_s for found in rounds.values() for each in found),
        flop_per_s=statistics.median(each.limits.flop_per_s for found in rounds.values() for each in found),
        peer={"name": args.vs, "versions": versions, "same_ids": True} if peer is not None else None,
    )


def own_figures(found: Subject, batch: int, rounds: list[Round], *, prompt: int, tokens: int) -> dict[str, Any]:
    """What ours does, and as a share of the limit. `prompt` and `tokens` are the lengths of each text's two parts."""
    context = prompt + tokens / 2
    runs = [(each.ours, each.limits) for each in rounds]
    return {
        "tokens_per_s": _median(batch * run.steps / run.decode_s for run, _ in runs),
        "step_ms": _median(1000 * run.decode_s / run.steps for run, _ in runs),
        "limit_share": _median(
            least_step_s(found, limits, batch, context) * run.steps / run.decode_s for run, limits in runs
        ),
        "prefill_tokens_per_s": _median(batch * prompt / run.prefill_s for run, _ in runs),
        "prefill_ms": _median(1000 * run.prefill_s for run, _ in runs),
        "prefill_limit_share": _median(
            least_prefill_s(found, limits, batch, prompt) / run.prefill_s for run, limits in runs
        ),
    }


def peer_figures(batch: int, rounds: list[Round], *, tokens: int) -> dict[str, Any]:
    """What the peer does, and how many times as fast ours is."""
    pairs = [(each.ours, each.theirs) for each in rounds if each.theirs is not None]
    ratios = [theirs.seconds / ours.seconds for ours, theirs in pairs]
    decode_ratios = [theirs.decode_s / ours.decode_s for ours, theirs in pairs]
    return {
        "peer_tokens_per_s": _median(batch * tokens / theirs.seconds for _, theirs in pairs),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": _median(ratios),
        "peer_decode_tokens_per_s": _median(batch * (tokens - 1) / theirs.decode_s for _, theirs in pairs),
        "decode_ratios": [round(ratio, 3) for ratio in decode_ratios],
        "decode_ratio": _median(decode_ratios),
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Decoding and prefill by the engine alone.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", default="checkpoints/step_003650", help="folder of the checkpoint")
    source.add_argument("--shape", metavar="L,D,H,V", help="layers, width, heads and ids of a model of random weights")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes, separated by commas")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each text, at least 2")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt")
    parser.add_argument("--chunk", type=int, default=256, help="prompt tokens a step (CELERIAC_PREFILL_CHUNK_TOKENS)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds that count")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the engine chooses")
    parser.add_argument("--weights", choices=["exact", "int8"], default="exact", help="form of the weights in memory")
    parser.add_argument(
        "--processor",
        choices=sorted(LIMITS.keys() & processor_kinds()),
        help="run ours, and the peer, as on this older kind of processor",
    )
    parser.add_argument("--vs", choices=tuple(REQUIREMENTS), help="run this peer, too, with the same weights")
    parser.add_argument("--peers", type=Path, default=default_folder(), help="folder where peers are installed")
    parser.add_argument("--json", action="store_true", help="print no table, the line of JSON alone")
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error("--tokens must be at least 2: the first one is the prefill's")
    if args.vs and args.weights != "exact":
        parser.error("--vs compares equal weights, so it goes with --weights exact alone")
    if args.processor is not None:
        begin_anew_as(args.processor)
    with ExitStack() as closing:
        peer, versions = None, {}
        if args.vs:
            peer = closing.enter_context(Peer(args.vs, install(args.vs, args.peers)))
        found = subject(args)
        if peer is not None:
            needs = {"rows": max(batch_sizes(args)), "length": args.prompt + args.tokens}
            threads = args.threads or physical_cores()
            versions = peer.ask("load", threads=threads, **needs, **found.order)["versions"]
        measure(args, found, peer, versions)


if __name__ == "__main__":
    main()
