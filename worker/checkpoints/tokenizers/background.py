"""Loads a tokenizer while something else is loaded: one with 150,000 tokens needs more than a second."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import NamedTuple, Self

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers.base import Tokenizer
from worker.checkpoints.tokenizers.export import served_blob
from worker.checkpoints.tokenizers.finder import load_tokenizer, tokenizer_digest


class LoadedTokenizer(NamedTuple):
    """A tokenizer with what a worker publishes of it."""

    tokenizer: Tokenizer
    #: For the API: see `served_blob`.
    blob: bytes
    #: See `tokenizer_digest`.
    digest: str

    @classmethod
    def load(cls, folder: CheckpointFolder) -> LoadedTokenizer:
        """Load the tokenizer of a checkpoint. Raises CheckpointError."""
        sizes = sizes_of(folder)
        tokenizer = load_tokenizer(folder, sizes.vocab_size)
        blob = served_blob(tokenizer, vocab_size=sizes.vocab_size, context=sizes.context)
        return cls(tokenizer, blob, tokenizer_digest(folder))


class BackgroundLoad:
    """Loads the tokenizer of a checkpoint in a thread, from the beginning of a `with` block on.

    The end of the block waits for the thread.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._loaded: LoadedTokenizer | None = None
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def result(self, digest: str) -> LoadedTokenizer:
        """The tokenizer, if its files have this digest, after the block. Else it is loaded once more: they may have
        been written meanwhile. Raises CheckpointError."""
        if self._loaded is None or self._loaded.digest != digest:
            return LoadedTokenizer.load(self._folder)
        return self._loaded

    def _run(self) -> None:
        try:
            self._loaded = LoadedTokenizer.load(self._folder)
        except CheckpointError:
            # `result` tries again, and raises the error if it is still there.
            return
