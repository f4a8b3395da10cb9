"""The frequencies of rotary position embedding, as transformers 5.24 computes them from a configuration.

Source: https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/modeling_rope_utils.py. The operations
are made in the same order and in fp32, so that the frequencies are the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from worker.checkpoints.huggingface.values import Values
from worker.checkpoints.json_file import short
from worker.engine.architecture.rope import Rope

#: Keys of any kind of rope. A configuration may have those of another kind, which have no effect.
_KNOWN = frozenset(
    (
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor"),
        *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"),
    )
)


def rope_of(values: Values, head_dim: int, context: int, *, default_base: float, direction: Literal[1, -1]) -> Rope:
    """The rotation that a `config.json` asks for. Raises CheckpointError.

    Its parameters are in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (before).
    """
    parameters = values.inside("rope_scaling") or values.inside("rope_parameters") or _none(values)
    _refuse_unknown(parameters)
    for one in (values, parameters):
        if one.get("partial_rotary_factor") not in (None, 1):
            raise one.error("partial_rotary_factor", "is not 1: rotating only some channels of a head is not supported")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise parameters.error(
            "rope_type", f"is {short(kind)}, which is not supported; supported are {', '.join(_KINDS)}"
        )
    given = next((one for one in (parameters, values) if one.get("rope_theta") is not None), None)
    base = default_base if given is None else given.number("rope_theta")
    if base <= 1:
        raise (given or values).error("rope_theta", "must be above 1")
    if head_dim % 2:
        raise values.error("head_dim", f"is {head_dim}; rotary positions need an even number of channels")
    frequencies, amplitude = make(_Rotation(values, parameters, base, head_dim, context))
    numbers = tuple(frequencies.tolist())
    if not all(math.isfinite(one) for one in (*numbers, amplitude)):
        raise parameters.error("rope_type", f"{kind} with these parameters gives infinite frequencies")
    factor = parameters.optional_number("factor") if kind != "default" else None
    origin = f"{kind}, base {base:g}" + ("" if factor is None else f", factor {factor:g}")
    return Rope(frequencies=numbers, amplitude=amplitude, direction=direction, origin=origin)


def _none(values: Values) -> Values:
    return Values(values.path, {}, {}, within="rope_parameters.")


def _refuse_unknown(parameters: Values) -> None:
    for key, value in parameters.content.items():
        if isinstance(value, dict):
            raise parameters.error(key, "is an object: other rotary positions by kind of layer are not supported")
        if key not in _KNOWN and value is not None:
            raise parameters.error(key, "is not supported")


class _Rotation:
    """What the frequencies are computed from."""

    def __init__(self, values: Values, parameters: Values, base: float, head_dim: int, context: int) -> None:
        self.values = values
        self.parameters = parameters
        self.base = base
        self.head_dim = head_dim
        self.context = context

    def powers(self) -> Tensor:
        """`base ** (2 j / head_dim)`, the inverse of the usual frequencies."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        return torch.pow(self.base, exponents)

    def trained_context(self) -> int:
        """The context before it was extended."""
        key = "original_max_position_embeddings"
        given = next((one for one in (self.values, self.parameters) if one.get(key) is not None), None)
        return self.context if given is None else given.integer(key)


def _default(rotation: _Rotation) -> tuple[Tensor, float]:
    return 1.0 / rotation.powers(), 1.0


def _linear(rotation: _Rotation) -> tuple[Tensor, float]:
    return 1.0 / rotation.powers() / rotation.parameters.number("factor"), 1.0


def _llama3(rotation: _Rotation) -> tuple[Tensor, float]:
    """Low frequencies are divided, high ones stay, and between them lies a smooth transition."""
    parameters, trained = rotation.parameters, rotation.trained_context()
    factor = parameters.number("factor")
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if high <= low:
        raise parameters.error("high_freq_factor", f"must be above low_freq_factor, which is {low:g}")
    usual = 1.0 / rotation.powers()
    lengths = 2 * math.pi / usual
    is_long, is_short = lengths > trained / low, lengths < trained / high
    part = (trained / lengths - low) / (high - low)
    smooth = (1 - part) * usual / factor + part * usual
    return torch.where(is_long, usual / factor, torch.where(is_short, usual, smooth)), 1.0


def _yarn(rotation: _Rotation) -> tuple[Tensor, float]:
    """YaRN (https://arxiv.org/abs/2309.00071): a ramp over the channels, and an amplitude."""
    parameters, trained, base, dim = rotation.parameters, rotation.trained_context(), rotation.base, rotation.head_dim
    factor = parameters.optional_number("factor") or rotation.context / trained
    ends = []
    for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        rotations = parameters.optional_number(key) or usual
        ends.append(dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base)))
    low, high = ends
    if "truncate" not in parameters.content or parameters.flag("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    kept = 1 - ramp
    powers = rotation.powers()
    frequencies = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return frequencies, _amplitude(parameters, factor)


def _amplitude(parameters: Values, factor: float) -> float:
    if (given := parameters.optional_number("attention_factor")) is not None:
        return given

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    # transformers uses them only if both are there and not 0.
    first, second = (parameters.optional_number(key) if parameters.get(key) != 0 else None for key in _MSCALES)
    return of(1.0) if first is None or second is None else of(first) / of(second)


_MSCALES = ("mscale", "mscale_all_dim")
_KINDS: dict[str, Callable[[_Rotation], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
