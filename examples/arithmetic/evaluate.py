"""Measures how often a checkpoint is right: on the held-out sums, on other tasks, and on the prompts of the guide.

python examples/arithmetic/evaluate.py checkpoints/step_002920 checkpoints/step_003650
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import checkpoint
import torch
from data import (
    BOS,
    HELD_OUT_SUMS,
    SHORT_WIDTH,
    STEPS,
    Document,
    decode,
    difference_document,
    encode,
    held_out_sums,
    make_batch,
    sum_document,
)
from model import GPT
from torch import Tensor
from torch.nn import functional

GUIDE_PROMPTS = ("123+456=", "123\n456\n", "123+", "H+B=", "HB+L=", "H+", "0+", "999-111=")
LONGEST_ANSWER = 24  # tokens; an answer that is longer is cut off


def token_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of each target in nats: ids (B, T), ids (B, T) -> (B, T)."""
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@torch.no_grad()
def held_out_loss(model: GPT) -> float:
    """Mean nats per token over the held-out sums. The operands, which cannot be predicted, are included."""
    documents = [sum_document(a, b) for a, b in held_out_sums()[:HELD_OUT_SUMS]]
    batch = make_batch(documents, SHORT_WIDTH)
    losses = token_losses(model, batch.inputs, batch.targets)
    return losses[batch.weights > 0].mean().item()


def held_out_sums_exact(model: GPT) -> int:
    """The number of held-out sums, out of HELD_OUT_SUMS, that the model answers exactly, ending with BOS."""
    return HELD_OUT_SUMS - len(wrong_answers(model, tasks()["held-out sums"]))


@torch.no_grad()
def greedy(model: GPT, prompts: list[str]) -> list[str | None]:
    """The answers to prompts of one length, up to BOS. None for an answer with another id, or without an end."""
    ids = torch.tensor([[BOS, *encode(prompt)] for prompt in prompts])  # (B, T)
    start = ids.size(1)
    for _ in range(LONGEST_ANSWER):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(dim=-1)), dim=1)
        if bool((ids[:, start:] == BOS).any(dim=1).all()):
            break
    return [_text(row) for row in ids[:, start:].tolist()]


def _text(ids: list[int]) -> str | None:
    if BOS not in ids:
        return None
    answer = ids[: ids.index(BOS)]
    return decode(answer) if all(i < BOS for i in answer) else None


def wrong_answers(model: GPT, documents: list[Document]) -> list[tuple[Document, str | None]]:
    """The documents that the model does not answer exactly, each with the answer of the model."""
    by_length: dict[int, list[Document]] = {}
    for document in documents:
        by_length.setdefault(len(document.question), []).append(document)
    wrong = []
    for group in by_length.values():
        answers = greedy(model, [document.question for document in group])
        wrong += [(d, said) for d, said in zip(group, answers, strict=True) if not _agrees(d.answer, said)]
    return wrong


def _agrees(answer: str, said: str | None) -> bool:
    """Whether both are the same. Of number lines only the next one counts, because nothing says how many there are."""
    if said is not None and answer.endswith("\n"):
        return said.startswith(answer)
    return said == answer


def tasks() -> dict[str, list[Document]]:
    """The tests by name. Only the held-out sums are certain to be missing from the training documents."""
    rng = random.Random(1)

    def pairs(low: int, high: int, count: int = HELD_OUT_SUMS) -> list[tuple[int, int]]:
        return [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]

    starts = [(rng.randint(100, 999 - 2 * step), step) for step in STEPS for _ in range(20)]
    words = [*"HBL", *(x + y for x in "HBL" for y in "HBL")]
    return {
        "held-out sums": [sum_document(a, b) for a, b in held_out_sums()[:HELD_OUT_SUMS]],
        "sums below 100 + 100": [sum_document(a, b) for a, b in pairs(0, 99)],
        "differences": [difference_document(a, b) for a, b in pairs(100, 999)],
        "letters": [Document(f"{a}+{b}=", a + b) for a in words for b in words],
        "number lines": [Document(f"{a}\n{a + step}\n", f"{a + 2 * step}\n") for a, step in starts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure checkpoints of the arithmetic example.")
    parser.add_argument("folders", nargs="+", type=Path, help="checkpoint folders, such as checkpoints/step_003650")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print up to N wrong answers a task")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in args.folders:
        model = checkpoint.load(folder)
        print(f"{folder.name}: held-out loss {held_out_loss(model):.4f} nats a token")
        for name, documents in tasks().items():
            wrong = wrong_answers(model, documents)
            exact = len(documents) - len(wrong)
            print(f"  {name:22} {exact:4} of {len(documents)} exact ({exact / len(documents):.1%})")
            for document, said in wrong[: args.show_wrong]:
                print(f"    {document.question!r} is {document.answer!r}, not {said!r}")
        for prompt in GUIDE_PROMPTS:
            print(f"  {prompt!r:12} -> {greedy(model, [prompt])[0]!r}")


if __name__ == "__main__":
    main()
