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
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers import Tokenizer
from worker.checkpoints.tokenizers.finder import tokenizer_paths
from worker.engine.device import Device
from worker.engine_process.loading import read_tokenizer
from worker.engine_process.messages import Start
from worker.model_loader import describe_model
from worker.switching.description import Description, DeviceFacts, Refusal
from worker.switching.memory import needed_bytes


class Tokenizers:
    """Reads tokenizers. The steps of a run have the same one, which takes longer to read than everything else."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._tokenizer: Tokenizer | None = None

    def read(self, folder: CheckpointFolder) -> Tokenizer:
        """The tokenizer of a checkpoint. Raises CheckpointError and OSError."""
        if folder.format != "nanochat":
            return read_tokenizer(folder)
        files = [(path, path.stat()) for path in tokenizer_paths(folder) if path.exists()]
        key = (sizes_of(folder), *((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in files))
        if self._tokenizer is None or key != self._key:
            self._tokenizer, self._key = read_tokenizer(folder), key
        return self._tokenizer


def describe(start: Start, device: Device, tokenizers: Tokenizers) -> Description | Refusal:
    """What a worker would publish that gets this message, and the memory that it would need."""
    try:
        described = describe_model(
            start.folder,
            tokenizers.read(start.folder),
            device=device,
            softcap=start.softcap,
            weights=start.weights,
            compute=start.compute,
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
    tokenizers = Tokenizers()
    try:
        device = Device.choose(settings().device)
        pipe.send(DeviceFacts(device.kind, device.memory_bytes()))
        while True:
            pipe.send(describe(pipe.recv(), device, tokenizers))
    except ValueError as error:
        pipe.send(Refusal(str(error)))
        return 1
    except (EOFError, OSError):
        # The switching worker has ended, or needs no more descriptions.
        return 0


if __name__ == "__main__":
    sys.exit(main())
