"""The input of the model in one step, as tensors: the positions of all chunks, one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Output:
    """The purpose of one row of logits. A row without one of these purposes scores a token of the prompt."""

    sequence: Sequence
    #: Whether the sequence's next token is drawn from it.
    draws: bool
    #: Whether it is kept as the logits after the prompt.
    keeps: bool


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """Rows of logits, from `first_row` on, that score `tokens` of a prompt: each row scores the token after it."""

    sequence: Sequence
    first_row: int
    tokens: tuple[int, ...]


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
    #: Of the rows that draw, counted among themselves: those whose logits the request changes, and those whose
    #: log-probabilities it asks for.
    adjusted: list[int] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)
    #: The parts of prompts whose log-probabilities are asked for.
    scored: list[ScoredPrompt] = field(default_factory=list)

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
        scored: list[ScoredPrompt] = []
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
            if sequence.request.sampling.prompt_logprobs is not None:
                followed = sequence.request.prompt[start + 1 : end + 1]
                if followed:
                    scored.append(ScoredPrompt(sequence, len(outputs), followed))
                    wanted += range(len(tokens) - end + start, len(tokens) - end + start + len(followed))
                    outputs += [Output(sequence, draws=False, keeps=False)] * len(followed)
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
        drawing = [output.sequence for output in outputs if output.draws]
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
            adjusted=[row for row, sequence in enumerate(drawing) if sequence.adjustment is not None],
            logged=[row for row, one in enumerate(drawing) if one.request.sampling.logprobs is not None],
            scored=scored,
        )
