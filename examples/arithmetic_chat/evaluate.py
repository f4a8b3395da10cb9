"""Measures how often a checkpoint is right: on exercises that never occur in training, and on some dialogues.

python examples/arithmetic_chat/evaluate.py checkpoints/arithmetic_chat
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path

import checkpoint
import tiktoken
import torch
from dialogues import NUMBER_ALONE, Dialogue, Dialogues, encode, make_batch, number_alone
from exercises import Exercises, Turn
from model import GPT
from torch.nn import functional

BATCH = 50  # dialogues
LONGEST_ANSWER = 60  # tokens; an answer that is longer is cut off
#: The questions of each dialogue that is shown, and its system message.
SHOWN = (
    ("", ["What is 12 plus 30?", "And plus 7?", "Thank you!"]),
    ("", ["What is 1234 plus 5678?", "And minus 912?"]),
    ("", ["Can you multiply 7 by 8?"]),
    ("", ["What is 123 times 456?"]),
    ("", ["What is 144 divided by 12?"]),
    ("", ["How many r are in strawberry?"]),
    ("Answer with the number alone.", ["What is 25 minus 30?", "What is 1234 plus 5678?"]),
    ("Always use the calculator.", ["What is 2 plus 2?"]),
    ("You are a helpful assistant.", ["Hello!", "What can you do?"]),
    ("", ["What is the capital of Australia?"]),
    ("", ["What is twelve plus thirty?"]),
)


def held_out_loss(model: GPT, encoding: tiktoken.Encoding) -> float:
    """Mean nats per predicted token over 500 dialogues of held-out exercises, words and topics."""
    drawn = Dialogues("held-out loss", held_out=True)
    losses = [loss for _ in range(10) for loss in _losses(model, encoding, [drawn.draw() for _ in range(BATCH)])]
    return sum(losses) / len(losses)


@torch.no_grad()
def _losses(model: GPT, encoding: tiktoken.Encoding, dialogues: list[Dialogue]) -> list[float]:
    inputs, targets, predicted = make_batch([encode(encoding, dialogue) for dialogue in dialogues])
    losses = functional.cross_entropy(model(inputs, predicted), targets[predicted], reduction="none")
    return [float(loss) for loss in losses]


@torch.no_grad()
def exact(model: GPT, encoding: tiktoken.Encoding, dialogues: list[Dialogue]) -> int:
    """In how many dialogues greedy decoding gives exactly the expected answers and calls, ends included.

    Each token must be the most likely one after the right ones before it, which is the same, and takes one pass.
    """
    right = 0
    for start in range(0, len(dialogues), BATCH):
        encoded = [encode(encoding, dialogue) for dialogue in dialogues[start : start + BATCH]]
        inputs, targets, predicted = make_batch(encoded)
        wrong = (model(inputs).argmax(dim=-1) != targets) & predicted
        right += int((~wrong.any(dim=1)).sum())
    return right


def tasks(count: int = 1000) -> dict[str, list[Dialogue]]:
    """The tests by name, each of `count` dialogues. Exercises that are not "of the training" never occur in it."""
    rng = random.Random("tasks")
    varied, plain = Exercises(rng, held_out=True), Exercises(rng, held_out=True, plain=True)
    known = Exercises(rng)

    def follow_up() -> list[Turn]:
        first = varied.small(rng.choice("+-"))
        assert first.value is not None
        return [first, varied.follow_up(first.value)]

    draw: dict[str, Callable[[], list[Turn]]] = {
        "small sums, plain question": lambda: [plain.small("+")],
        "small sums, any question": lambda: [varied.small("+")],
        "small differences, any question": lambda: [varied.small("-")],
        "calculator, sums, plain question": lambda: [plain.large("+")],
        "calculator, sums, any question": lambda: [varied.large("+")],
        "calculator, - * /, any question": lambda: [varied.large(rng.choice("-*/"))],
        "a question and a follow-up": follow_up,
        "letters in new words": lambda: [varied.letters()],
        "declined questions about new topics": lambda: [varied.declined()],
        "small sums of the training": lambda: [known.small("+")],
        "small differences of the training": lambda: [known.small("-")],
        "small products of the training": lambda: [known.small("*")],
        "letters in words of the training": lambda: [known.letters()],
    }
    dialogues = {name: [_all_shown(turns()) for _ in range(count)] for name, turns in draw.items()}
    alone = [number_alone(rng.choice((varied.small, varied.large))("+")) for _ in range(count)]
    return dialogues | {"the number alone": [_all_shown([turn], rng.choice(NUMBER_ALONE)) for turn in alone]}


def _all_shown(turns: list[Turn], system: str = "") -> Dialogue:
    return Dialogue(turns, system, frozenset(range(len(turns))))


def calculate(call: str) -> str:
    """The value of an expression that the model wrote, empty if it is none of those in training."""
    if counted := re.fullmatch(r"'(\w+)'\.count\('(\w)'\)", call):
        return str(counted[1].count(counted[2]))
    if not (parts := re.fullmatch(r"(-?\d+)([-+*/])(-?\d+)", call)):
        return ""
    a, b = int(parts[1]), int(parts[3])
    if parts[2] == "/":
        return str(a / b) if b else ""
    return str({"+": a + b, "-": a - b, "*": a * b}[parts[2]])


@torch.no_grad()
def reply(model: GPT, encoding: tiktoken.Encoding, ids: list[int]) -> list[int]:
    """The greedy answer to a dialogue that ends with `<|assistant_start|>`, with what the calculator inserted."""
    special = encoding.encode_single_token
    start = len(ids)
    while len(ids) - start < LONGEST_ANSWER:
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
        if ids[-1] == special("<|assistant_end|>"):
            break
        if ids[-1] == special("<|python_end|>"):
            call = encoding.decode(ids[start:-1]).rpartition("<|python_start|>")[2]
            ids += [special("<|output_start|>"), *encoding.encode_ordinary(calculate(call)), special("<|output_end|>")]
    return ids[start:]


def show(model: GPT, encoding: tiktoken.Encoding, system: str, questions: list[str]) -> None:
    """Print the model's answers in a dialogue."""
    special = encoding.encode_single_token
    ids = [special("<|bos|>")]
    for i, question in enumerate(questions):
        text = f"{system}\n\n{question}" if system and i == 0 else question
        ids += [special("<|user_start|>"), *encoding.encode_ordinary(text), special("<|user_end|>")]
        ids.append(special("<|assistant_start|>"))
        answer = reply(model, encoding, ids)
        ids += answer
        print(f"  {text!r} -> {encoding.decode(answer).removesuffix('<|assistant_end|>')!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a checkpoint of the chat example.")
    parser.add_argument("folder", type=Path, help="checkpoint folder, such as checkpoints/arithmetic_chat")
    parser.add_argument("--count", type=int, default=1000, help="dialogues of each test")
    args = parser.parse_args()
    model, encoding = checkpoint.load(args.folder)
    for name, dialogues in tasks(args.count).items():
        print(f"{name}: {exact(model, encoding, dialogues):,} of {len(dialogues):,}", flush=True)
    print(f"held-out loss: {held_out_loss(model, encoding):.4f} nats per predicted token")
    for system, questions in SHOWN:
        show(model, encoding, system, questions)


if __name__ == "__main__":
    main()
