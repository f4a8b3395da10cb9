"""The memory that a checkpoint needs when it is loaded, and that of processes that run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tasks.card import Card

#: Memory of a worker's two processes without weights and KV cache, in bytes: interpreters, torch, Celery.
FIXED_BYTES = 256 << 20
#: Bytes for each parameter in int8, with its part of a scale.
_INT8_BYTES = 1.07
_PROC = Path("/proc")


def needed_bytes(card: Card, *, device: str, kv_tokens: int) -> int:
    """An estimate of the memory that a checkpoint takes on a device when it is loaded."""
    return _weight_bytes(card, device) + kv_tokens * card.kv_bytes_per_token + FIXED_BYTES


def _weight_bytes(card: Card, device: str) -> int:
    if card.weights == "int8":
        return round(card.parameters * _INT8_BYTES)
    if card.weights == "bf16" or device == "cuda":
        return 2 * card.parameters
    # A Mac's GPU has all weights in fp32.
    return 4 * card.parameters if device == "mps" else card.weight_bytes


def process_bytes(pid: int) -> int:
    """Memory of a process and of those that it started, without files; 0 where the system does not tell it."""
    total = 0
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssShmem"):
                total += int(value.split()[0]) << 10
        for children in (_PROC / str(pid) / "task").glob("*/children"):
            total += sum(process_bytes(int(child)) for child in children.read_text().split())
    return total
