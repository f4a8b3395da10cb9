"""Decodes the cases of a reference checkpoint."""

from __future__ import annotations

from typing import Any

from tasks.generation import FinishReason
from tasks.logprobs import unpack
from tests.helpers.requests import sequence_request
from worker.engine.decoding_model import DecodingModel
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.engine.vocabulary import Vocabulary


def decode_cases(
    decoding: DecodingModel, cases: list[dict[str, Any]], chunk: int, *, prompt_logprobs: bool = False
) -> list[tuple[Sequence, list[float]]]:
    """Decode all cases in one batch, their prompts in chunks.

    Returns the sequence of each case, and, with `prompt_logprobs`, those of its prompt after the first token.
    """
    engine = Engine(
        decoding,
        Vocabulary.without_text(decoding.config.vocab_size),
        slots=len(cases),
        kv_tokens=2048,
        prefill_chunk_tokens=chunk,
    )
    sequences = [
        engine.add_request(
            sequence_request(
                id=str(number),
                prompt=tuple(case["prompt"]),
                max_tokens=len(case["greedy"]),
                every_id=True,
                ignore_eos=True,
                keep_prompt_logits=True,
                prompt_logprobs=0 if prompt_logprobs else None,
            )
        )
        for number, case in enumerate(cases)
    ]
    records: dict[str, bytes] = {sequence.request.id: b"" for sequence in sequences}
    while engine.has_work:
        for update in engine.step().updates:
            records[update.id] += update.prompt_logprobs
    assert {sequence.finish for sequence in sequences} == {FinishReason.LENGTH}
    return [
        (sequence, [one.chosen.logprob for one in unpack(records[sequence.request.id], 0)]) for sequence in sequences
    ]
