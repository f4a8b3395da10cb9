"""lm-evaluation-harness on a checkpoint in this process, by the formulas of `tests.helpers.reference`.

Prints the results of the tasks and their samples, in the format of the harness's own files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from tests.helpers import reference
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load

given: dict[str, Any] = json.loads(sys.argv[1])


class ReferenceLM(TemplateLM):
    """A checkpoint with the tokenizer that `celeriac export-tokenizer` wrote. `bos`: whether texts begin with BOS."""

    def __init__(self, checkpoint: Path, tokenizer: str, *, bos: bool) -> None:
        super().__init__()
        loaded = load(find(str(checkpoint), checkpoint.parent))
        self._config, self._weights = loaded.config, loaded.weights
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer)
        self._bos = bos

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self._tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return int(self._tokenizer.bos_token_id)

    def tok_encode(self, string: str, **kwargs: Any) -> list[int]:
        """The ids of a text."""
        return list(self._tokenizer.encode(string, add_special_tokens=self._bos))

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ids = [*context, *continuation]
        with torch.inference_mode():
            logits = reference.logits(self._config, self._weights, ids[:-1])[len(context) - 1 :].log_softmax(-1)
        chosen = torch.tensor(continuation)
        score = logits.gather(1, chosen[:, None]).sum().item()
        return score, bool((logits.argmax(-1) == chosen).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Scores of whole texts that fit into the context."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        return [self._score([self.prefix_token_id], ids)[0] for ids in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to the first stop text."""
        return [self._continue(*request.args) for request in requests]

    def _continue(self, prompt: str, options: dict[str, Any]) -> str:
        ids = self.tok_encode(prompt)
        with torch.inference_mode():
            found = reference.greedy(self._config, self._weights, ids, options["max_gen_toks"])
        if self.eot_token_id in found:
            found = found[: found.index(self.eot_token_id)]
        text = str(self._tokenizer.decode(found))
        for stop in options["until"]:
            text = text.split(stop)[0]
        return text


torch.set_num_threads(1)
result = lm_eval.simple_evaluate(
    model=ReferenceLM(Path(given["checkpoint"]), given["tokenizer"], bos=given["bos"]),
    tasks=given["tasks"],
    task_manager=TaskManager(include_path=given["include_path"], include_defaults=False),
    bootstrap_iters=0,
)
print(json.dumps({"results": result["results"], "samples": result["samples"]}, default=str))
