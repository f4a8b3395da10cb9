"""The peer `transformers`. Requests and replies are in `bench.peers.peer_side`.

It runs nanochat's checkpoints and shapes as `NanoChatForCausalLM` in fp32. It runs a Hugging Face folder as
`AutoModelForCausalLM` in fp32 and in bf16, each with a cache that grows and with one of fixed size.

Runs as a script in the peer's own environment. It imports torch, transformers, `bench.peers.peer_side` and
`bench.peers.torch_side` only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

# The repository's root is last in the path, so that none of its files replaces a module of the peer.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.peer_side import PeerEngine, answer_requests
from bench.peers.torch_side import nanochat_form, round_angles, timed


class TransformersPeer(PeerEngine):
    """transformers with the model of the last `load` request."""

    def __init__(self) -> None:
        #: For each variant the model and transformers' name of its cache.
        self._models: dict[str, tuple[Any, str]] = {}
        self._nanochat = False

    @torch.inference_mode()
    def reply(self, request: dict[str, Any]) -> Any:
        """Return the reply to a request, without gradients."""
        return super().reply(request)

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model of a `load` request."""
        torch.set_num_threads(request["threads"])
        folder = request.get("folder")
        self._nanochat = folder is None
        if folder is None:
            self._models = {"fp32": (_nanochat(request), "dynamic")}
        else:
            self._models = {}
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
                # The folder's own settings may name stop ids and penalties. Every text must get all of its tokens.
                model.generation_config = transformers.GenerationConfig(pad_token_id=0)
                for cache in ("dynamic", "static"):
                    self._models[f"{name}, {cache} cache"] = (model, cache)
        self.variants = tuple(self._models)
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def check(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Return the ids of the first variant and their margins."""
        model = self._models[self.variants[0]][0]
        rounding = round_angles(model.model.rotary_emb) if self._nanochat else None
        found = self._generate(prompts, tokens, self.variants[0], scores=True)
        if rounding is not None:
            rounding.remove()
        best = torch.stack(found.logits, dim=1).topk(2).values
        return {
            "ids": found.sequences[:, len(prompts[0]) :].tolist(),
            "margins": (best[..., 0] - best[..., 1]).tolist(),
        }

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> dict[str, float]:
        """Return the times of `variant`."""
        return timed(self._models[variant][0], lambda: self._generate(prompts, tokens, variant), tokens)

    def _generate(self, prompts: list[list[int]], tokens: int, variant: str, *, scores: bool = False) -> Any:
        """Generate `tokens` greedy tokens for each prompt; with `scores`, keep the logits."""
        model, cache = self._models[variant]
        ids = torch.tensor(prompts)
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            cache_implementation=cache,
            return_dict_in_generate=True,
            output_logits=scores,
        )


def _nanochat(request: dict[str, Any]) -> Any:
    """Return `NanoChatForCausalLM` for the `shape` or the `files` of a `load` request."""
    config, weights = nanochat_form(request)
    with torch.device("meta"):
        model = transformers.NanoChatForCausalLM(config)
    model.load_state_dict(weights, strict=True, assign=True)
    # The rotary table is not a parameter, so it must be built outside the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    answer_requests(TransformersPeer())
