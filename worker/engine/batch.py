"""What goes through the model in one step, as tensors: all positions of all chunks in one row."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.attention import Call, plan_calls
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Output:
    """A row of logits that is wanted."""

    sequence: Sequence
    #: Whether the next token is drawn from it.
    draws: bool
    #: Whether these are the logits after the prompt, to be kept.
    keeps: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """T positions, of which R give logits."""

    #: Token ids (T,).
    tokens: Tensor
    #: The token before each (T,); -1 in front of the first.
    previous: Tensor
    #: Positions in their sequences (T,), and the largest.
    positions: Tensor
    last_position: int
    #: Places in the KV cache (T,).
    places: Tensor
    #: Attention calls by window.
    calls: dict[int, list[Call]]
    #: Positions of the batch that give logits (R,); None: all of them, in order.
    wanted: Tensor | None
    #: What each row of logits is for.
    outputs: list[Output]

    @classmethod
    def of(cls, chunks: Rows[Chunk], windows: frozenset[int], call_cost_places: int, like: Tensor) -> Batch:
        """`call_cost_places`: see `readings`. `like` has the activations' dtype and device."""
        singles = sorted((chunk for chunk in chunks if chunk.length == 1), key=lambda chunk: chunk.extent.start)
        chunks = [*singles, *(chunk for chunk in chunks if chunk.length > 1)]
        tokens: list[int] = []
        previous: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        wanted: list[int] = []
        outputs: list[Output] = []
        for chunk in chunks:
            sequence, start, end = chunk.sequence, chunk.start, chunk.end
            first = chunk.extent.start
            previous.append(sequence.token(start - 1) if start else -1)
            if chunk.length == 1:
                tokens.append(sequence.token(start))
                positions.append(start)
                places.append(first + start)
            else:
                ids = [sequence.token(position) for position in range(start, end)]
                tokens += ids
                previous += ids[:-1]
                positions += range(start, end)
                places += range(first + start, first + end)
            keeps = False
            if sequence.request.keep_prompt_logits:
                last_of_prompt = len(sequence.request.prompt) - 1
                keeps = last_of_prompt == end - 1
                if start <= last_of_prompt < end - 1:
                    wanted.append(len(tokens) - end + last_of_prompt)
                    outputs.append(Output(sequence, draws=False, keeps=True))
            if chunk.draws or keeps:
                wanted.append(len(tokens) - 1)
                outputs.append(Output(sequence, draws=chunk.draws, keeps=keeps))
        columns = torch.tensor((tokens, previous, positions, places)).to(like.device)
        return cls(
            tokens=columns[0],
            previous=columns[1],
            positions=columns[2],
            last_position=max(positions),
            places=columns[3],
            calls=plan_calls(chunks, windows, call_cost_places, like),
            wanted=None if len(wanted) == len(tokens) else torch.tensor(wanted, dtype=torch.int64).to(like.device),
            outputs=outputs,
        )
