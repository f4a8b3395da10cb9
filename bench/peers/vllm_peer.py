"""The peer `vllm`: vLLM for CPUs. Requests and replies are in `bench.peers.peer_side`.

vLLM has no nanochat model of its own. It runs transformers' NanoChatForCausalLM with its own attention, cache and
scheduler ("Transformers modeling backend"), eagerly, with queries, keys and values in one gemm. The engine runs in this
process, so that a hook can record its forward passes. Prefix caching is off, because it would skip the prefill of the
second run.

Runs as a script in the peer's own environment. It imports torch, transformers, vllm, `bench.peers.peer_side`
and `bench.peers.torch_side` only.
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
        # Threads are not bound to cores, as Celeriac's are not: on a shared machine another program may use a core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
)

import torch
import transformers

# vLLM chooses its kernels by the processor's abilities and ignores torch's limit (`bench.engine.older_processor`).
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = lambda: False

import vllm
from safetensors.torch import save_file

# The repository's root is last in the path, so that none of its files replaces a module of the peer.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.peer_side import PeerEngine, answer_requests
from bench.peers.torch_side import nanochat_form, round_angles, timed

#: Tokens of a block of vLLM's cache.
_BLOCK = 128


class VllmPeer(PeerEngine):
    """vLLM with the model of the last `load` request."""

    variants = ("fp32",)

    def __init__(self) -> None:
        self._llm: Any = None
        self._model: Any = None

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model of a `load` request."""
        torch.set_num_threads(request["threads"])
        config, weights = nanochat_form(request)
        rows, length = request["rows"], request["length"]
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
                # vLLM uses one block itself.
                kv_cache_memory_bytes=kv_bytes * _BLOCK * (rows * -(-length // _BLOCK) + 1),
                enable_prefix_caching=False,
            )
        [self._model] = self._llm.apply_model(lambda model: model)
        return {module.__name__: module.__version__ for module in (torch, transformers, vllm)}

    def check(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Return the ids and their margins."""
        rounding = round_angles(self._model.model.rotary_emb)
        found = [request.outputs[0] for request in self._generate(prompts, tokens, logprobs=2)]
        rounding.remove()
        margins = []
        for text in found:
            best = [sorted((entry.logprob for entry in place.values()), reverse=True) for place in text.logprobs]
            margins.append([first - second for first, second, *_ in best])
        return {"ids": [list(text.token_ids) for text in found], "margins": margins}

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> dict[str, float]:
        """Return the times."""
        return timed(self._model, lambda: self._generate(prompts, tokens), tokens)

    def _generate(self, prompts: list[list[int]], tokens: int, *, logprobs: int | None = None) -> Any:
        """Generate `tokens` greedy tokens for each prompt, with the `logprobs` best log-probabilities of each."""
        return self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            vllm.SamplingParams(
                temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=logprobs
            ),
            use_tqdm=False,
        )


if __name__ == "__main__":
    answer_requests(VllmPeer())
