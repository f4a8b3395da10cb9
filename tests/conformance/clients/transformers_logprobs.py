"""Log-probabilities of texts by transformers' NanoChatForCausalLM, for a checkpoint of era E1."""

from __future__ import annotations

import json
import sys

import torch
import transformers

from bench.peers.torch_side import nanochat_form, round_angles


def main() -> None:
    """Print, for each list of ids in `texts`, the log-softmax (T - 1, V) of each id after the first."""
    arguments = json.loads(sys.argv[1])
    config, weights = nanochat_form({"files": arguments["files"]})
    model = transformers.NanoChatForCausalLM(config)
    model.load_state_dict(weights, strict=True)
    model.eval()
    round_angles(model.model.rotary_emb)
    found = []
    with torch.inference_mode():
        for ids in arguments["texts"]:
            logits = model(torch.tensor([ids])).logits[0, :-1].float()
            found.append(logits.log_softmax(1).tolist())
    print(json.dumps(found))


main()
