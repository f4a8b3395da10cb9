"""The input of the model in one step, as tensors: the positions of all chunks, one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Output:
    """The purpose of one row of logits."""

    sequence: Sequence
    #: Whether the sequence's next token is drawn from it.
    draws: bool
    #: Whether it is kept as the logits after the prompt.
    keeps: bool


@dataclass(slots=True)
class Batch:
    """T positions, of which R have logits."""

    #: The four tensors `tokens`, `previous`, `positions` and `places` as rows of one (4, T).
    columns: Tensor
    #: Token ids (T,).
    tokens: Tensor
    #: The token before each one (T,); -1 before the first of a sequence.
    previous: Tensor
    #: Positions in their sequences (T,), and the largest one.
    positions: Tensor
    last_position: int
    #: Places in the KV cache (T,).
    places: Tensor
    #: The chunks that the positions belong to, in order: chunks of one position first, in the order of their places.
    chunks: list[Chunk]
    #: Number of positions of the longest chunk.
    longest: int
    #: Indices of the positions that have logits (R,); None: all of them, in order.
    wanted: Tensor | None
    #: The purpose of each row of logits.
    outputs: list[Output]

    @property
    def decodes_only(self) -> bool:
        """Whether every position belongs to a row that decodes, and no logits are kept."""
        return self.wanted is None and all(output.draws and not output.keeps for output in self.outputs)

    @classmethod
    def of(cls, chunks: Rows[Chunk], device: torch.device) -> Batch:
        """The batch of `chunks`, on the model's device."""
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
        values = array("q", tokens + previous + positions + places)
        columns = torch.frombuffer(values, dtype=torch.int64).view(4, -1).to(device)
        return cls(
            columns=columns,
            tokens=columns[0],
            previous=columns[1],
            positions=columns[2],
            last_position=max(positions),
            places=columns[3],
            chunks=chunks,
            longest=max(chunk.length for chunk in chunks),
            wanted=None if len(wanted) == len(tokens) else torch.tensor(wanted, dtype=torch.int64).to(device),
            outputs=outputs,
        )
