"""Properties that differ by device: selection, memory, threads and number format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.engines import Bf16Cpu, checkpoint, decode, run_until_done, vocabulary
from tests.helpers.requests import sequence_request
from worker.engine import device as devices
from worker.engine.device import Device, physical_cores
from worker.engine.engine import Engine
from worker.engine.torch.model import Model

E7 = "E7/step_000101"


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_an_unavailable_device_is_refused_by_name() -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"device '{missing}' is not available; this machine's torch has: .*cpu"):
        Device.choose(missing)  # type: ignore[arg-type]


def test_torch_gets_the_requested_threads_or_one_for_each_physical_core() -> None:
    Device.choose("cpu", threads=1)
    assert torch.get_num_threads() == 1
    Device.choose("cpu")
    assert torch.get_num_threads() == physical_cores()
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_a_cgroup_with_a_quota_of_one_core_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cgroup", {"cpu.max": "150000 100000"}.get)
    assert physical_cores() == 1


def test_the_cache_has_room_for_full_contexts_up_to_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = checkpoint(E7).config, Device("cpu")
    per_token = cpu.kv_bytes_per_token(config)
    assert per_token == 2 * config.n_layer * config.n_kv_head * config.head_dim * 4
    monkeypatch.setattr(Device, "memory_bytes", lambda self: 4 * per_token * 1000)
    assert cpu.kv_tokens(config, slots=1) == 768
    assert cpu.kv_tokens(config, slots=2) == 1000
    assert cpu.kv_tokens(config, slots=2, kv_memory_mb=3) == 3 * 2**20 // per_token


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_zeros_take_no_memory_until_they_are_written_to() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    zeros = Device("cpu").zeros(4, 64 * 2**20)
    assert resident() - before < 2**24
    assert zeros.dtype is torch.float32
    assert not zeros[:, ::1_000_000].any()


@pytest.mark.parametrize("folder", [E7, "E1b-seed/step_000102"])
def test_logits_in_the_number_format_of_a_gpu_are_close_to_those_in_fp32(folder: str) -> None:
    found = checkpoint(folder)
    logits = []
    for device in (Device("cpu"), Bf16Cpu("cpu")):
        engine = Engine(
            Model.load(found.config, found.weights, device),
            vocabulary(found.config),
            slots=2,
            kv_tokens=512,
            prefill_chunk_tokens=16,
        )
        other = engine.add_request(sequence_request(id="b", prompt=(1, 2), max_tokens=9))
        prompt = tuple(range(30))
        one = decode(engine, sequence_request(id="a", prompt=prompt, max_tokens=4, keep_prompt_logits=True))
        run_until_done(engine, other)
        engine.step()
        logits.append(torch.tensor(one.prompt_logits))
    error = (logits[0] - logits[1]).abs()
    assert error.mean() < 0.05
    assert error.max() > 0, "the number format differs"
