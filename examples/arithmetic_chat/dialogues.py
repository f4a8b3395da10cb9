"""Dialogues of one or several turns, and their token ids in nanochat's chat layout."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import tiktoken
import torch
from exercises import MEMORY, Exercises, Turn
from torch import Tensor

NUMBER_ALONE = (
    "Answer with the number alone.",
    "Answer with the number only.",
    "Answer with only the number.",
    "Only give the number.",
    "Give only the result.",
    "Give only the number as the answer.",
    "Reply with just the number.",
    "Reply only with the number.",
    "Just the number, please.",
)
ALWAYS_TOOL = (
    "Always use the calculator.",
    "Use the calculator for every sum.",
    "Please use the calculator always.",
    "Use your calculator.",
)
NEUTRAL = (
    "You are a helpful assistant.",
    "You are a helpful assistant that can calculate.",
    "You are a friendly assistant.",
    "You are a calculator.",
    "You are a careful calculator.",
    "Be brief.",
    "Be polite.",
    "Answer in English.",
    "Answer politely.",
    "Help the user.",
)


@dataclass(frozen=True)
class Dialogue:
    turns: list[Turn]
    #: The system message, which comes before the first question. Empty: there is none.
    system: str = ""
    #: Turns that show the calculator's call in the history, by index. A server that gets only the texts of earlier
    #: turns has no calls, so both occur in training.
    shown_calls: frozenset[int] = field(default_factory=frozenset)


class Encoded(NamedTuple):
    ids: list[int]
    #: For each id, whether the model has to predict it.
    predicted: list[bool]


class Batch(NamedTuple):
    """Rows of one dialogue each, padded on the right with ids that nothing depends on."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64: the inputs one position later
    predicted: Tensor  # (B, T) bool: which targets the model has to predict


class Dialogues:
    """Draws dialogues from a seed."""

    def __init__(self, seed: str, *, held_out: bool = False, memory: str = MEMORY) -> None:
        """For `held_out` and `memory`, see `Exercises`."""
        self._rng = random.Random(seed)
        self._exercises = Exercises(self._rng, held_out=held_out, memory=memory)

    def draw(self) -> Dialogue:
        kind = self._rng.random()
        systems = NUMBER_ALONE if kind < 0.1 else ALWAYS_TOOL if kind < 0.15 else NEUTRAL if kind < 0.3 else ("",)
        turns: list[Turn] = []
        last: int | None = None
        for _ in range(self._rng.choice((1, 1, 1, 1, 1, 2, 2, 2, 3, 4))):
            first = not any(turn.result for turn in turns)
            turn = self._exercises.turn(last, first=first, always_tool=systems is ALWAYS_TOOL)
            last = turn.value if turn.result else last
            turns.append(number_alone(turn) if systems is NUMBER_ALONE else turn)
        shown = frozenset(i for i in range(len(turns)) if self._rng.random() < 0.5)
        return Dialogue(turns, self._rng.choice(systems), shown | {len(turns) - 1})


def number_alone(turn: Turn) -> Turn:
    """The turn with nothing but the result in its answer, if it has a result."""
    return replace(turn, answer=turn.result or turn.answer)


def encode(encoding: tiktoken.Encoding, dialogue: Dialogue) -> Encoded:
    """The ids of a dialogue. The model has to predict its answers and calls, but not what the calculator inserts."""
    special = encoding.encode_single_token
    ids, predicted = [special("<|bos|>")], [False]

    def add(more: list[int], *, predict: bool) -> None:
        ids.extend(more)
        predicted.extend([predict] * len(more))

    for i, turn in enumerate(dialogue.turns):
        question = f"{dialogue.system}\n\n{turn.question}" if dialogue.system and i == 0 else turn.question
        question_ids = [special("<|user_start|>"), *encoding.encode_ordinary(question), special("<|user_end|>")]
        add([*question_ids, special("<|assistant_start|>")], predict=False)
        shown = i in dialogue.shown_calls
        if turn.call and shown:
            call = encoding.encode_ordinary(turn.call)
            add([special("<|python_start|>"), *call, special("<|python_end|>")], predict=True)
            output = encoding.encode_ordinary(turn.output)
            add([special("<|output_start|>"), *output, special("<|output_end|>")], predict=False)
        answer = [*encoding.encode_ordinary(turn.answer), special("<|assistant_end|>")]
        add(answer, predict=shown or not turn.call)
    return Encoded(ids, predicted)


def make_batch(encoded: list[Encoded]) -> Batch:
    """A batch of T positions, where T + 1 is the length of the longest dialogue."""
    width = max(len(ids) for ids, _ in encoded)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in encoded])
    mask = torch.tensor([[*predicted, *[False] * (width - len(predicted))] for _, predicted in encoded])
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask[:, 1:].contiguous())


def make_batches(encoded: list[Encoded], count: int) -> list[Batch]:
    """`count` batches of the same number of dialogues. Those of similar length come together, to save padding."""
    ordered = sorted(encoded, key=lambda dialogue: len(dialogue.ids))
    size = -(-len(ordered) // count)
    return [make_batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]
