"""Folders of checkpoints with files that are no checkpoints, a description of them without torch, and a clock."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from tests.integration.conftest import CARD
from worker.checkpoints.folder import CheckpointFolder
from worker.switching.catalog import Catalog
from worker.switching.description import Description, Refusal

#: Content of a weights file that cannot be loaded.
BROKEN = "broken"


def write(run: Path, *steps: int, content: str = "weights", meta: bool = True) -> Path:
    """Write steps of a run. Without `meta` they are not complete."""
    run.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (run / f"model_{step:06}.pt").write_text(content)
        if meta:
            (run / f"meta_{step:06}.json").write_text("{}")
    return run


class World:
    """A folder and a catalog of it. Time passes when a test says so."""

    def __init__(self, folder: Path, *, age_s: float = 0.0) -> None:
        """`age_s`: how much older all files seem to be."""
        self.folder = folder
        self.now = 0.0
        self.described: list[str] = []
        self.catalog = Catalog(folder, self.describe, clock=lambda: self.now, wall_clock=lambda: time.time() + age_s)

    def describe(self, folder: CheckpointFolder) -> Description | Refusal:
        self.described.append(folder.name)
        content = folder.model_file.read_text()
        if content == BROKEN:
            return Refusal(f"{folder.model_file}: it is broken")
        digest = hashlib.sha256(content.encode()).hexdigest()
        return Description(replace(CARD, name=folder.name, step=folder.step, digest=digest), needed_bytes=100)

    def after(self, seconds: float) -> set[str]:
        """The names of the offers after one scan a second."""
        self.catalog.scan()
        for _ in range(round(seconds)):
            self.now += 1.0
            self.catalog.scan()
        return {*self.catalog.offers()}

    def latest(self) -> dict[str, str]:
        """The offers that carry the name of their run, by that name."""
        return {one.card.latest_of: name for name, one in self.catalog.offers().items() if one.card.latest_of}
