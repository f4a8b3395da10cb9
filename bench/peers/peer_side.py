"""The requests that a peer answers. This module runs in the peers' environments and imports the standard library only.

A peer reads one request a line from stdin, as JSON, and writes one reply a line to stdout. The field `do` names the
request:

- `load`: the model, as exactly one of `shape` (layers, width, heads and ids of random weights), `files` (`meta` and
  `model`, nanochat's files) and `folder` (of Hugging Face); `weights`, their form (`exact`, `bf16` or `int8`);
  `threads`; `rows` and `length`, the largest batch and text. Replies with `versions` of the packages and with
  `variants`, the names of the ways in which the peer can run the model.
- `check`: `prompts` (lists of ids, all of one length) and `tokens`. Replies with the greedy `ids` of the first variant
  and their `margins`, the differences between the best logit and the second one.
- `run`: the same fields and `variant`. Replies with `seconds` in all, and with `decode_s`, the time after every text
  has its first token.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from typing import Any


class PeerEngine(ABC):
    """A peer with the model of the last `load` request."""

    #: The names of the ways in which this peer runs the model. The first one is compared with Celeriac's texts.
    variants: tuple[str, ...]

    @abstractmethod
    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model of a `load` request, and set `variants`. Returns the versions of the packages."""

    @abstractmethod
    def check(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Generate `tokens` greedy tokens for each prompt, and return the reply to a `check` request."""

    @abstractmethod
    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> dict[str, float]:
        """Generate the same with a variant, and return the reply to a `run` request."""

    def reply(self, request: dict[str, Any]) -> Any:
        """Return the reply to a request."""
        match request["do"]:
            case "load":
                return {"versions": self.load(request), "variants": self.variants}
            case "check":
                return self.check(request["prompts"], request["tokens"])
            case _:
                return self.run(request["prompts"], request["tokens"], request["variant"])


def answer_requests(peer: PeerEngine) -> None:
    """Answer the requests on stdin until stdin is closed."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as replies:
        # Output of libraries must not mix with the replies: it goes to stderr.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            print(json.dumps(peer.reply(json.loads(line))), file=replies, flush=True)
