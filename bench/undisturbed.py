"""What a job's text must be: the same checkpoint in this process, without queue, kills and other workers.

Random draws depend on the seed and the index of the token alone, so a text may differ from this one in one case only:
where two candidates are closer than rounding, a near tie. Each difference is proven to be one, by the logits at its
place and the plain rules of `bench.engine.slow_sampling`; what follows it is compared with a run that goes on
from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.engine.slow_sampling import slow_draw
from tasks.generation import FinishReason, Generation
from tasks.sampling_params import SamplingParams
from worker.checkpoints import meta
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence as EngineSequence
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.prompt import answer_tokens, encode_prompt
from worker.model_loader import load_model

#: What asks for the logits behind a prompt.
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)
#: Texts that are decoded at once; the draws do not depend on it.
ROWS = 32


@dataclass(frozen=True, slots=True)
class Written:
    """What a job wrote."""

    generation: Generation
    token_ids: tuple[int, ...]
    #: Why it ended; None where it was ended from outside, so that the text may be the beginning of one.
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a text compares with the undisturbed one."""

    #: The text of the tokens that were written.
    text: str
    #: What is wrong; None where nothing is.
    difference: str | None
    #: Differences that are proven near ties.
    near_ties: int


class Undisturbed:
    """A loaded checkpoint that says what is right."""

    def __init__(self, checkpoint: str | Path, root: Path = Path(), *, threads: int = 0, rows: int = ROWS) -> None:
        """`checkpoint` is a folder's path, or its name below `root`. Raises CheckpointError."""
        folder = find(str(checkpoint), root)
        self._tokenizer = load_tokenizer(folder, meta.read(folder.meta_file).sizes["vocab_size"])
        loaded = load_model(
            folder,
            self._tokenizer,
            device="cpu",
            threads=threads,
            softcap=None,
            weights="exact",
            slots=rows,
            kv_memory_mb=0,
            prefill_chunk_tokens=256,
        )
        self._engine = loaded.engine
        self._context = loaded.card.context
        self._names = 0

    def compare(self, texts: Sequence[Written]) -> list[Comparison]:
        """One comparison for each text."""
        ties = [0] * len(texts)
        found: dict[int, str] = {}
        #: Where a comparison goes on: tokens that are settled, for each text that is not done.
        settled = dict.fromkeys(range(len(texts)), 0)
        while settled:
            right = self._decode({index: self._request(texts[index], count) for index, count in settled.items()})
            proofs: dict[int, int] = {}
            for index, sequence in right.items():
                at = _first_difference(texts[index], sequence)
                if at is not None:
                    proofs[index] = at
            settled = {}
            for index, problem in self._prove(texts, proofs, right).items():
                if problem is not None:
                    found[index] = problem
                    continue
                ties[index] += 1
                if proofs[index] < len(texts[index].token_ids):
                    settled[index] = proofs[index] + 1
        return [Comparison(self.text(written), found.get(index), ties[index]) for index, written in enumerate(texts)]

    def token_ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without BOS."""
        return self._tokenizer.encode(text).ids

    def text(self, written: Written) -> str:
        """The text of the tokens that were written."""
        generation = written.generation
        decoder = self._tokenizer.decoder()
        assembler = Detokenizer(
            decoder, stop=generation.sampling.stop, stop_on_newline=generation.sampling.stop_on_newline
        )
        return "".join(assembler.push(token_id) for token_id in written.token_ids) + assembler.finish()

    def _prove(
        self, texts: Sequence[Written], places: dict[int, int], right: dict[int, EngineSequence]
    ) -> dict[int, str | None]:
        """For each place of a first difference None where it is a near tie, else what is wrong."""
        problems: dict[int, str | None] = {}
        logits = self._logits({index: (texts[index], at) for index, at in places.items()})
        for index, at in places.items():
            written, request = texts[index], right[index].request
            wrong = written.token_ids[at] if at < len(written.token_ids) else None
            problems[index] = f"token {at} is {wrong}, and not {_at(right[index].tokens, at)}"
            if at >= request.sampling.max_tokens or not self._may_follow(wrong, request):
                continue
            draw = slow_draw(logits[index], request, at, self._engine.vocabulary)
            if draw.near_tie:
                problems[index] = None
            else:
                problems[index] = f"{problems[index]}: no near tie, {draw}"
        return problems

    def _may_follow(self, token: int | None, request: SequenceRequest) -> bool:
        """Whether a text may go on with `token`, or end where it is None, if the draw says so."""
        vocabulary = self._engine.vocabulary
        allowed = vocabulary.candidates(every_id=request.every_id, ignore_eos=request.sampling.ignore_eos)
        if token is None:
            return any(allowed[stop] for stop in vocabulary.stop_ids)
        return token not in vocabulary.stop_ids and allowed[token]

    def _logits(self, places: dict[int, tuple[Written, int]]) -> dict[int, list[float]]:
        """The logits behind the prompt and the first tokens of a text, where the context has room for one more."""
        requests = {}
        for index, (written, at) in places.items():
            prompt = (*self._prompt(written.generation), *written.token_ids[:at])
            if len(prompt) < self._context:
                requests[index] = SequenceRequest(
                    id=self._name(), prompt=prompt, sampling=ONE_TOKEN, keep_prompt_logits=True
                )
        decoded = self._decode(requests)
        return {index: sequence.prompt_logits or [] for index, sequence in decoded.items()}

    def _decode(self, requests: dict[int, SequenceRequest]) -> dict[int, EngineSequence]:
        sequences = {index: self._engine.add_request(request) for index, request in requests.items()}
        while self._engine.has_work:
            self._engine.step()
        return sequences

    def _request(self, written: Written, settled: int) -> SequenceRequest:
        """What decodes the rest of a text behind its first `settled` tokens."""
        generation = written.generation
        prompt = self._prompt(generation)
        return SequenceRequest(
            id=self._name(),
            prompt=prompt,
            sampling=replace(
                generation.sampling,
                max_tokens=answer_tokens(prompt, generation.sampling.max_tokens, context=self._context),
            ),
            generated=written.token_ids[:settled],
        )

    def _prompt(self, generation: Generation) -> tuple[int, ...]:
        return encode_prompt(self._tokenizer, generation.prompt)[0]

    def _name(self) -> str:
        self._names += 1
        return str(self._names)


def _first_difference(written: Written, right: EngineSequence) -> int | None:
    """The place of the first difference; None where there is none."""
    for at, (token, expected) in enumerate(zip(written.token_ids, right.tokens, strict=False)):
        if token != expected:
            return at
    if len(written.token_ids) > len(right.tokens):
        return len(right.tokens)
    ended = written.finish_reason is not None
    if ended and (
        len(written.token_ids) < len(right.tokens) or right.finish != FinishReason(written.finish_reason or "")
    ):
        return len(written.token_ids)
    return None


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None
