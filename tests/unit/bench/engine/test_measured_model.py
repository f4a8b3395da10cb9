"""The model that `bench.engine` measures: what a step of it reads, and which peers can run it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.engine.limits import Limits
from bench.engine.measured_model import (
    InFp32,
    element_bytes,
    least_step_s,
    matrix_elements,
    refusal,
)
from bench.source import Source, source_of
from worker.engine.backends import load_weights
from worker.engine.device import Device

SHAPE = "2,256,4,48"


def test_the_elements_are_those_that_a_step_multiplies_with() -> None:
    # Queries, keys, values and output, and an MLP that is four times as wide. The embedding is only looked up.
    assert matrix_elements(source_of(SHAPE, "").config) == (2 * 12 * 256 * 256, 48 * 256)


@pytest.mark.parametrize("form", ["exact", "int8"])
def test_the_least_step_reads_every_matrix_in_its_form(form: str) -> None:
    source = source_of(SHAPE, "")
    model = load_weights(source.config, source.weights, Device("cpu"), form)  # type: ignore[arg-type]
    elements = sum(matrix_elements(source.config))
    # Packed matrices are padded a little.
    assert element_bytes(model) == pytest.approx(4.0 if form == "exact" else 1.0625, rel=0.15)
    slow_memory = Limits(bytes_per_s=1.0, flop_per_s=1e12)
    keys = 3 * 10 * model.device.kv_bytes_per_token(model.config)
    assert least_step_s(model, slow_memory, 3, 10) == pytest.approx(elements * element_bytes(model) + keys)


def test_weights_in_fp32_have_the_same_values() -> None:
    stored = {"a": torch.tensor([1.0, 3.0], dtype=torch.bfloat16)}
    widened = InFp32(stored)
    assert list(widened) == ["a"]
    assert widened["a"].dtype is torch.float32
    assert torch.equal(widened["a"], stored["a"].float())


def test_a_peer_gets_models_that_it_has_and_weights_of_the_same_form() -> None:
    shape = source_of(SHAPE, "")
    folder = Source("f", replace(shape.config, era=None), {}, {"folder": "f"})
    later_era = replace(shape, config=replace(shape.config, era="E7"))
    accepted = [("transformers", shape, "exact"), ("transformers", folder, "exact"), ("vllm", shape, "exact")]
    accepted += [("llama.cpp", folder, "exact"), ("llama.cpp", folder, "int8")]
    for peer, source, form in accepted:
        assert refusal(peer, source, form) is None
    refused = [("transformers", folder, "int8"), ("transformers", later_era, "exact"), ("vllm", folder, "exact")]
    refused += [("llama.cpp", shape, "exact")]
    for peer, source, form in refused:
        assert peer in (refusal(peer, source, form) or "")
