"""The loss of quality of a form of the weights, beside the exact weights, on documents that were not in training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.decoding import run_to_end, timed_decode
from bench.processes import ROOT
from bench.weights.engines import engine_of
from tasks.sampling_params import SamplingParams
from worker.engine.batch import Batch
from worker.engine.engine import Engine
from worker.engine.kv.cache import KvCache
from worker.engine.native.model import NativeModel
from worker.engine.request import SequenceRequest

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
    nats: float = 0.0
    kl: float = 0.0
    kl_most: float = 0.0
    same_top: int = 0

    def add(self, exact: Tensor, other: Tensor, targets: Tensor) -> None:
        """Add positions: the logits (T, V) of the exact weights and of the others, and the actual next ids (T,)."""
        exact, other = exact.double().log_softmax(-1), other.double().log_softmax(-1)
        kl = (exact.exp() * (exact - other)).sum(-1)
        self.positions += len(targets)
        self.exact_nats -= exact.gather(1, targets[:, None]).sum().item()
        self.nats -= other.gather(1, targets[:, None]).sum().item()
        self.kl += kl.sum().item()
        self.kl_most = max(self.kl_most, kl.max().item())
        self.same_top += int((exact.argmax(-1) == other.argmax(-1)).sum())

    def row(self, form: str, part: str) -> dict[str, Any]:
        """Return the means as a row of the report."""
        return {
            "part": part,
            "form": form,
            "positions": self.positions,
            "nats": self.exact_nats / self.positions,
            "adds_micronats": 1e6 * (self.nats - self.exact_nats) / self.positions,
            "kl_micronats": 1e6 * self.kl / self.positions,
            "kl_most_micronats": 1e6 * self.kl_most,
            "same_top": self.same_top / self.positions,
        }


@dataclass(slots=True)
class Quality:
    """Quality of a form on the documents."""

    #: At all positions, and at those of answers.
    whole: Loss = field(default_factory=Loss)
    answers: Loss = field(default_factory=Loss)
    #: Number of documents whose answer equals the greedily decoded one.
    right: int = 0

    def rows(self, form: str) -> list[dict[str, Any]]:
        """Return the rows of the report."""
        parts = {"documents": self.whole, "answers": self.answers}
        return [loss.row(form, part) for part, loss in parts.items() if loss.positions]


class Recorder:
    """A model that keeps the logits of its steps."""

    reads_beyond = False

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self.config = model.config
        self.device = model.device
        self.logits: list[Tensor] = []

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Run a step of the model."""
        logits = self._model.forward(batch, cache)
        self.logits.append(logits)
        return logits


class Reader:
    """A model that reads documents of at most `longest` ids, and decodes their answers."""

    def __init__(self, model: NativeModel, longest: int) -> None:
        self._recorder = Recorder(model)
        self.engine = engine_of(self._recorder, slots=1, tokens=longest + 1)

    def next_logits(self, ids: list[int]) -> Tensor:
        """Return the logits (T - 1, V) for each id except the first, computed from the ids before it."""
        # With log-probabilities of the prompt, a step gives logits for all of its positions.
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
        self._recorder.logits.clear()
        run_to_end(self.engine, [SequenceRequest(id="0", prompt=tuple(ids), sampling=sampling, every_id=True)])
        return torch.cat(self._recorder.logits)[: len(ids) - 1]


def is_right(engine: Engine, document: Document) -> bool:
    """Whether the engine greedily decodes the document's answer."""
    answer = document.ids[document.answer :]
    return timed_decode(engine, [document.ids[: document.answer]], len(answer)).ids[0] == answer


def measure_quality(exact: str, models: dict[str, NativeModel], documents: Sequence[Document]) -> dict[str, Quality]:
    """Evaluate all forms on all documents, beside the form `exact`, which is one of them."""
    qualities = {form: Quality() for form in models}
    longest = max(len(document.ids) for document in documents)
    readers = {form: Reader(model, longest) for form, model in models.items()}
    for document in documents:
        logits = {form: reader.next_logits(document.ids) for form, reader in readers.items()}
        targets = torch.tensor(document.ids[1:])
        first = document.answer - 1
        for form, quality in qualities.items():
            quality.whole.add(logits[exact], logits[form], targets)
            if document.answer:
                quality.answers.add(logits[exact][first:], logits[form][first:], targets[first:])
                quality.right += is_right(readers[form].engine, document)
    return qualities


def held_out_sums() -> list[Document]:
    """Return the sums that the arithmetic example excludes from training."""
    sys.path.insert(0, str(ARITHMETIC))
    data = importlib.import_module("data")
    documents = []
    for a, b in data.held_out_sums()[: data.HELD_OUT_SUMS]:
        question, answer = data.sum_document(a, b)
        documents.append(Document([data.BOS, *data.encode(question + answer), data.BOS], 1 + len(question)))
    return documents
