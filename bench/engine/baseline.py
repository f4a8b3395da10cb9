"""What `bench.engine` compares Celeriac with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bench.decoding import timed_decode
from bench.peers.peer import Checked, Times
from worker.engine.engine import Engine


class Baseline(Protocol):
    """Another engine, or Celeriac with weights of another form, with the same model. `Peer` is one."""

    @property
    def variants(self) -> Sequence[str]:
        """The names of the ways in which it runs the model."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """The versions of its packages, and what else a reader of the figures must know."""
        ...

    def check(self, prompts: list[list[int]], tokens: int) -> Checked:
        """Generate `tokens` greedy tokens for each prompt."""
        ...

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> Times:
        """Measure the same with a variant."""
        ...


class OwnEngine:
    """Celeriac itself, in this process."""

    def __init__(self, engine: Engine, name: str) -> None:
        """`name` describes the form of the weights."""
        self.variants = (name,)
        self.versions: dict[str, str] = {}
        self._engine = engine

    def check(self, prompts: list[list[int]], tokens: int) -> Checked:
        """Generate `tokens` greedy tokens for each prompt. Other weights may choose other tokens everywhere."""
        ids = timed_decode(self._engine, prompts, tokens).ids
        return Checked(ids, [[0.0] * tokens for _ in prompts])

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> Times:
        """Measure the same."""
        run = timed_decode(self._engine, prompts, tokens)
        return Times(run.seconds, run.decode_s)
