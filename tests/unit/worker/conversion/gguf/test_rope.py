"""The scaling of rotary positions, found again in what llama.cpp keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.helpers.gguf_files import frequency_factors, of_folder
from tests.unit.worker.conversion.gguf.test_families import GOLDEN
from worker.conversion.gguf.convert import read_gguf


def scaling_of(tmp_path: Path, *, factors: np.ndarray | None = None, **metadata: Any) -> dict[str, Any] | None:
    """The `rope_scaling` of a file with 16 channels in a head and base 10,000."""
    file = of_folder(GOLDEN / "mistral")
    file.metadata.update({f".rope.{key.replace('__', '.')}": value for key, value in metadata.items()})
    if factors is not None:
        file.metadata |= {f".attention.{name}_length": 2 * len(factors) for name in ("key", "value")}
        file.metadata[".rope.dimension_count"] = 2 * len(factors)
        file.tensors["rope_freqs.weight"] = GGMLQuantizationType.F32, factors.astype(np.float32)
        for layer in range(4):
            for part, rows in (("attn_q", 4), ("attn_k", 2), ("attn_v", 2)):
                shape = (rows * 2 * len(factors), 64)
                file.tensors[f"blk.{layer}.{part}.weight"] = GGMLQuantizationType.F32, np.ones(shape, np.float32)
            shape = (64, 4 * 2 * len(factors))
            file.tensors[f"blk.{layer}.attn_output.weight"] = GGMLQuantizationType.F32, np.ones(shape, np.float32)
    found: dict[str, Any] | None = read_gguf(file.write(tmp_path / "model.gguf")).config["rope_scaling"]
    return found


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(
    ("factor", "original", "base"),
    # Llama 3.1, Llama 3.2, and other contexts.
    [(8.0, 8192, 500_000.0), (32.0, 8192, 500_000.0), (4.0, 2048, 10_000.0), (16.0, 100, 10_000.0)],
)
def test_llama_3(head_dim: int, factor: float, original: int, base: float, tmp_path: Path) -> None:
    rule = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    factors = frequency_factors({**rule, "rope_theta": base}, head_dim)
    found = scaling_of(tmp_path, factors=factors, freq_base=base)
    assert found is not None
    if found != rule:
        # With few frequencies another rule divides them alike.
        assert np.allclose(frequency_factors({**found, "rope_theta": base}, head_dim), factors, rtol=1e-4)
        assert found["factor"] == factor
        assert head_dim == 32


def test_divisors_of_one_and_of_one_number(tmp_path: Path) -> None:
    assert scaling_of(tmp_path, factors=np.ones(8)) is None
    assert scaling_of(tmp_path, factors=np.full(8, 2.5)) == {"rope_type": "linear", "factor": 2.5}


def test_linear(tmp_path: Path) -> None:
    expected = {"rope_type": "linear", "factor": 4.0}
    assert scaling_of(tmp_path, scaling__type="linear", scaling__factor=4.0) == expected
    # llama.cpp takes a factor alone as linear, too.
    assert scaling_of(tmp_path, scaling__factor=4.0) == expected
    assert scaling_of(tmp_path, scale_linear=4.0) == expected
    assert scaling_of(tmp_path, scaling__type="linear", scaling__factor=1.0) is None
    assert scaling_of(tmp_path, scaling__type="none", scaling__factor=4.0) is None


def test_yarn(tmp_path: Path) -> None:
    yarn = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 128}
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert scaling_of(tmp_path, **yarn) == expected
    found = scaling_of(tmp_path, **yarn, scaling__yarn_beta_fast=16.0, scaling__yarn_beta_slow=2.0)
    assert found == {**expected, "beta_fast": 16.0, "beta_slow": 2.0}
