"""Describes checkpoints in a process of its own, which has torch and ends when its pipe closes.

`worker.switching.describer` starts it as `python -m worker.switching.describer_main FD`, where FD is its end of a
socket pair.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from tasks.logs import setup_logging
from tasks.settings import settings
from worker.checkpoints.errors import CheckpointError
from worker.engine.device import Device
from worker.engine_process.loading import read_tokenizer
from worker.engine_process.messages import Start
from worker.model_loader import describe_model
from worker.switching.description import Description, DeviceFacts, Refusal
from worker.switching.memory import needed_bytes


def describe(start: Start, device: Device) -> Description | Refusal:
    """What a worker would publish that gets this message, and the memory that it would need."""
    try:
        described = describe_model(
            start.folder,
            read_tokenizer(start.folder),
            device=device,
            softcap=start.softcap,
            weights=start.weights,
            slots=start.slots,
            kv_memory_mb=start.kv_memory_mb,
            context=start.context,
        )
    except CheckpointError as error:
        return Refusal(str(error))
    except (OSError, ValueError, MemoryError) as error:
        return Refusal(f"{start.folder.path}: {error or type(error).__name__}")
    card = described.card
    return Description(card, needed_bytes(card, device=device.kind, kv_tokens=described.kv_tokens))


def main() -> int:
    """Send the facts about the device, then describe what comes. Returns the exit code."""
    setup_logging(settings())
    pipe = Connection(int(sys.argv[1]))
    try:
        device = Device.choose(settings().device)
        pipe.send(DeviceFacts(device.kind, device.memory_bytes()))
        while True:
            pipe.send(describe(pipe.recv(), device))
    except ValueError as error:
        pipe.send(Refusal(str(error)))
        return 1
    except (EOFError, OSError):
        # The switching worker has ended, or needs no more descriptions.
        return 0


if __name__ == "__main__":
    sys.exit(main())
