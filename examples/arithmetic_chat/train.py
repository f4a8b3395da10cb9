"""Trains a small chat model that calculates, from scratch on a CPU, and saves it in nanochat's format of March 2026.

    python examples/arithmetic_chat/train.py --out checkpoints/arithmetic_chat

Every step draws new dialogues (dialogues.py), so there are no epochs. The seed determines the dialogues and the initial
weights. With `--state FILE`, training that was interrupted continues where it was.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoint
import tiktoken
import tokenizer
import torch
from dialogues import Batch, Dialogues, encode, make_batches
from evaluate import exact, held_out_loss, tasks
from exercises import MEMORY
from model import GPT, GPTConfig
from optimizer import Optimizer
from torch import Tensor
from torch.nn import functional

HEAD_DIM = 32
REPORT_EVERY = 20  # steps
TOKENIZER_DIALOGUES = 8000  # from which the merges are learned


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the chat example and save its checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--state", type=Path, help="file to continue from, and to write every 100 steps")
    parser.add_argument("--steps", type=int, default=2400, help="number of updates")
    parser.add_argument("--warmup", type=int, default=50, help="steps until the learning rate reaches its peak")
    parser.add_argument("--warmdown", type=int, default=1000, help="last steps, in which it falls to zero")
    parser.add_argument("--rows", type=int, default=48, help="dialogues in a step")
    parser.add_argument("--batches", type=int, default=4, help="batches in a step, each of dialogues of similar length")
    parser.add_argument("--memory", default=MEMORY, help="of +-*: those that small numbers need no calculator for")
    parser.add_argument("--vocab-size", type=int, default=512, help="token ids, with nanochat's nine special ones")
    parser.add_argument("--n-layer", type=int, default=4, help="blocks")
    parser.add_argument("--n-head", type=int, default=4, help=f"attention heads, of {HEAD_DIM} channels each")
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="peak learning rate of Muon")
    parser.add_argument("--embedding-lr", type=float, default=0.3, help="peak learning rate of the embeddings")
    parser.add_argument("--head-lr", type=float, default=0.008, help="peak learning rate of the head")
    parser.add_argument("--scalar-lr", type=float, default=0.02, help="peak learning rate of the lambdas and gates")
    parser.add_argument("--seed", type=int, default=1, help="seed of the initial weights and of the dialogues")
    parser.add_argument("--threads", type=int, default=2, help="batches that are computed at the same time")
    return parser.parse_args()


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """The learning rate after `step` updates, as a fraction of its peak: it rises, stays and falls linearly."""
    return float(min((step + 1) / args.warmup, 1.0, (args.steps - step) / args.warmdown))


def train_tokenizer(seed: int, vocab_size: int) -> tiktoken.Encoding:
    dialogues = Dialogues(f"{seed} tokenizer")
    drawn = [dialogues.draw() for _ in range(TOKENIZER_DIALOGUES)]
    texts = [text for dialogue in drawn for turn in dialogue.turns for text in (turn.question, turn.call, turn.answer)]
    return tokenizer.train([*texts, *(dialogue.system for dialogue in drawn)], vocab_size)


def draw_batches(encoding: tiktoken.Encoding, step: int, args: argparse.Namespace) -> list[Batch]:
    """The dialogues of one step. They depend only on the seed and the step."""
    dialogues = Dialogues(f"{args.seed} step {step}", memory=args.memory)
    return make_batches([encode(encoding, dialogues.draw()) for _ in range(args.rows)], args.batches)[::-1]


def backward(model: GPT, batches: list[Batch], pool: Executor) -> float:
    """Compute the gradient of the mean loss over the predicted tokens of all batches. Returns the loss in nats.

    Each thread of the pool computes a batch at a time, which is faster than many threads in operations this small.
    """
    total = sum(int(batch.predicted.sum()) for batch in batches)
    weights = list(model.parameters())

    def gradient(batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        inputs, targets, predicted = batch
        loss = functional.cross_entropy(model(inputs, predicted), targets[predicted], reduction="sum") / total
        return loss.item(), torch.autograd.grad(loss, weights)

    losses, gradients = zip(*pool.map(gradient, batches), strict=True)
    for weight, parts in zip(weights, zip(*gradients, strict=True), strict=True):
        weight.grad = torch.stack(parts).sum(dim=0)
    return sum(losses)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    encoding = train_tokenizer(args.seed, args.vocab_size)
    shape = {"n_layer": args.n_layer, "n_head": args.n_head, "n_kv_head": args.n_head, "n_embd": args.n_head * HEAD_DIM}
    model = GPT(GPTConfig(vocab_size=args.vocab_size, **shape))
    optimizer = Optimizer(model, args.matrix_lr, args.embedding_lr, args.head_lr, args.scalar_lr)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")

    progress = {"step": 0, "smooth_train_loss": 0.0, "seconds": 0.0}
    if args.state and args.state.exists():
        saved = torch.load(args.state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state(saved["optimizer"])
        progress = saved["progress"]
    pool = ThreadPoolExecutor(args.threads)
    start = time.monotonic() - progress["seconds"]
    for step in range(int(progress["step"]) + 1, args.steps + 1):
        loss = backward(model, draw_batches(encoding, step, args), pool)
        optimizer.step(learning_rate(step - 1, args))

        smooth_loss = progress["smooth_train_loss"]
        smooth_loss += (loss - smooth_loss) * max(0.05, 1 / step)
        progress = {"step": step, "smooth_train_loss": smooth_loss, "seconds": time.monotonic() - start}
        if step % REPORT_EVERY == 0:
            print(f"step {step}: loss {smooth_loss:.4f}, {progress['seconds'] / step:.3f} s a step", flush=True)
        if args.state and step % 100 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state(), "progress": progress}
            partial = args.state.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(args.state)
        if step % 500 == 0 or step == args.steps:
            for name, dialogues in tasks(100).items():
                print(f"step {step}: {name} {exact(model, encoding, dialogues)} of {len(dialogues)}", flush=True)
    checkpoint.save(args.out, model, encoding, meta(args, model, encoding, progress))
    print("saved", args.out)


def meta(
    args: argparse.Namespace, model: GPT, encoding: tiktoken.Encoding, progress: dict[str, float]
) -> dict[str, Any]:
    """The content of the meta file, with nanochat's keys. Losses are in nats per predicted token, times in seconds."""
    val_loss = held_out_loss(model, encoding)
    return {
        "step": int(progress["step"]),
        "val_loss": val_loss,
        "model_config": vars(model.config),
        "user_config": {name: value for name, value in vars(args).items() if name not in ("out", "state")},
        "device_batch_size": args.rows,
        "max_seq_len": model.config.sequence_len,
        "loop_state": {
            "min_val_loss": val_loss,
            "smooth_train_loss": progress["smooth_train_loss"],
            "total_training_time": progress["seconds"],
        },
    }


if __name__ == "__main__":
    main()
