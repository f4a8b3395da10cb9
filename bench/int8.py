"""What int8 weights gain in speed and memory, and what they lose in quality, beside the exact ones.

    python -m bench.int8 --shape 24,1536,12,32 --threads 1 --batch 1,8,32 --tokens 8
    python -m bench.int8 --checkpoint checkpoints/step_003650

A round decodes each batch with both, in turns; figures are medians of the rounds, and a gain is taken within a round.

The loss is that of a checkpoint on documents which it was not trained on: the held-out sums of examples/arithmetic, or
the lines of `--text`. `nats` is the cross entropy of the token that does come, `kl` the divergence of what int8 expects
as the next token from what the exact weights expect, both as means of all positions, and `same_top` is how often both
have the same likeliest one.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.engine.__main__ import ROUNDS, Run, decode, prompts, shape_config
from bench.report import report
from bench.shapes import random_weights
from tasks.sampling_params import SamplingParams
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.architecture.config import ModelConfig
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.native.model import NativeModel
from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary
from worker.jobs.prompt import encode_prompt

#: Sequences that are decoded at once where the loss is measured.
ROWS = 32
ARITHMETIC = Path(__file__).parents[1] / "examples" / "arithmetic"


@dataclass(frozen=True, slots=True)
class Document:
    """Ids of a text, of which those from `answer` on are the answer to those before."""

    ids: list[int]
    answer: int


@dataclass(slots=True)
class Loss:
    """Sums over positions."""

    positions: int = 0
    exact_nats: float = 0.0
    int8_nats: float = 0.0
    kl: float = 0.0
    kl_most: float = 0.0
    same_top: int = 0

    def add(self, exact: Tensor, int8: Tensor, targets: Tensor) -> None:
        """Logits (T, V) of both, and the ids that came (T,)."""
        exact, int8 = exact.double().log_softmax(-1), int8.double().log_softmax(-1)
        kl = (exact.exp() * (exact - int8)).sum(-1)
        self.positions += len(targets)
        self.exact_nats -= exact.gather(1, targets[:, None]).sum().item()
        self.int8_nats -= int8.gather(1, targets[:, None]).sum().item()
        self.kl += kl.sum().item()
        self.kl_most = max(self.kl_most, kl.max().item())
        self.same_top += int((exact.argmax(-1) == int8.argmax(-1)).sum())

    def row(self, part: str) -> dict[str, Any]:
        """Means."""
        return {
            "part": part,
            "positions": self.positions,
            "nats": self.exact_nats / self.positions,
            "int8_adds_micronats": 1e6 * (self.int8_nats - self.exact_nats) / self.positions,
            "kl_micronats": 1e6 * self.kl / self.positions,
            "kl_most_micronats": 1e6 * self.kl_most,
            "same_top": self.same_top / self.positions,
        }


@dataclass(slots=True)
class Quality:
    """What both models say to the documents."""

    whole: Loss = field(default_factory=Loss)
    answers: Loss = field(default_factory=Loss)
    #: Documents whose answer is what is decoded greedily.
    exact_right: int = 0
    int8_right: int = 0


def engine_of(model: NativeModel, slots: int) -> Engine:
    """An engine of a model that knows ids alone."""
    kv_tokens = model.device.kv_tokens(model.config, slots=slots)
    vocabulary = Vocabulary.without_text(model.config.vocab_size)
    return Engine(model, vocabulary, slots=slots, kv_tokens=kv_tokens, prefill_chunk_tokens=256)


def next_logits(engine: Engine, ids: list[int]) -> Tensor:
    """The logits for each id but the first, from those before it: (T - 1, V)."""
    beginnings = [
        engine.add_request(
            SequenceRequest(
                id=str(end),
                prompt=tuple(ids[:end]),
                sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
                keep_prompt_logits=True,
                every_id=True,
            )
        )
        for end in range(1, len(ids))
    ]
    while engine.has_work:
        engine.step()
    return torch.tensor([beginning.prompt_logits for beginning in beginnings])


def answers(engine: Engine, document: Document) -> bool:
    """Whether the answer is what the model decodes greedily."""
    answer = document.ids[document.answer :]
    return decode(engine, [document.ids[: document.answer]], len(answer)).ids[0] == answer


def compared(exact: Engine, int8: Engine, documents: Sequence[Document]) -> Quality:
    """Both models on all documents."""
    quality = Quality()
    for document in documents:
        of_exact, of_int8 = next_logits(exact, document.ids), next_logits(int8, document.ids)
        targets = torch.tensor(document.ids[1:])
        quality.whole.add(of_exact, of_int8, targets)
        if document.answer:
            first = document.answer - 1
            quality.answers.add(of_exact[first:], of_int8[first:], targets[first:])
            quality.exact_right += answers(exact, document)
            quality.int8_right += answers(int8, document)
    return quality


def held_out_sums() -> list[Document]:
    """The sums that the arithmetic example keeps from training."""
    sys.path.insert(0, str(ARITHMETIC))
    data = importlib.import_module("data")
    documents = []
    for a, b in data.held_out_sums()[: data.HELD_OUT_SUMS]:
        question, answer = data.sum_document(a, b)
        documents.append(Document([data.BOS, *data.encode(question + answer), data.BOS], 1 + len(question)))
    return documents


def gains(models: dict[str, NativeModel], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each batch size."""
    batches = [int(batch) for batch in args.batch.split(",")]
    engines = {form: engine_of(model, max(batches)) for form, model in models.items()}
    vocab_size = models["exact"].config.vocab_size
    runs: dict[int, list[dict[str, Run]]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            texts = prompts(batch, args.prompt, vocab_size)
            forms = list(engines) if round_ % 2 else list(engines)[::-1]
            pair = {form: decode(engines[form], texts, args.tokens) for form in forms}
            if round_:
                runs[batch].append(pair)
    return [
        {
            "batch": batch,
            **{
                f"{form}_step_ms": statistics.median(1000 * pair[form].decode_s / pair[form].steps for pair in pairs)
                for form in engines
            },
            "gain": statistics.median(pair["exact"].decode_s / pair["int8"].decode_s for pair in pairs),
            "gains": sorted(round(pair["exact"].decode_s / pair["int8"].decode_s, 2) for pair in pairs),
            "prefill_gain": statistics.median(pair["exact"].prefill_s / pair["int8"].prefill_s for pair in pairs),
        }
        for batch, pairs in runs.items()
    ]


def loaded(args: argparse.Namespace) -> tuple[ModelConfig, dict[str, NativeModel]]:
    """The model of the command line, in both forms."""
    if args.shape:
        config = shape_config(args.shape)
        weights = random_weights(config.n_layer, config.n_embd, config.vocab_size)
    else:
        checkpoint = formats.load(find(args.checkpoint, Path()))
        config, weights = checkpoint.config, dict(checkpoint.weights)
    device = Device.choose("cpu", threads=args.threads)
    models: dict[str, NativeModel] = {}
    for form in ("int8", "exact"):
        model = load_weights(config, weights, device, form)
        if not isinstance(model, NativeModel):
            sys.exit("there are no compiled kernels here")
        models[form] = model
    return config, models


def documents_of(args: argparse.Namespace, config: ModelConfig) -> list[Document]:
    """The held-out sums, or the lines of a file."""
    if args.text is None:
        return held_out_sums()[: args.documents]
    tokenizer = load_tokenizer(find(args.checkpoint, Path()), config.vocab_size)
    lines = [line for line in args.text.read_text().splitlines() if line][: args.documents]
    return [Document(list(encode_prompt(tokenizer, line)[0]), 0) for line in lines]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="int8 weights beside exact ones.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", default="checkpoints/step_003650", help="folder of the checkpoint")
    source.add_argument("--shape", metavar="L,D,H,V", help="layers, width, heads and ids of a model of random weights")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes, separated by commas")
    parser.add_argument("--tokens", type=int, default=50, help="tokens of each text, at least 2")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds that count")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the engine chooses")
    parser.add_argument("--text", type=Path, help="a file of documents, one a line, instead of sums")
    parser.add_argument("--documents", type=int, default=1000, help="documents that are read at most")
    parser.add_argument("--json", action="store_true", help="print no table, the line of JSON alone")
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error("--tokens must be at least 2: the first one is the prefill's")
    config, models = loaded(args)
    rows = gains(models, args)
    right = None
    if not args.shape:
        documents = documents_of(args, config)
        quality = compared(engine_of(models["exact"], ROWS), engine_of(models["int8"], ROWS), documents)
        rows.append(quality.whole.row("documents"))
        if quality.answers.positions:
            rows.append(quality.answers.row("answers"))
            right = {"documents": len(documents), "exact": quality.exact_right, "int8": quality.int8_right}
    report(
        "int8",
        rows,
        quiet=args.json,
        model=args.shape or args.checkpoint,
        rounds=args.rounds,
        matrix_bytes={form: model.matrix_bytes for form, model in models.items()},
        right_answers=right,
    )


if __name__ == "__main__":
    main()
