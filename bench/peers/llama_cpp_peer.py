"""The peer `llama.cpp`: its library, through llama-cpp-python. Requests and replies are in `bench.peers.peer_side`.

It runs Hugging Face folders, whose weights `bench.peers.gguf_file` writes into a GGUF file. A context has as many
sequences as the batch has rows, each with keys and values of its own; every step is one call of `llama_decode` for all
rows. The variants are with and without flash attention. Greedy sampling is numpy's `argmax`, which is faster than
llama.cpp's samplers.

Runs as a script in the peer's own environment. It imports gguf, llama_cpp, numpy, safetensors and modules of
`bench.peers` without torch only.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

# The repository's root is last in the path, so that none of its files replaces a module of the peer.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.gguf_file import write_gguf
from bench.peers.peer_side import PeerEngine, answer_requests

_FLASH = {
    "flash attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "plain attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Context:
    """A llama.cpp context for a fixed number of sequences."""

    def __init__(self, model: Any, *, rows: int, length: int, threads: int, flash: int) -> None:
        """`length` is the largest number of tokens of a sequence."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = rows * length
        params.n_seq_max = rows
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = flash
        params.n_batch = rows * length
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not create a context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(rows * length, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def step(self, tokens: list[list[int]], position: int) -> list[NDArray[np.float32]]:
        """Add tokens to each sequence, from `position` on. Returns the logits after the last token of each.

        The logits are valid until the next step.
        """
        batch, count = self._batch, 0
        outputs = []
        for row, added in enumerate(tokens):
            for offset, token in enumerate(added):
                last = offset == len(added) - 1
                batch.token[count] = token
                batch.pos[count] = position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = row
                batch.logits[count] = last
                if last:
                    outputs.append(count)
                count += 1
        batch.n_tokens = count
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        shape = (self._vocab_size,)
        return [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, index), shape) for index in outputs]


class LlamaCppPeer(PeerEngine):
    """llama.cpp with the model of the last `load` request."""

    variants = tuple(_FLASH)

    def __init__(self) -> None:
        self._model: Any = None
        self._threads = 0
        self._length = 0
        #: By variant and number of rows.
        self._contexts: dict[tuple[str, int], Context] = {}

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model of a `load` request."""
        if "folder" not in request:
            raise ValueError("llama.cpp runs Hugging Face folders only: it has no nanochat")
        self._threads, self._length = request["threads"], request["length"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            types = write_gguf(Path(request["folder"]), path, request["weights"])
            self._model = llama_cpp.llama_model_load_from_file(
                str(path).encode(), llama_cpp.llama_model_default_params()
            )
        if not self._model:
            raise RuntimeError("llama.cpp could not load the model")
        features = llama_cpp.llama_print_system_info().decode()
        return {"llama-cpp-python": version("llama-cpp-python"), "tensors": "/".join(types), "features": features}

    def check(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Return the ids and their margins."""
        ids: list[list[int]] = [[] for _ in prompts]
        margins: list[list[float]] = [[] for _ in prompts]
        context = self._context(self.variants[0], len(prompts))
        added, position = prompts, 0
        for _ in range(tokens):
            logits = context.step(added, position)
            position += len(added[0])
            for row, values in enumerate(logits):
                second, first = np.partition(values, -2)[-2:]
                margins[row].append(float(first - second))
                ids[row].append(int(values.argmax()))
            added = [[row[-1]] for row in ids]
        return {"ids": ids, "margins": margins}

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> dict[str, float]:
        """Return the times of `variant`."""
        context = self._context(variant, len(prompts))
        began = time.perf_counter()
        added, position, prefilled = prompts, 0, 0.0
        for _ in range(tokens):
            logits = context.step(added, position)
            position += len(added[0])
            added = [[int(values.argmax())] for values in logits]
            prefilled = prefilled or time.perf_counter()
        ended = time.perf_counter()
        return {"seconds": ended - began, "decode_s": ended - prefilled}

    def _context(self, variant: str, rows: int) -> Context:
        """Return an empty context for `rows` sequences."""
        context = self._contexts.get((variant, rows))
        if context is None:
            context = Context(self._model, rows=rows, length=self._length, threads=self._threads, flash=_FLASH[variant])
            self._contexts[variant, rows] = context
        context.clear()
        return context


#: Drops what llama.cpp logs. A global keeps it alive.
_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


if __name__ == "__main__":
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    answer_requests(LlamaCppPeer())
