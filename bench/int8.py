"""Compares int8 weights with the exact ones: gain of speed and memory, loss of quality.

    python -m bench.int8 --shape 24,1536,12,32 --threads 1 --batch 1,8,32 --tokens 8
    python -m bench.int8 --checkpoint checkpoints/step_003650

A round decodes each batch with both forms, one after the other. Figures are medians of the rounds, and a gain is
computed within a round.

The loss is measured with a checkpoint on documents that it was not trained on: the held-out sums of
examples/arithmetic, or the lines of `--text`. `nats` is the cross entropy of the actual next token. `kl` is the
divergence of int8's distribution of the next token from that of the exact weights. Both are means over all positions.
`same_top` is the share of positions at which both forms have the same most likely token.
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

from bench.decoding import Run, prompts, run_to_end, timed_decode
from bench.options import add_decoding_options, add_model_options, batch_sizes, shape_config
from bench.processes import ROOT
from bench.random_weights import random_weights
from bench.report import report
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

#: Batch size when the loss is measured.
ROWS = 32
ARITHMETIC = ROOT / "examples" / "arithmetic"


@dataclass(frozen=True, slots=True)
class Document:
    """The ids of a text that may end with an answer."""

    ids: list[int]
    #: Index of the answer's first id; 0 if the text has no answer.
    answer: int


@dataclass(slots=True)
class Loss:
    """Sums over the positions of documents."""

    positions: int = 0
    exact_nats: float = 0.0
    int8_nats: float = 0.0
    kl: float = 0.0
    kl_most: float = 0.0
    same_top: int = 0

    def add(self, exact: Tensor, int8: Tensor, targets: Tensor) -> None:
        """Add positions: the logits (T, V) of both forms, and the actual next ids (T,)."""
        exact, int8 = exact.double().log_softmax(-1), int8.double().log_softmax(-1)
        kl = (exact.exp() * (exact - int8)).sum(-1)
        self.positions += len(targets)
        self.exact_nats -= exact.gather(1, targets[:, None]).sum().item()
        self.int8_nats -= int8.gather(1, targets[:, None]).sum().item()
        self.kl += kl.sum().item()
        self.kl_most = max(self.kl_most, kl.max().item())
        self.same_top += int((exact.argmax(-1) == int8.argmax(-1)).sum())

    def row(self, part: str) -> dict[str, Any]:
        """Return the means as a row of the report."""
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
    """Quality of both forms on the documents."""

    #: At all positions, and at those of answers.
    whole: Loss = field(default_factory=Loss)
    answers: Loss = field(default_factory=Loss)
    #: Number of documents whose answer equals the greedily decoded one.
    exact_right: int = 0
    int8_right: int = 0


def engine_of(model: NativeModel, slots: int) -> Engine:
    """Return an engine that decodes bare ids, without a tokenizer."""
    kv_tokens = model.device.kv_tokens(model.config, slots=slots)
    vocabulary = Vocabulary.without_text(model.config.vocab_size)
    return Engine(model, vocabulary, slots=slots, kv_tokens=kv_tokens, prefill_chunk_tokens=256, prefix_cache=False)


def next_logits(engine: Engine, ids: list[int]) -> Tensor:
    """Return the logits (T - 1, V) for each id except the first, computed from the ids before it."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    requests = [
        SequenceRequest(id=str(end), prompt=tuple(ids[:end]), sampling=sampling, keep_prompt_logits=True, every_id=True)
        for end in range(1, len(ids))
    ]
    return torch.tensor([sequence.prompt_logits for sequence in run_to_end(engine, requests)])


def is_right(engine: Engine, document: Document) -> bool:
    """Whether the engine greedily decodes the document's answer."""
    answer = document.ids[document.answer :]
    return timed_decode(engine, [document.ids[: document.answer]], len(answer)).ids[0] == answer


def measure_quality(exact: Engine, int8: Engine, documents: Sequence[Document]) -> Quality:
    """Evaluate both forms on all documents."""
    quality = Quality()
    for document in documents:
        exact_logits, int8_logits = next_logits(exact, document.ids), next_logits(int8, document.ids)
        targets = torch.tensor(document.ids[1:])
        quality.whole.add(exact_logits, int8_logits, targets)
        if document.answer:
            first = document.answer - 1
            quality.answers.add(exact_logits[first:], int8_logits[first:], targets[first:])
            quality.exact_right += is_right(exact, document)
            quality.int8_right += is_right(int8, document)
    return quality


def held_out_sums() -> list[Document]:
    """Return the sums that the arithmetic example excludes from training."""
    sys.path.insert(0, str(ARITHMETIC))
    data = importlib.import_module("data")
    documents = []
    for a, b in data.held_out_sums()[: data.HELD_OUT_SUMS]:
        question, answer = data.sum_document(a, b)
        documents.append(Document([data.BOS, *data.encode(question + answer), data.BOS], 1 + len(question)))
    return documents


def gains(models: dict[str, NativeModel], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure both forms. Returns a row for each batch size."""
    batches = batch_sizes(args)
    engines = {form: engine_of(model, max(batches)) for form, model in models.items()}
    vocab_size = models["exact"].config.vocab_size
    runs: dict[int, list[dict[str, Run]]] = {batch: [] for batch in batches}
    for round_ in range(args.rounds + 1):
        for batch in batches:
            texts = prompts(batch, args.prompt, vocab_size)
            forms = list(engines) if round_ % 2 else list(engines)[::-1]
            pair = {form: timed_decode(engines[form], texts, args.tokens) for form in forms}
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


def load(args: argparse.Namespace) -> tuple[ModelConfig, dict[str, NativeModel]]:
    """Load the model of the command line in both forms."""
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
            sys.exit("int8 needs the compiled kernels, and they are not available here")
        models[form] = model
    return config, models


def documents_of(args: argparse.Namespace, config: ModelConfig) -> list[Document]:
    """Return the held-out sums, or the lines of `--text`."""
    if args.text is None:
        return held_out_sums()[: args.documents]
    tokenizer = load_tokenizer(find(args.checkpoint, Path()), config.vocab_size)
    lines = [line for line in args.text.read_text().splitlines() if line][: args.documents]
    return [Document(list(encode_prompt(tokenizer, line)[0]), 0) for line in lines]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.int8", description="Compare int8 weights with the exact ones: speed, memory and quality."
    )
    add_model_options(parser)
    add_decoding_options(parser, tokens=50)
    parser.add_argument("--text", type=Path, help="file with one document a line, used instead of sums")
    parser.add_argument("--documents", type=int, default=1000, help="number of documents at most (%(default)s)")
    args = parser.parse_args()
    config, models = load(args)
    rows = gains(models, args)
    right = None
    if not args.shape:
        documents = documents_of(args, config)
        quality = measure_quality(engine_of(models["exact"], ROWS), engine_of(models["int8"], ROWS), documents)
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
