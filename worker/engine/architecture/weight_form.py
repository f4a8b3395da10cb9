"""How a model holds its matrices in memory."""

from __future__ import annotations

from typing import Literal

#: `exact`: as the checkpoint has them. `int8`: rounded, a quarter of the memory (`worker.engine.native`, on a CPU).
WeightForm = Literal["exact", "int8"]

#: Inputs of an output that share a scale in int8. Another size gives other logits, so it is part of a card's digest.
INT8_GROUP = 64
