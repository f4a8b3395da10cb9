"""The form in which a model holds its matrices in memory."""

from __future__ import annotations

from typing import Literal

#: `exact`: as in the checkpoint. `int8`: rounded, a quarter of the memory (only with compiled kernels, on a CPU).
WeightForm = Literal["exact", "int8"]

#: How many inputs of an output share a scale in int8. It changes the logits, so it is part of a card's digest.
INT8_GROUP = 64
