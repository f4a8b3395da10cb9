"""Rotary position embedding as data: one frequency for each pair of channels of a head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Channels j and j + D/2 of a head are a pair, which is rotated by `direction * position * frequencies[j]`."""

    #: Radians per position, D/2 of them: numbers of fp32.
    frequencies: tuple[float, ...]
    #: Factor of the rotated channels: YaRN's attention factor (https://arxiv.org/abs/2309.00071, section 3.4).
    amplitude: float = 1.0
    #: nanochat rotates by the negative angle.
    direction: Literal[1, -1] = 1
    #: Whether sines and cosines are rounded to bf16 at inference, even on a CPU.
    bf16: bool = False
    #: How the frequencies were computed, for people.
    origin: str = field(default="", compare=False)
