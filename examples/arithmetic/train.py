"""Trains a small calculator from scratch on a CPU, and saves two checkpoints in the format of the original guide.

    python examples/arithmetic/train.py --out checkpoints

Every step reads new documents (data.py), so there are no epochs. The seed determines the documents and the initial
weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import checkpoint
import torch
from data import LONG_WIDTH, SHORT_WIDTH, VOCAB_SIZE, Batch, Documents, make_batch
from evaluate import held_out_loss, held_out_sums_exact, token_losses
from model import GPT, GPTConfig
from optimizer import Optimizer

HEAD_DIM = 32
REPORT_EVERY = 50  # steps


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the arithmetic example and save its checkpoints.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the step_NNNNNN folders")
    parser.add_argument(
        "--steps", type=int, default=3650, help="total number of updates, after which the learning rate is zero"
    )
    parser.add_argument(
        "--save-at", type=int, nargs="*", default=[2920, 3650], help="steps after which a checkpoint is saved"
    )
    parser.add_argument("--eval-every", type=int, default=730, help="steps between two tests on the held-out sums")
    parser.add_argument("--n-layer", type=int, default=4, help="blocks")
    parser.add_argument("--n-head", type=int, default=5, help=f"attention heads, of {HEAD_DIM} channels each")
    parser.add_argument("--short-rows", type=int, default=488, help="documents of one or three lines in a step")
    parser.add_argument("--long-rows", type=int, default=24, help="documents of four or five lines in a step")
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="peak learning rate of Muon")
    parser.add_argument("--embedding-lr", type=float, default=0.3, help="peak learning rate of the embedding")
    parser.add_argument("--head-lr", type=float, default=0.008, help="peak learning rate of the head")
    parser.add_argument("--warmup", type=int, default=50, help="steps until the learning rate reaches its peak")
    parser.add_argument("--seed", type=int, default=1, help="seed of the initial weights and of the documents")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """The learning rate after `step` updates, as a fraction of its peak: a linear rise, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))


def draw_batches(documents: Documents, short_rows: int, long_rows: int) -> tuple[Batch, Batch]:
    """The documents of one step. There are two widths, so that few positions are padding."""
    short = make_batch([documents.short() for _ in range(short_rows)], SHORT_WIDTH)
    long = make_batch([documents.long() for _ in range(long_rows)], LONG_WIDTH)
    return short, long


def backward(model: GPT, batches: tuple[Batch, ...]) -> float:
    """Compute the gradient of the weighted mean loss over all batches. Returns the loss."""
    total_weight = sum(batch.weights.sum() for batch in batches)
    mean_loss = 0.0
    for inputs, targets, weights in batches:
        loss = (token_losses(model, inputs, targets) * weights).sum() / total_weight
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss += loss.item()
    return mean_loss


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    n_embd = args.n_head * HEAD_DIM
    model = GPT(GPTConfig(n_layer=args.n_layer, n_head=args.n_head, n_kv_head=args.n_head, n_embd=n_embd))
    assert model.config.vocab_size == VOCAB_SIZE
    optimizer = Optimizer(model, args.matrix_lr, args.embedding_lr, args.head_lr)
    documents = Documents(args.seed)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")

    smooth_loss, min_val_loss, start = 0.0, math.inf, time.monotonic()
    for step in range(1, args.steps + 1):
        batches = draw_batches(documents, args.short_rows, args.long_rows)
        loss = backward(model, batches)
        optimizer.step(learning_rate(step - 1, args.steps, args.warmup))
        model.zero_grad()

        smooth_loss += (loss - smooth_loss) * max(0.05, 1 / step)
        seconds = time.monotonic() - start
        if step % REPORT_EVERY == 0:
            print(f"step {step}: loss {smooth_loss:.4f}, {seconds / step:.3f} s a step", flush=True)
        if step % args.eval_every == 0 or step in args.save_at:
            val_loss = held_out_loss(model)
            min_val_loss = min(min_val_loss, val_loss)
            print(f"step {step}: held-out loss {val_loss:.4f}, {held_out_sums_exact(model)} sums exact", flush=True)
        if step in args.save_at:
            loop_state = {
                "min_val_loss": min_val_loss,
                "smooth_train_loss": smooth_loss,
                "total_training_time": seconds,
            }
            print("saved", checkpoint.save(args.out, model, meta(args, model, step, val_loss, loop_state)), flush=True)


def meta(
    args: argparse.Namespace, model: GPT, step: int, val_loss: float, loop_state: dict[str, float]
) -> dict[str, Any]:
    """The content of the meta file, with nanochat's keys. Losses are in nats per token, times in seconds."""
    rows = args.short_rows + args.long_rows
    return {
        "step": step,
        "val_loss": val_loss,
        "model_config": vars(model.config),
        "user_config": {name: value for name, value in vars(args).items() if name != "out"},
        "device_batch_size": rows,
        "max_seq_len": LONG_WIDTH - 1,  # the longest row in training
        "dataloader_state_dict": {"idx": step * rows, "epoch": 0},  # number of documents read; there is no fixed set
        "loop_state": loop_state,
    }


if __name__ == "__main__":
    main()
