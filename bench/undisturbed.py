"""Compares texts with undisturbed runs: the same requests, decoded in this process without a queue and without faults.

Random draws depend only on the seed and on the index of the token. So a text may differ from the undisturbed one in one
case: where two candidates are closer than rounding, a near tie. For each difference the logits at its place and the
plain rules of `bench.slow_sampling` must prove a near tie. The rest of that text is then compared with a run that
continues after the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.decoding import load_engine, run_to_end
from bench.slow_sampling import slow_draw
from tasks.generation import FinishReason, Generation
from tasks.sampling_params import SamplingParams
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence as EngineSequence
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.prompt import answer_tokens, encode_prompt

#: Parameters of a request that asks for the logits after its prompt.
_ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)
#: Default number of texts in a batch. The draws do not depend on it.
ROWS = 32


@dataclass(frozen=True, slots=True)
class Written:
    """The output of a job."""

    generation: Generation
    token_ids: tuple[int, ...]
    #: Why the text ended; None if it was cut off from outside, so that it may be only the beginning of a text.
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of comparing one text with the undisturbed one."""

    #: The text of the job's tokens.
    text: str
    #: Describes the first difference that is not a near tie; None if there is none.
    difference: str | None
    #: Number of differences that are proven near ties.
    near_ties: int


class Undisturbed:
    """A loaded checkpoint that decodes requests without disturbance and compares texts with the results."""

    def __init__(self, checkpoint: str | Path, root: Path = Path(), *, threads: int = 0, rows: int = ROWS) -> None:
        """`checkpoint` is a folder's path, or its name below `root`. Raises CheckpointError."""
        loaded, self._tokenizer = load_engine(checkpoint, root, device="cpu", threads=threads, slots=rows)
        self._engine = loaded.engine
        self._context = loaded.card.context
        self._requests = 0

    def compare(self, texts: Sequence[Written]) -> list[Comparison]:
        """Return one comparison for each text."""
        near_ties = [0] * len(texts)
        differences: dict[int, str] = {}
        #: For each text that is not finished: the number of tokens that are already compared.
        compared = dict.fromkeys(range(len(texts)), 0)
        while compared:
            expected = self._decode({index: self._request(texts[index], count) for index, count in compared.items()})
            places: dict[int, int] = {}
            for index, sequence in expected.items():
                at = _first_difference(texts[index], sequence)
                if at is not None:
                    places[index] = at
            compared = {}
            for index, difference in self._explain(texts, places, expected).items():
                if difference is not None:
                    differences[index] = difference
                    continue
                near_ties[index] += 1
                if places[index] < len(texts[index].token_ids):
                    compared[index] = places[index] + 1
        return [
            Comparison(self.text(written), differences.get(index), near_ties[index])
            for index, written in enumerate(texts)
        ]

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, without BOS."""
        return self._tokenizer.encode(text).ids

    def text(self, written: Written) -> str:
        """Return the text of the job's tokens."""
        sampling = written.generation.sampling
        detokenizer = Detokenizer(
            self._tokenizer.decoder(), stop=sampling.stop, stop_on_newline=sampling.stop_on_newline
        )
        return "".join(detokenizer.push(token_id) for token_id in written.token_ids) + detokenizer.finish()

    def _explain(
        self, texts: Sequence[Written], places: dict[int, int], expected: dict[int, EngineSequence]
    ) -> dict[int, str | None]:
        """Return for each first difference None if it is a near tie, else its description."""
        differences: dict[int, str | None] = {}
        logits = self._logits({index: (texts[index], at) for index, at in places.items()})
        for index, at in places.items():
            written, request = texts[index], expected[index].request
            token = _at(written.token_ids, at)
            differences[index] = f"token {at} is {token}, expected {_at(expected[index].tokens, at)}"
            if at >= request.sampling.max_tokens or not self._is_possible(token, request):
                continue
            draw = slow_draw(logits[index], request, expected[index].tokens[:at], self._engine.vocabulary)
            if draw.near_tie:
                differences[index] = None
            else:
                differences[index] = f"{differences[index]}; not a near tie: {draw}"
        return differences

    def _is_possible(self, token: int | None, request: SequenceRequest) -> bool:
        """Whether the draw may choose `token`, or may end the text if `token` is None."""
        vocabulary = self._engine.vocabulary
        candidates = vocabulary.candidates(every_id=request.every_id, ignore_eos=request.sampling.ignore_eos)
        if token is None:
            return any(candidates[stop] for stop in vocabulary.stop_ids)
        return token not in vocabulary.stop_ids and candidates[token]

    def _logits(self, places: dict[int, tuple[Written, int]]) -> dict[int, list[float]]:
        """Return the logits after the first tokens of each text whose context has room for one more token."""
        requests = {}
        for index, (written, at) in places.items():
            prompt = (*self._prompt(written.generation), *written.token_ids[:at])
            if len(prompt) < self._context:
                requests[index] = SequenceRequest(
                    id=self._next_id(), prompt=prompt, sampling=_ONE_TOKEN, keep_prompt_logits=True
                )
        return {index: sequence.prompt_logits or [] for index, sequence in self._decode(requests).items()}

    def _decode(self, requests: dict[int, SequenceRequest]) -> dict[int, EngineSequence]:
        return dict(zip(requests, run_to_end(self._engine, requests.values()), strict=True))

    def _request(self, written: Written, compared: int) -> SequenceRequest:
        """Return a request that continues a text after its first `compared` tokens."""
        generation = written.generation
        prompt = self._prompt(generation)
        max_tokens = answer_tokens(prompt, generation.sampling.max_tokens, context=self._context)
        return SequenceRequest(
            id=self._next_id(),
            prompt=prompt,
            sampling=replace(generation.sampling, max_tokens=max_tokens),
            generated=written.token_ids[:compared],
        )

    def _prompt(self, generation: Generation) -> tuple[int, ...]:
        return encode_prompt(self._tokenizer, generation.prompt)[0]

    def _next_id(self) -> str:
        self._requests += 1
        return str(self._requests)


def _first_difference(written: Written, expected: EngineSequence) -> int | None:
    """Return the index of the first difference; None if there is none."""
    for at, (token, expected_token) in enumerate(zip(written.token_ids, expected.tokens, strict=False)):
        if token != expected_token:
            return at
    if len(written.token_ids) > len(expected.tokens):
        return len(expected.tokens)
    if written.finish_reason is None:
        return None
    ended_early = len(written.token_ids) < len(expected.tokens)
    return len(written.token_ids) if ended_early or written.finish_reason is not expected.finish else None


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None
