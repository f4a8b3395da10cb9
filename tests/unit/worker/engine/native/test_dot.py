"""Fast compute: activations are rounded, and products of several inputs are added by one instruction.

A result has the same bits alone and in any batch, and on processors with and without these instructions.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from celeriac.cli import main
from celeriac.launcher.plan import Options
from tasks.settings import settings
from tests.helpers.engines import checkpoint
from tests.helpers.kernels import kinds_by_width, multiply, packed, prompt_logits
from worker.checkpoints.cards import build_card
from worker.engine.architecture.weight_form import INT8_GROUP
from worker.engine.backends import compute_warnings, load_weights
from worker.engine.bf16_weights import Bf16Weights
from worker.engine.device import Device
from worker.engine.native.library import MatrixKind, library, load
from worker.engine.native.model import NativeModel

SEED = Path(__file__).parents[5] / "tests" / "fixtures" / "golden" / "E1b-seed" / "step_000102"
CPU = Device("cpu")
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]
KINDS = [MatrixKind.BF16_DOT, MatrixKind.INT8_DOT]

needs_kernels = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    settings.cache_clear()
    yield
    settings.cache_clear()
    torch.set_num_threads(threads)


def dot_matrix(kernels: ctypes.CDLL, kind: MatrixKind, weight: Tensor) -> ctypes.Structure:
    if kind is MatrixKind.BF16_DOT:
        return packed(kernels, weight.bfloat16(), kind=kind)
    return packed(kernels, weight, kind=kind, group=INT8_GROUP)


def rounded(x: Tensor) -> Tensor:
    """Numbers rounded in groups of a row to 255 values, up to the largest of the group."""
    parts = []
    for part in x.double().split(INT8_GROUP, dim=1):
        scale = (part.abs().amax(dim=1, keepdim=True) / 127).float().double()
        parts.append(torch.where(scale > 0, (part / scale).round() * scale, 0))
    return torch.cat(parts, dim=1)


def expected(kind: MatrixKind, weight: Tensor, x: Tensor) -> Tensor:
    if kind is MatrixKind.BF16_DOT:
        return x.bfloat16().double() @ weight.bfloat16().double().T
    return rounded(x) @ rounded(weight).T


def assert_same_in_any_batch(kernels: ctypes.CDLL, kind: MatrixKind, outputs: int, depth: int) -> None:
    weight, x = torch.randn(outputs, depth), torch.randn(40, depth) * torch.randn(40, 1).exp()
    matrix = dot_matrix(kernels, kind, weight)
    alone = torch.cat([multiply(kernels, matrix, x[row : row + 1].clone(), 1) for row in range(len(x))])
    distance = alone.double() - expected(kind, weight, x)
    assert distance.norm() < 1e-3 * alone.norm()
    # A code may be rounded the other way where it is half way between two: that changes a product by a scale times the
    # other factor. It may happen twice in a row.
    scales = x.abs().amax(dim=1, keepdim=True) / 127
    assert (distance.abs() <= 2 * scales * weight.abs().max()).all()
    for rows in range(2, 41):
        for threads in (1, 2, 3):
            assert multiply(kernels, matrix, x[:rows].clone(), threads).equal(alone[:rows]), (rows, threads)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "depth"), [(1, 2), (7, 10), (32, 64), (100, 806), (257, 1600)])
def test_a_gemm_rounds_the_activations_and_has_the_same_bits_in_any_batch(
    kernels: ctypes.CDLL, kind: MatrixKind, outputs: int, depth: int
) -> None:
    assert_same_in_any_batch(kernels, kind, outputs, depth)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_gemm_has_the_same_bits_in_any_batch(plain_kernels: ctypes.CDLL, kind: MatrixKind) -> None:
    assert_same_in_any_batch(plain_kernels, kind, 100, 806)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_the_gemm_of_other_kinds_has_the_same_bits_in_any_batch(other_kernels: ctypes.CDLL, kind: MatrixKind) -> None:
    assert_same_in_any_batch(other_kernels, kind, 100, 806)


def special_numbers(depth: int) -> tuple[Tensor, Tensor]:
    """Weights and activations with zeros, subnormal, very large and very small numbers, and infinities and NaN."""
    weight, x = torch.randn(70, depth), torch.randn(30, depth)
    weight[1] *= 1e-38
    weight[2] *= 3e37
    weight[3] = 0
    weight[4, 5], weight[5, 6] = torch.inf, torch.nan
    x[1] *= 1e-38
    x[2] *= 3e37
    x[3] = 0
    x[4, 5], x[5, 6], x[6, 7] = torch.inf, torch.nan, -torch.inf
    x[7, ::2] *= 1e-39
    x[8] *= 1e-20
    weight[6] *= 1e-20
    return weight, x


def assert_same_on_both(one: ctypes.CDLL, other: ctypes.CDLL, kind: MatrixKind) -> None:
    weight, x = special_numbers(806)
    first, second = (multiply(kernels, dot_matrix(kernels, kind, weight), x, 2) for kernels in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert first[0, 0].isfinite()
    assert not first[4:7, 0].isfinite().any()
    assert not first[0, 4:6].isfinite().any()


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_every_processor_computes_the_same_bits(kernels: ctypes.CDLL, kind: MatrixKind) -> None:
    assert_same_on_both(load(kinds_by_width()[0]), kernels, kind)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_other_processors_compute_the_same_bits(other_kernels: ctypes.CDLL, kind: MatrixKind) -> None:
    assert_same_on_both(load(kinds_by_width()[0]), other_kernels, kind)


@needs_kernels
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_model_has_the_same_bits_in_any_batch(kernels: ctypes.CDLL, folder: str, int8: bool) -> None:
    found = checkpoint(folder)
    weights = dict(found.weights) if int8 else Bf16Weights(found.weights)
    prompt = tuple((7 * position) % 30 for position in range(90))
    exact = prompt_logits(NativeModel.load(found.config, weights, CPU, kernels, int8=int8), prompt, chunk=1024)
    logits = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        model = NativeModel.load(
            found.config, weights, Device("cpu", fixed_threads=True), kernels, int8=int8, compute="fast"
        )
        for chunk, others in ((1024, 0), (7, 0), (1, 0), (13, 20)):
            logits.append(prompt_logits(model, prompt, chunk=chunk, others=others))
    assert all(one.equal(logits[0]) for one in logits)
    assert not logits[0].equal(exact)
    torch.testing.assert_close(logits[0], exact, atol=0.2, rtol=0.2)


@needs_kernels
def test_fast_compute_changes_nothing_for_fp32_and_says_so() -> None:
    found = checkpoint(FOLDERS[0])
    weights = {name: weight.float() for name, weight in found.weights.items()}
    exact, fast = (load_weights(found.config, weights, CPU, compute=compute) for compute in ("exact", "fast"))
    assert prompt_logits(exact, (1, 2, 3), chunk=8).equal(prompt_logits(fast, (1, 2, 3), chunk=8))
    assert compute_warnings(exact, "exact") == ()
    assert "Set CELERIAC_WEIGHTS to bf16 or int8" in compute_warnings(fast, "fast")[0]


@needs_kernels
def test_a_processor_without_the_instructions_says_so() -> None:
    found = checkpoint(FOLDERS[0])
    model = load_weights(found.config, found.weights, CPU, "bf16", "fast")
    assert isinstance(model, NativeModel)
    said = compute_warnings(model, "fast")
    assert bool(said) == (MatrixKind.BF16_DOT not in model.fast_kinds)
    assert all("is not faster than exact" in warning for warning in said)


def test_without_kernels_fast_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint(FOLDERS[0])
    with pytest.raises(ValueError, match="fast compute needs the compiled kernels, and cuda has none: use cpu"):
        load_weights(found.config, found.weights, Device("cuda"), compute="fast")
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    with pytest.raises(ValueError, match="install a C compiler, or set CELERIAC_COMPUTE to exact"):
        load_weights(found.config, found.weights, CPU, "bf16", "fast")


def test_the_card_and_its_digest_distinguish_fast_from_exact() -> None:
    found = checkpoint(FOLDERS[0])
    exact = build_card(found, None, kv_bytes_per_token=1)
    fast = build_card(found, None, kv_bytes_per_token=1, compute="fast")
    assert (exact.compute, fast.compute) == ("exact", "fast")
    assert fast.digest != exact.digest
    assert replace(fast, compute="exact", digest=exact.digest) == exact


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args, prog_name="celeriac")


@needs_kernels
def test_run_computes_fast_from_the_option_or_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("run", str(SEED), "--prompt", "12+34", "--temperature", "0", "--logits", "--json", "--weights", "bf16")
    exact = json.loads(run(*command).stdout)["last_logits"]
    fast = json.loads(run(*command, "--compute", "fast").stdout)["last_logits"]
    assert fast != exact
    assert fast == pytest.approx(exact, abs=0.3)
    monkeypatch.setenv("CELERIAC_COMPUTE", "fast")
    assert json.loads(run(*command).stdout)["last_logits"] == fast


def test_serve_passes_its_option_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Options] = []
    monkeypatch.setattr("celeriac.launcher.plan.serve", lambda options, _: chosen.append(options) or 0)
    assert run("serve", "--checkpoint", str(SEED), "--compute", "fast").exit_code == 0
    assert [options.compute for options in chosen] == ["fast"]
