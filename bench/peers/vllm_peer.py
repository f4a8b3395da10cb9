"""vLLM for CPUs behind a pipe: a JSON line in, a JSON line out.

vLLM has no nanochat of its own: it runs transformers' NanoChatForCausalLM on its own attention, cache and scheduler
("Transformers modeling backend"), eagerly, with queries, keys and values in one product. The engine runs in this
process, so that its forward passes can be seen, and without a cache of prompts, which would spare it the second run.

Runs in the peer's own environment, as a script: it imports torch, transformers, vllm, and `bench.peers.peer_side`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        # Threads are not tied to cores, as ours are not: on a shared machine a core may be another program's.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
)

import torch
import transformers  # type: ignore[import-not-found]

# vLLM chooses its kernels by what the processor has, whatever torch may use of it (`bench.engine.older_processor`).
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = lambda: False

import vllm  # type: ignore[import-not-found]
from safetensors.torch import save_file  # type: ignore[import-not-found]

# Behind all else: nothing of ours shall stand in for a module of the peer's.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.peer_side import answer_orders, round_angles, timed, transformers_form

#: Tokens of a block of vLLM's cache.
_BLOCK = 128


class VllmPeer:
    """The model that was asked for last."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._model: Any = None

    def answer(self, order: dict[str, Any]) -> Any:
        """What an order asks for: `load`, `check` or `run`."""
        match order["do"]:
            case "load":
                torch.set_num_threads(order["threads"])
                self._load(order)
                versions = {module.__name__: module.__version__ for module in (torch, transformers, vllm)}
                return {"versions": versions}
            case "check":
                return self._checked(order["prompts"], order["tokens"])
            case _:
                return timed(self._model, lambda: self._generate(order["prompts"], order["tokens"]), order["tokens"])

    def _load(self, order: dict[str, Any]) -> None:
        config, weights = transformers_form(order)
        rows, length = order["rows"], order["length"]
        head_dim = config.hidden_size // config.num_attention_heads
        kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            self._llm = vllm.LLM(
                folder,
                skip_tokenizer_init=True,
                model_impl="transformers",
                dtype="float32",
                enforce_eager=True,
                max_model_len=length,
                max_num_seqs=rows,
                block_size=_BLOCK,
                # One block is vLLM's own.
                kv_cache_memory_bytes=kv_bytes * _BLOCK * (rows * -(-length // _BLOCK) + 1),
                enable_prefix_caching=False,
            )
        [self._model] = self._llm.apply_model(lambda model: model)

    def _generate(self, prompts: list[list[int]], tokens: int, *, logprobs: int | None = None) -> Any:
        """`tokens` greedy tokens for each prompt."""
        return self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            vllm.SamplingParams(
                temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=logprobs
            ),
            use_tqdm=False,
        )

    def _checked(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """The ids, and how far the largest logit is above the second one at each of them."""
        rounding = round_angles(self._model.model.rotary_emb)
        found = [request.outputs[0] for request in self._generate(prompts, tokens, logprobs=2)]
        rounding.remove()
        margins = []
        for text in found:
            best = [sorted((entry.logprob for entry in place.values()), reverse=True) for place in text.logprobs]
            margins.append([first - second for first, second, *_ in best])
        return {"ids": [list(text.token_ids) for text in found], "margins": margins}


if __name__ == "__main__":
    answer_orders(VllmPeer().answer)
