"""transformers' NanoChatForCausalLM behind a pipe: a JSON line in, a JSON line out.

Runs in the peer's own environment, as a script: it imports torch, transformers, and `bench.peers.peer_side`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers  # type: ignore[import-not-found]

# Behind all else: nothing of ours shall stand in for a module of the peer's.
sys.path.append(str(Path(__file__).parents[2]))
from bench.peers.peer_side import answer_orders, round_angles, timed, transformers_form


class TransformersPeer:
    """The model that was asked for last."""

    def __init__(self) -> None:
        self._model: Any = None

    @torch.inference_mode()
    def answer(self, order: dict[str, Any]) -> Any:
        """What an order asks for: `load`, `check` or `run`."""
        match order["do"]:
            case "load":
                torch.set_num_threads(order["threads"])
                self._load(order)
                return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
            case "check":
                return self._checked(order["prompts"], order["tokens"])
            case _:
                return timed(self._model, lambda: self._generate(order["prompts"], order["tokens"]), order["tokens"])

    def _load(self, order: dict[str, Any]) -> None:
        config, weights = transformers_form(order)
        with torch.device("meta"):
            model = transformers.NanoChatForCausalLM(config)
        model.load_state_dict(weights, strict=True, assign=True)
        # The rotary table is no parameter: build it where it lies.
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        self._model = model.eval()

    def _generate(self, prompts: list[list[int]], tokens: int, *, scores: bool = False) -> Any:
        """`tokens` greedy tokens for each prompt; all prompts are of one length."""
        ids = torch.tensor(prompts)
        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=scores,
        )

    def _checked(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """The ids, and how far the largest logit is above the second one at each of them."""
        rounding = round_angles(self._model.model.rotary_emb)
        found = self._generate(prompts, tokens, scores=True)
        rounding.remove()
        best = torch.stack(found.logits, dim=1).topk(2).values
        return {
            "ids": found.sequences[:, len(prompts[0]) :].tolist(),
            "margins": (best[..., 0] - best[..., 1]).tolist(),
        }


if __name__ == "__main__":
    torch.manual_seed(0)
    answer_orders(TransformersPeer().answer)
