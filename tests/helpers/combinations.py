"""Combinations of parameters. `make test` runs some of them, and `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def each_value_once(*axes: Sequence[Any]) -> list[Any]:
    """All combinations of one value of each axis, for `pytest.mark.parametrize`.

    Those that are not marked as slow are as many as the longest axis has values, and every value of every axis is in at
    least one of them.
    """
    longest = max(range(len(axes)), key=lambda axis: len(axes[axis]))
    combinations = []
    for indexes in product(*(range(len(axis)) for axis in axes)):
        chosen = all(index == indexes[longest] % len(axis) for index, axis in zip(indexes, axes, strict=True))
        values = (axis[index] for index, axis in zip(indexes, axes, strict=True))
        combinations.append(pytest.param(*values, marks=[] if chosen else [pytest.mark.slow]))
    return combinations
