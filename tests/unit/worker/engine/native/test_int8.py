"""int8 weights give the same bits as fp32 weights that were rounded before. Cards distinguish them from exact ones."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor

from celeriac.cli import main
from celeriac.launcher.plan import Options
from tasks.settings import settings
from tests.helpers.engines import checkpoint, engine, request
from tests.helpers.kernels import multiply, packed, prompt_logits
from worker.checkpoints import formats
from worker.checkpoints.cards import build_card
from worker.checkpoints.folder import find
from worker.engine.architecture.weight_form import INT8_GROUP
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel

ROOT = Path(__file__).parents[5]
SEED = ROOT / "tests" / "fixtures" / "golden" / "E1b-seed" / "step_000102"
CPU = Device("cpu")
#: The first has full attention; the second has grouped queries, windows, value embeddings and smear.
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]

needs_kernels = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    settings.cache_clear()
    yield
    settings.cache_clear()
    torch.set_num_threads(threads)


def rounded(weight: Tensor, group: int) -> Tensor:
    """A matrix rounded as int8 does it: each output and group of inputs has 255 values, up to its largest weight."""
    parts = []
    for part in weight.float().split(group, dim=1):
        scale = part.abs().amax(dim=1, keepdim=True) / 127
        parts.append(torch.where(scale > 0, (part / scale).round(), 0) * scale)
    return torch.cat(parts, dim=1)


def rounded_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights, rounded in all matrices that the kernels multiply."""
    matrices = ("attn.c_q.", "attn.c_k.", "attn.c_v.", "c_proj.", "mlp.c_fc.", "lm_head.")
    return {
        name: rounded(weight, INT8_GROUP) if any(part in name for part in matrices) else weight
        for name, weight in weights.items()
    }


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("outputs", "depth", "group"),
    [
        (1, 1, 64),
        (7, 3, 64),
        (32, 64, 64),
        (100, 800, 64),
        (257, 1600, 64),
        (70, 900, 128),
        (40, 1600, 768),
        (33, 10, 1),
    ],
)
def test_a_gemm_gives_the_bits_of_the_rounded_matrix_in_any_batch(
    kernels: ctypes.CDLL, outputs: int, depth: int, group: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(outputs, depth).to(dtype)
    nearest = rounded(weight, group)
    int8, exact = packed(kernels, weight, group=group), packed(kernels, nearest)
    x = torch.randn(40, depth)
    expected = multiply(kernels, exact, x, 1)
    torch.testing.assert_close(expected, F.linear(x, nearest), atol=1e-3, rtol=1e-4)
    for rows in range(1, 41):
        for threads in (1, 2, 3):
            assert multiply(kernels, int8, x[:rows].clone(), threads).equal(expected[:rows]), (rows, threads)


@needs_kernels
def test_stacked_matrices_are_rounded_independently(kernels: ctypes.CDLL) -> None:
    weights = [torch.randn(outputs, 150) * scale for outputs, scale in ((37, 1.0), (5, 1e-3), (70, 1e3))]
    int8 = packed(kernels, *weights, group=64)
    exact = packed(kernels, *(rounded(weight, 64) for weight in weights))
    x = torch.randn(5, 150)
    assert multiply(kernels, int8, x, 1).equal(multiply(kernels, exact, x, 1))


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_affects_only_its_own_output(kernels: ctypes.CDLL, bad: float) -> None:
    weight = torch.randn(40, 200)
    weight[3, 77] = bad
    for rows in (1, 40):
        out = multiply(kernels, packed(kernels, weight, group=64), torch.randn(rows, 200), 1)
        assert not out[:, 3].isfinite().any()
        assert out[:, [row for row in range(40) if row != 3]].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 3e38])
def test_the_smallest_and_largest_weights(kernels: ctypes.CDLL, size: float) -> None:
    weight = torch.full((20, 100), size)
    out = multiply(kernels, packed(kernels, weight, group=64), torch.full((1, 100), 1e-3), 1)
    torch.testing.assert_close(out, torch.full((1, 20), size / 10), rtol=0.01, atol=1e-36)


@needs_kernels
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_model_gives_the_bits_of_the_rounded_weights(kernels: ctypes.CDLL, folder: str) -> None:
    found = checkpoint(folder)
    exact = NativeModel.load(found.config, rounded_model(dict(found.weights)), CPU, kernels)
    prompt = tuple((7 * position) % 30 for position in range(90))
    expected = prompt_logits(exact, prompt, chunk=1024)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        int8 = NativeModel.load(found.config, found.weights, Device("cpu", fixed_threads=True), kernels, int8=True)
        for chunk, others in ((1024, 0), (7, 0), (1, 0), (13, 20)):
            assert prompt_logits(int8, prompt, chunk=chunk, others=others).equal(expected), (threads, chunk, others)


@needs_kernels
def test_a_trained_model_still_adds_and_takes_little_more_than_a_quarter_of_the_memory() -> None:
    found = formats.load(find("step_003650", ROOT / "checkpoints"))
    exact, int8 = (load_weights(found.config, found.weights, CPU, form) for form in ("exact", "int8"))
    assert isinstance(exact, NativeModel)
    assert isinstance(int8, NativeModel)
    assert int8.matrix_bytes < 0.3 * exact.matrix_bytes
    running = engine(int8, slots=30, kv_tokens=4096)
    # The id of a digit is the digit itself; 10 is plus, 17 is equals, and 18 is BOS, which begins and ends a text.
    sums = [(100 + 29 * i, 999 - 31 * i) for i in range(29)]
    texts = [
        running.add_request(request(f"{a}+{b}", (18, *map(int, str(a)), 10, *map(int, str(b)), 17), 5, every_id=True))
        for a, b in sums
    ]
    while running.has_work:
        running.step()
    for (a, b), text in zip(sums, texts, strict=True):
        answer = [*map(int, str(a + b)), 18]
        assert text.tokens[: len(answer)] == answer, (a, b)


def test_without_kernels_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint(FOLDERS[0])
    with pytest.raises(ValueError, match="int8 weights need the compiled kernels, and cuda has none: use cpu"):
        load_weights(found.config, found.weights, Device("cuda"), "int8")
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    with pytest.raises(ValueError, match="install a C compiler, or set CELERIAC_WEIGHTS to exact"):
        load_weights(found.config, found.weights, CPU, "int8")


def test_the_card_and_its_digest_distinguish_int8_from_exact() -> None:
    found = checkpoint(FOLDERS[0])
    exact = build_card(found, None, kv_bytes_per_token=1)
    int8 = build_card(found, None, kv_bytes_per_token=1, form="int8")
    assert (exact.weights, int8.weights) == ("exact", "int8")
    assert int8.digest != exact.digest
    assert replace(int8, weights="exact", digest=exact.digest) == exact


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args, prog_name="celeriac")


@needs_kernels
def test_run_decodes_with_int8_from_the_option_or_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("run", str(SEED), "--prompt", "12+34", "--temperature", "0", "--logits", "--json")
    exact = json.loads(run(*command).stdout)["last_logits"]
    int8 = json.loads(run(*command, "--weights", "int8").stdout)["last_logits"]
    assert int8 != exact
    assert int8 == pytest.approx(exact, abs=0.3)
    monkeypatch.setenv("CELERIAC_WEIGHTS", "int8")
    assert json.loads(run(*command).stdout)["last_logits"] == int8


def test_run_says_why_int8_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    result = run("run", str(SEED), "--prompt", "1", "--weights", "int8")
    assert result.exit_code == 1
    assert "step_000102 cannot be loaded: int8 weights need the compiled kernels" in result.stderr


def test_inspect_shows_the_form_of_weights_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = json.loads(run("inspect", str(SEED), "--json").stdout)
    monkeypatch.setenv("CELERIAC_WEIGHTS", "int8")
    settings.cache_clear()
    int8 = json.loads(run("inspect", str(SEED), "--json").stdout)
    assert (exact["weights"], int8["weights"]) == ("exact", "int8")
    assert exact["digest"] != int8["digest"]
    assert "one byte per weight (int8)" in run("inspect", str(SEED)).stdout


def test_serve_passes_its_option_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Options] = []
    monkeypatch.setattr("celeriac.launcher.plan.serve", lambda options, _: chosen.append(options) or 0)
    assert run("serve", "--checkpoint", str(SEED), "--weights", "int8").exit_code == 0
    assert [options.weights for options in chosen] == ["int8"]
