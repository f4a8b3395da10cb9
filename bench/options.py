"""Command-line options that several benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from bench.random_weights import CONTEXT
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import ERAS, nanochat_config
from worker.engine.architecture.weight_form import Compute, WeightForm

#: Default number of measured rounds.
ROUNDS = 5


def add_model_options(
    parser: argparse.ArgumentParser, *, checkpoint: str = "checkpoints/step_003650", checkpoint_help: str = "its folder"
) -> None:
    """Add `--checkpoint`, with the default `checkpoint`, and `--shape`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", default=checkpoint, help=f"checkpoint: {checkpoint_help} (%(default)s)")
    source.add_argument(
        "--shape", metavar="L,D,H,V", help="use random weights: number of layers, width, heads and ids of the model"
    )


def add_decoding_options(parser: argparse.ArgumentParser, *, tokens: int) -> None:
    """Add the options of one batch, and `--rounds`, `--threads` and `--json`. `tokens` is the default of `--tokens`."""
    parser.add_argument("--batch", default="1,8,32", help="batch sizes, separated by commas (%(default)s)")
    parser.add_argument("--tokens", type=_tokens, default=tokens, help="tokens of each text, at least 2 (%(default)s)")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds, after one warm-up (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the engine chooses (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print only the line of JSON, no table")


def add_form_options(parser: argparse.ArgumentParser) -> None:
    """Add `--weights` and `--compute`."""
    parser.add_argument(
        "--weights", choices=get_args(WeightForm), default="exact", help="form of the weights in memory (%(default)s)"
    )
    parser.add_argument(
        "--compute", choices=get_args(Compute), default="exact", help="how the kernels multiply (%(default)s)"
    )


def batch_sizes(args: argparse.Namespace) -> list[int]:
    """Return the batch sizes of `--batch`."""
    return [int(batch) for batch in args.batch.split(",")]


def shape_config(shape: str) -> ModelConfig:
    """Return the configuration of a model of era E1b for `--shape`: layers, width, heads and ids."""
    layers, width, heads, vocab_size = (int(size) for size in shape.split(","))
    return nanochat_config(
        sequence_len=CONTEXT,
        vocab_size=vocab_size,
        rows=vocab_size,
        n_layer=layers,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        era=ERAS["E1b"],
    )


def absolute(checkpoint: str) -> str:
    """Make a path absolute, because other processes read it; leave a checkpoint's name as it is."""
    return str(Path(checkpoint).resolve()) if "/" in checkpoint else checkpoint


def _tokens(text: str) -> int:
    tokens = int(text)
    if tokens < 2:
        raise argparse.ArgumentTypeError("must be at least 2: prefill makes the first token, decoding the others")
    return tokens
