"""The scaling of rotary positions, as Hugging Face's configurations describe it."""

from __future__ import annotations

from typing import Any

import numpy as np

from worker.conversion.gguf.file import GgufFile

#: The divisors of the frequencies of Llama 3.1 and later, one for each pair of channels.
FREQUENCY_FACTORS = "rope_freqs.weight"
#: How far a divisor that a formula gives may be from the stored one, relatively. Both are made with fp32.
_TOLERANCE = 1e-4
#: Every published model has these values of Llama 3's rule; only their ratios to the original context matter.
_LOW, _HIGH = 1.0, 4.0


def rope_scaling(file: GgufFile, architecture: str, *, head_dim: int, base: float) -> dict[str, Any] | None:
    """The value of `rope_scaling`; None: positions are not scaled. Raises CheckpointError."""
    prefix = f"{architecture}.rope.scaling"
    kind = file.text(f"{prefix}.type")
    factor = file.number(f"{prefix}.factor")
    if factor is None:
        # The name that it had before.
        factor = file.number(f"{architecture}.rope.scale_linear")
    factors = file.tensors.get(FREQUENCY_FACTORS)
    if factors is not None:
        if kind not in (None, "none"):
            raise file.error(
                f"has both {FREQUENCY_FACTORS} and {prefix}.type {kind!r}, which no configuration can have"
            )
        return _llama3(file, np.asarray(factors.data, dtype=np.float64).ravel(), head_dim, base)
    match kind:
        case "none":
            return None
        case None | "linear":
            return None if factor in (None, 1.0) else {"rope_type": "linear", "factor": factor}
        case "yarn":
            return _yarn(file, prefix, factor)
        case _:
            raise file.error(f"its {prefix}.type {kind!r} is not supported: linear and yarn are")


def _yarn(file: GgufFile, prefix: str, factor: float | None) -> dict[str, Any]:
    original = file.integer(f"{prefix}.original_context_length")
    if factor is None or original is None:
        raise file.error(f"its {prefix}.type is yarn, and {prefix}.factor or .original_context_length is missing")
    # The names changed when other architectures began to use them.
    for key in (f"{prefix}.attn_factor", f"{prefix}.yarn_attn_factor", f"{prefix}.yarn_ext_factor"):
        if file.number(key) not in (None, 1.0):
            raise file.error(f"its {key} is not 1, which no configuration can have")
    if file.number(f"{prefix}.yarn_log_multiplier") not in (None, 0.0):
        raise file.error(f"its {prefix}.yarn_log_multiplier is not supported")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for name in ("beta_fast", "beta_slow"):
        if (value := file.number(f"{prefix}.yarn_{name}")) is not None:
            scaling[name] = value
    return scaling


def _llama3(file: GgufFile, factors: np.ndarray, head_dim: int, base: float) -> dict[str, Any] | None:
    """The parameters of Llama 3's rule that gives these divisors.

    The rule divides the frequencies of long waves by `factor` and leaves those of short waves. Between them the
    divisor's reciprocal is linear in the number of waves in the original context.
    """
    if factors.shape != (head_dim // 2,):
        raise file.error(f"{FREQUENCY_FACTORS} has shape {factors.shape}; {(head_dim // 2,)} is expected")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise file.error(f"{FREQUENCY_FACTORS} has divisors that are not positive")
    if np.allclose(factors, 1.0, rtol=_TOLERANCE):
        return None
    factor = float(str(np.float32(factors.max())))
    if np.allclose(factors, factor, rtol=_TOLERANCE):
        return {"rope_type": "linear", "factor": factor}
    for original in _original_contexts(factors, factor, head_dim, base):
        if np.allclose(_llama3_factors(factor, original, head_dim, base), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original,
            }
    raise file.error(f"{FREQUENCY_FACTORS} has divisors that no supported rule of rotary positions gives")


def _original_contexts(factors: np.ndarray, factor: float, head_dim: int, base: float) -> list[int]:
    """The original contexts that may have given these divisors, in tokens."""
    between = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    if not between.any():
        # Any context between two wavelengths gives them. They are powers of two.
        return [1 << bits for bits in range(6, 24)]
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    return [round(float(((smooth * (_HIGH - _LOW) + _LOW) * _wavelengths(head_dim, base)[between]).mean()))]


def _llama3_factors(factor: float, original: int, head_dim: int, base: float) -> np.ndarray:
    waves = original / _wavelengths(head_dim, base)
    smooth = np.clip((waves - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _wavelengths(head_dim: int, base: float) -> np.ndarray:
    """Tokens in one wave, for each pair of channels."""
    return 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
