"""Random small models of every family give what transformers computes, on torch and on the compiled kernels."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.logprobs import unpack
from tests.conformance.client_environment import SCRIPTS, ClientEnvironment
from tests.conformance.families import CONTEXT, FAMILIES
from tests.helpers.engines import engine, request
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.torch.model import Model

pytestmark = pytest.mark.slow

#: The agreement of the reference folders, and the distance of two logits below which they are a near tie.
TOLERANCE, NEAR_TIE = 2e-3, 1e-2
GREEDY_TOKENS = 12


class Transformers:
    """A process with transformers, which makes models and computes with them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def reply(self, **order: Any) -> list[dict[str, Any]]:
        """The reply to one order: see `clients/random_families.py`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            pytest.fail(self._process.stderr.read()[-5000:])
        found: list[dict[str, Any]] | str = json.loads(line)
        assert isinstance(found, list), found
        return found


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transformers]:
    environment = ClientEnvironment("clients", tmp_path_factory.mktemp("home"))
    process = environment.start("python", str(SCRIPTS / "random_families.py"), stdin=subprocess.PIPE)
    try:
        yield Transformers(process)
    finally:
        process.communicate()


def check(model: DecodingModel, prompt: list[int], expected: dict[str, Any], chunk: int) -> None:
    """Compare what the engine decodes with what transformers computed for a prompt."""
    running = engine(model, kv_tokens=4096, prefill_chunk_tokens=chunk)
    running.add_request(request("other", tuple(range(1, 20)), 40, every_id=True))
    running.step()
    asked = request("one", tuple(prompt), GREEDY_TOKENS, keep_prompt_logits=True, every_id=True, prompt_logprobs=0)
    one = running.add_request(asked)
    records = b""
    while one.finish is None:
        records += b"".join(update.prompt_logprobs for update in running.step().updates if update.id == asked.id)
    found, wanted = torch.tensor(one.prompt_logits), torch.tensor(expected["last_logits"])
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    scored = [record.chosen.logprob for record in unpack(records, 0)]
    torch.testing.assert_close(torch.tensor(scored), torch.tensor(expected["prompt_logprobs"]), atol=TOLERANCE, rtol=0)
    if expected["min_margin"] > NEAR_TIE:
        assert one.tokens == expected["greedy"]


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_give_what_transformers_computes(family: str, transformers: Transformers) -> None:
    @settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
    @given(
        config=FAMILIES[family],
        dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
        seed=st.integers(0, 9),
        lengths=st.lists(st.integers(1, CONTEXT - GREEDY_TOKENS - 1), min_size=2, max_size=2),
        chunk=st.sampled_from([7, 200]),
    )
    def agrees(config: dict[str, Any], dtype: str, seed: int, lengths: list[int], chunk: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(config["vocab_size"], (length,), generator=generator).tolist() for length in lengths]
        with tempfile.TemporaryDirectory() as folder:
            order = {"config": config, "dtype": dtype, "seed": seed, "prompts": prompts}
            reply = transformers.reply(folder=folder, **order)
            checkpoint = load(find(folder, Path(folder), name="random"))
            device = Device("cpu")
            models = [
                Model.load(checkpoint.config, checkpoint.weights, device),
                load_weights(checkpoint.config, checkpoint.weights, device),
            ]
            for model in models:
                for prompt, expected in zip(prompts, reply, strict=True):
                    check(model, prompt, expected, chunk)

    agrees()
