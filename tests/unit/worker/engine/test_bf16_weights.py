"""CELERIAC_WEIGHTS=bf16 rounds the matrices and embeddings of a checkpoint, on compiled kernels and on torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.engines import GOLDEN, checkpoint
from tests.helpers.kernels import prompt_logits
from worker.checkpoints.cards import build_card
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.architecture.tensors import shapes
from worker.engine.architecture.weight_form import is_matrix
from worker.engine.backends import load_weights
from worker.engine.bf16_weights import Bf16Weights
from worker.engine.device import Device
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel

CPU = Device("cpu")
#: Has gates, value embeddings and factors of the residual stream.
FOLDER = "E7/step_000101"


def test_matrices_and_embeddings_are_rounded_to_the_nearest_number_and_nothing_else() -> None:
    found = checkpoint(FOLDER)
    rounded = Bf16Weights(found.weights)
    assert set(rounded) == set(shapes(found.config))
    for name in rounded:
        exact = found.weights[name]
        is_small = any(part in name for part in ("gate", "lambda"))
        assert rounded[name].dtype is (exact.dtype if is_small else torch.bfloat16), name
        assert rounded[name].equal(exact if is_small else exact.bfloat16()), name


def test_biases_and_norms_are_no_matrices() -> None:
    names = ["transformer.h.0.attn.c_q.bias", "transformer.h.0.ln_1.weight", "transformer.ln_f.weight"]
    assert not any(map(is_matrix, [*names, "transformer.h.0.attn.q_norm.weight"]))
    assert all(map(is_matrix, ["transformer.wpe.weight", "transformer.h.3.mlp.c_gate.weight"]))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_model_is_that_of_the_rounded_weights(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    elif library() is None:
        pytest.skip("no C compiler, or no kernels for this processor")
    found = checkpoint(FOLDER)
    rounded = {name: weight.float() for name, weight in Bf16Weights(found.weights).items()}
    prompt = tuple(range(20))
    expected = prompt_logits(load_weights(found.config, rounded, CPU), prompt, chunk=64)
    model = load_weights(found.config, found.weights, CPU, "bf16")
    assert isinstance(model, NativeModel) == compiled
    assert prompt_logits(model, prompt, chunk=64).equal(expected)
    assert not prompt_logits(load_weights(found.config, found.weights, CPU), prompt, chunk=64).equal(expected)


def test_the_card_and_its_digest_distinguish_rounded_weights_from_exact_ones() -> None:
    found = checkpoint(FOLDER)
    exact = build_card(found, None, kv_bytes_per_token=1)
    rounded = build_card(found, None, kv_bytes_per_token=1, form="bf16")
    assert (exact.weights, rounded.weights) == ("exact", "bf16")
    assert rounded.digest != exact.digest
    assert replace(rounded, weights="exact", digest=exact.digest) == exact


def test_rounding_weights_that_are_in_bf16_already_changes_nothing() -> None:
    folder = GOLDEN.parent / "golden-hf" / "llama"
    stored = load(find(str(folder), folder))
    exact = build_card(stored, None, kv_bytes_per_token=1)
    assert exact.dtype == "bf16"
    assert build_card(stored, None, kv_bytes_per_token=1, form="bf16") == exact
