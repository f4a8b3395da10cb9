"""Reference folders in Hugging Face's form, and small ones with random weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load

GOLDEN_HF = Path(__file__).parents[1] / "fixtures" / "golden-hf"
#: Every reference folder, named after its family.
FAMILIES = sorted(path.parent.name for path in GOLDEN_HF.glob("*/expected.json"))


def expected(family: str) -> dict[str, Any]:
    """What transformers computed for a reference folder."""
    content: dict[str, Any] = json.loads((GOLDEN_HF / family / "expected.json").read_text())
    return content


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError."""
    return load(find(str(folder), folder.parent))


@cache
def golden(family: str) -> Checkpoint:
    """A reference folder, opened."""
    return opened(GOLDEN_HF / family)
