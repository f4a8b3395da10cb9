"""How much memory a checkpoint needs, and how much a process has."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.integration.conftest import CARD
from worker.switching.memory import FIXED_BYTES, needed_bytes, process_bytes

MB = 1 << 20
STORED = replace(CARD, parameters=100 * MB, weight_bytes=400 * MB, kv_bytes_per_token=MB)


@pytest.mark.parametrize(
    ("weights", "device", "weight_mb"),
    [
        ("exact", "cpu", 400),
        ("exact", "cuda", 200),
        ("exact", "mps", 400),
        ("int8", "cpu", 107),
    ],
)
def test_the_estimate_has_weights_kv_cache_and_processes(weights: str, device: str, weight_mb: int) -> None:
    card = replace(STORED, weights=weights)  # type: ignore[arg-type]
    assert needed_bytes(card, device=device, kv_tokens=50) == (weight_mb + 50) * MB + FIXED_BYTES


def test_the_type_of_stored_weights_counts_on_a_cpu() -> None:
    card = replace(STORED, weight_bytes=200 * MB)
    assert needed_bytes(card, device="cpu", kv_tokens=0) == 200 * MB + FIXED_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_process_includes_its_children_and_shared_anonymous_memory() -> None:
    before = process_bytes(os.getpid())
    assert before > MB
    with mmap.mmap(-1, 20 * MB) as memory:
        memory.write(b"x" * (20 * MB))
        assert process_bytes(os.getpid()) - before > 19 * MB
    code = "import sys; data = bytearray(30 << 20); print(len(data), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = process_bytes(os.getpid())
        assert with_child - before > 29 * MB
        assert process_bytes(child.pid) > 29 * MB
        child.communicate()
    assert process_bytes(child.pid) == 0
