"""Loads the checkpoint in the engine process, and waits for files that are still being written."""

from __future__ import annotations

import structlog

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.file_state import CheckpointFiles, wait_for_change
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer
from worker.engine.device_errors import is_out_of_memory
from worker.engine_process.messages import Start
from worker.model_loader import LoadedModel, Progress, load_model

log = structlog.get_logger(__name__)


class LoadError(Exception):
    """The checkpoint cannot be loaded. The message is for people."""


def load_when_complete(start: Start, progress: Progress) -> LoadedModel:
    """Load the checkpoint that `start` names. Raises LoadError.

    A checkpoint may be copied over the old one while a worker runs, and its engine may be started again at that moment.
    So a load that fails, or during which a file changed, is repeated as soon as the files have not changed for some
    seconds. What was loaded is therefore one state of the files, and never a mixture of two. The worker limits how long
    that may take.
    """
    files = CheckpointFiles(start.folder, being_replaced=start.loaded_before)
    while True:
        try:
            loaded = load_once(start, progress)
        except (CheckpointError, OSError, ValueError, MemoryError, RuntimeError) as error:
            # torch raises RuntimeError for a device that is missing or out of memory.
            if is_out_of_memory(error):
                raise LoadError(
                    f"There is not enough memory to load {start.folder.name} ({_text(error)}). Use a device with more "
                    "memory, or lower CELERIAC_KV_MEMORY_MB or CELERIAC_SLOTS."
                ) from error
            changed = files.changed()
            if not changed and not isinstance(error, CheckpointError | OSError):
                raise LoadError(_text(error)) from error
            log.warning("waits_for_checkpoint", checkpoint=start.folder.name, reason=_text(error))
            if not wait_for_change(files, changed=changed):
                raise LoadError(_text(error)) from error
        else:
            if not files.changed():
                return loaded
            del loaded
            log.warning("waits_for_checkpoint", checkpoint=start.folder.name, reason="files change while it is loaded")
            wait_for_change(files, changed=True)


def load_once(start: Start, progress: Progress) -> LoadedModel:
    """Load the checkpoint that `start` names. Raises CheckpointError, ValueError, and the errors of torch."""
    return load_model(
        start.folder,
        read_tokenizer(start.folder),
        device=start.device,
        threads=start.threads,
        softcap=start.softcap,
        weights=start.weights,
        compute=start.compute,
        slots=start.slots,
        kv_memory_mb=start.kv_memory_mb,
        prefill_chunk_tokens=start.prefill_chunk_tokens,
        context=start.context,
        prefix_cache=start.prefix_cache,
        progress=progress,
    )


def read_tokenizer(folder: CheckpointFolder) -> Tokenizer:
    """The tokenizer of a checkpoint. Raises CheckpointError."""
    return load_tokenizer(folder, sizes_of(folder).vocab_size)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
