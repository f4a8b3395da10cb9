"""Measures prefix reuse: the time to the first token of a conversation's second turn, with and without it.

    python -m bench.prefix --shape 24,1536,12,65536
    python -m bench.prefix --checkpoint checkpoints/step_003650 --conversation 200

A round has a conversation of its own. Two engines with the same weights, one with prefix reuse, decode its first turn.
Then the time of each from the second request to its first token is measured, one directly after the other. The first
round is a warm-up. Figures are medians of the other rounds; the ratio is computed within a round. Both engines must
give the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from bench.decoding import run_to_end
from bench.options import ROUNDS, add_model_options, shape_config
from bench.random_weights import random_weights
from bench.report import report
from tasks.sampling_params import SamplingParams
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary

#: Contexts that the KV memory of each engine has room for.
SLOTS = 2
#: Tokens of each answer.
ANSWER = 8


def load(args: argparse.Namespace) -> tuple[str, DecodingModel]:
    """Load the model of the command line. Returns its name, too."""
    device = Device.choose("auto", threads=args.threads)
    if args.shape:
        config = shape_config(args.shape)
        weights = random_weights(config.n_layer, config.n_embd, config.vocab_size)
        return args.shape, load_weights(config, weights, device, args.weights)
    checkpoint = formats.load(find(args.checkpoint, Path()))
    return checkpoint.folder.name, load_weights(checkpoint.config, checkpoint.weights, device, args.weights)


def engine_of(model: DecodingModel, *, prefix_cache: bool) -> Engine:
    """Return an engine that decodes bare ids."""
    return Engine(
        model,
        Vocabulary.without_text(model.config.vocab_size),
        slots=SLOTS,
        kv_tokens=model.device.kv_tokens(model.config, slots=SLOTS),
        prefill_chunk_tokens=256,
        prefix_cache=prefix_cache,
    )


def text(length: int, seed: int, vocab_size: int) -> tuple[int, ...]:
    """Return `length` ids, other ones for each seed."""
    return tuple((31 * seed + 7 * position + position * position) % vocab_size for position in range(length))


def request(name: str, prompt: tuple[int, ...]) -> SequenceRequest:
    """Return a greedy request for a short answer."""
    sampling = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    return SequenceRequest(id=name, prompt=prompt, sampling=sampling, every_id=True)


def second_turn(engine: Engine, opening: tuple[int, ...], message: tuple[int, ...]) -> tuple[float, list[int]]:
    """Decode two turns. Returns the seconds to the first token of the second one, and its tokens."""
    first = run_to_end(engine, [request("first", opening)])[0]
    began = time.perf_counter()
    second = engine.add_request(request("second", (*opening, *first.tokens, *message)))
    while not second.tokens:
        engine.step()
    first_token_s = time.perf_counter() - began
    while engine.has_work:
        engine.step()
    return first_token_s, second.tokens


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.prefix", description="Measure the first token of a second turn, with and without reuse."
    )
    add_model_options(parser)
    parser.add_argument("--conversation", type=int, default=500, help="tokens before the second turn (%(default)s)")
    parser.add_argument("--message", type=int, default=12, help="tokens of the second turn's message (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds, after one warm-up (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the engine chooses (%(default)s)")
    parser.add_argument(
        "--weights", choices=["exact", "int8"], default="exact", help="form of the weights in memory (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print only the line of JSON, no table")
    args = parser.parse_args()
    if args.conversation <= ANSWER or args.message < 1:
        parser.error(f"--conversation must be more than the {ANSWER} tokens of an answer, and --message at least 1")
    name, model = load(args)
    config = model.config
    if args.conversation + args.message + ANSWER > config.sequence_len:
        parser.error(f"both turns must fit the context of {config.sequence_len} tokens")
    engines = [engine_of(model, prefix_cache=reuses) for reuses in (True, False)]
    rounds: list[list[float]] = []
    for number in range(args.rounds + 1):
        opening = text(args.conversation - ANSWER, 1 + number, config.vocab_size)
        message = text(args.message, 1001 + number, config.vocab_size)
        # Each is the first one in half of the rounds.
        found = [second_turn(engine, opening, message) for engine in engines[:: 1 if number % 2 else -1]]
        if found[0][1] != found[1][1]:
            sys.exit(f"round {number}: with reuse, the tokens are others")
        if number:
            rounds.append([seconds for seconds, _ in found[:: 1 if number % 2 else -1]])
    ratios = [without / reused for reused, without in rounds]
    row = {
        "conversation": args.conversation,
        "message": args.message,
        "reused_first_token_ms": round(1000 * statistics.median(reused for reused, _ in rounds), 2),
        "computed_first_token_ms": round(1000 * statistics.median(without for _, without in rounds), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 2),
    }
    report(
        "prefix",
        [row],
        quiet=args.json,
        checkpoint=name,
        device=model.device.kind,
        weights=args.weights,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
