"""A stand-in for the original guide's server, to compare Celeriac with it.

    python -m bench.guide.server --checkpoint checkpoints/step_003650 --port 8001

It is written from the guide's description only. It has the guide's `POST /generate`, with the same request and answer,
and its `GET /health`. `bench.guide.plain_model` decodes one request at a time, without a KV cache, on the server's
event loop. There are no stop tokens: a text has `max_tokens` tokens unless `stop_on_newline` ends it. Unlike the
original, the stand-in samples only ids that have text, as Celeriac's engine does, so that greedy texts can be compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from torch import Tensor

from bench.guide.plain_model import PlainModel
from bench.processes import ROOT
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.device import physical_cores
from worker.jobs.prompt import answer_tokens, encode_prompt
from worker.model_loader import vocabulary_of


class Request(BaseModel):
    """The guide's request body."""

    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 100
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    top_k: Annotated[int | None, Field(ge=1, le=32)] = None
    stop_on_newline: bool = False


class PlainCheckpoint:
    """A loaded checkpoint that continues one text at a time."""

    def __init__(self, checkpoint: str, root: Path = Path()) -> None:
        """`checkpoint` is a folder's path, or its name below `root`. Raises CheckpointError, and ValueError for an era
        that the plain model cannot run."""
        loaded = formats.load(find(checkpoint, root))
        self.name = loaded.folder.name
        self._config = loaded.config
        self._model = PlainModel(loaded.config, loaded.weights)
        self._tokenizer = load_tokenizer(loaded.folder, loaded.config.vocab_size)
        self._vocabulary = vocabulary_of(self._tokenizer, loaded.config.vocab_size)
        allowed = torch.tensor(self._vocabulary.candidates(every_id=False, ignore_eos=True))
        self._refused = ~allowed

    def generate(self, request: Request) -> list[int]:
        """Return the ids that continue the prompt."""
        prompt, _ = encode_prompt(self._tokenizer, request.prompt)
        ids = list(prompt)
        for _ in range(answer_tokens(prompt, request.max_tokens, context=self._config.sequence_len)):
            logits = self._model.logits(ids).masked_fill(self._refused, -torch.inf)
            ids.append(_sample(logits, request.temperature, request.top_k))
            if request.stop_on_newline and ids[-1] in self._vocabulary.newline_ids:
                break
        return ids[len(prompt) :]

    def text(self, ids: list[int]) -> str:
        """Return the text of `ids`."""
        return self._vocabulary.spell(ids).decode(errors="replace")


def _sample(logits: Tensor, temperature: float, top_k: int | None) -> int:
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return int(torch.multinomial(torch.softmax(logits, dim=-1), 1))


def create_app(checkpoint: PlainCheckpoint) -> FastAPI:
    """Create the application that serves one checkpoint."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> dict[str, Any]:
        # This blocks the event loop, so the server handles one request after the other and answers nothing else.
        ids = checkpoint.generate(request)
        return {
            "prompt": request.prompt,
            "generated_text": request.prompt + checkpoint.text(ids),
            "tokens_generated": len(ids),
            "model": checkpoint.name,
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model_loaded": True, "checkpoint": checkpoint.name}

    return app


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A stand-in for the original guide's server.")
    parser.add_argument("--checkpoint", required=True, help="name below checkpoints/, or a folder's path")
    parser.add_argument("--port", type=int, default=8000, help="TCP port (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="compute threads; 0: one for each physical core (%(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads or physical_cores())
    app = create_app(PlainCheckpoint(args.checkpoint, ROOT / "checkpoints"))
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
