"""The peer `transformers`: its NanoChatForCausalLM. Requests and replies are in `bench.peers.peer_side`.

Runs as a script in the peer's own environment. It imports torch, transformers and `bench.peers.peer_side` only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers  # type: ignore[import-not-found]

# The repository's root is last in the path, so that none of its files replaces a module of the peer.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.peer_side import PeerEngine, answer_requests, round_angles, transformers_form


class TransformersPeer(PeerEngine):
    """transformers with the model of the last `load` request."""

    @torch.inference_mode()
    def reply(self, request: dict[str, Any]) -> Any:
        """Return the reply to a request, without gradients."""
        return super().reply(request)

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model of a `load` request."""
        config, weights = transformers_form(request)
        with torch.device("meta"):
            model = transformers.NanoChatForCausalLM(config)
        model.load_state_dict(weights, strict=True, assign=True)
        # The rotary table is not a parameter, so it must be built outside the meta device.
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        self.model = model.eval()
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def generate(self, prompts: list[list[int]], tokens: int, *, scores: bool = False) -> Any:
        """Generate `tokens` greedy tokens for each prompt; with `scores`, keep the logits."""
        ids = torch.tensor(prompts)
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=scores,
        )

    def check(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Return the ids and their margins."""
        rounding = round_angles(self.model.model.rotary_emb)
        found = self.generate(prompts, tokens, scores=True)
        rounding.remove()
        best = torch.stack(found.logits, dim=1).topk(2).values
        return {
            "ids": found.sequences[:, len(prompts[0]) :].tolist(),
            "margins": (best[..., 0] - best[..., 1]).tolist(),
        }


if __name__ == "__main__":
    torch.manual_seed(0)
    answer_requests(TransformersPeer())
