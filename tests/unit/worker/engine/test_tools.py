"""The calculator in the decode loop: results follow expressions, whatever runs beside them and wherever they resume."""

from __future__ import annotations

from collections.abc import Sequence as Ids

import pytest
from torch import Tensor

from tasks.generation import FinishReason
from tasks.logprobs import unpack
from tests.helpers.engines import Tampered, decode, model, request, run_until_idle
from tests.helpers.requests import changed
from worker.engine.batch import Batch
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.tools.tool_ids import ToolIds
from worker.engine.tools.tool_use import ToolUse
from worker.engine.vocabulary import Vocabulary

#: Ids 0 to 59 are the characters from " " on; these follow.
IDS = ToolIds(python_start=60, python_end=61, output_start=62, output_end=63)
STOP = 64


def encode(text: str) -> tuple[int, ...]:
    return tuple(ord(char) - 32 for char in text)


def spell(ids: Ids[int]) -> str:
    return "".join(chr(token + 32) for token in ids)


#: What the model writes, and the whole answer with the results.
SAID = (*encode("SO "), IDS.python_start, *encode("12*12"), IDS.python_end, *encode(" IS IT."), STOP)
WHOLE = (
    *encode("SO "),
    *(IDS.python_start, *encode("12*12"), IDS.python_end),
    *(IDS.output_start, *encode("144"), IDS.output_end),
    *encode(" IS IT."),
)


def scripted(batch: Batch, logits: Tensor) -> Tensor:
    """Makes the next token of each answer the one of `SAID` that comes after what the model has written so far."""
    for row, output in enumerate(batch.outputs):
        written = [*output.sequence.tokens]
        if IDS.output_start in written:
            del written[written.index(IDS.output_start) : written.index(IDS.output_end) + 1]
        if written == list(SAID[: len(written)]) and len(written) < len(SAID):
            logits[row, SAID[len(written)]] += 1000
    return logits


def engine() -> Engine:
    decoding = Tampered(model("E7/step_000101"), scripted)
    size = decoding.config.vocab_size
    text = tuple(bytes([32 + token]) if token < 60 else None for token in range(size))
    tool_ids = frozenset((IDS.python_start, IDS.python_end))
    return Engine(
        decoding,
        Vocabulary(size, text, frozenset({STOP}), tool_ids),
        slots=4,
        kv_tokens=1024,
        prefill_chunk_tokens=16,
        tool_use=lambda: ToolUse(IDS, spell, encode),
    )


def sum_request(name: str = "sum", **fields: object) -> SequenceRequest:
    return request(name, max_tokens=40, ignore_eos=False, tools=True, **fields)


def test_the_result_follows_the_expression_and_the_text_goes_on() -> None:
    sequence = decode(engine(), sum_request())
    assert (tuple(sequence.tokens), sequence.finish) == (WHOLE, FinishReason.STOP)


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_an_answer_that_resumes_anywhere_is_the_same(cut: int) -> None:
    sequence = decode(engine(), sum_request(generated=WHOLE[:cut]))
    assert (tuple(sequence.tokens), sequence.finish) == (WHOLE, FinishReason.STOP)


def test_other_rows_are_not_disturbed_by_a_result() -> None:
    others = [request(f"other{index}", prompt=(5, 6, index), max_tokens=30) for index in range(2)]
    alone = [tuple(decode(engine(), one).tokens) for one in others]
    running = engine()
    found = [running.add_request(one) for one in (others[0], sum_request(), others[1])]
    run_until_idle(running)
    assert tuple(found[1].tokens) == WHOLE
    assert [tuple(found[0].tokens), tuple(found[2].tokens)] == alone


def test_without_tools_no_result_is_added() -> None:
    sequence = decode(engine(), changed(sum_request(), tools=False))
    assert not {*sequence.tokens} & {IDS.python_start, IDS.output_start}


def test_stop_texts_and_newlines_inside_tool_content_do_not_end_the_text() -> None:
    sequence = decode(engine(), sum_request(stop=("12*", "144", "IT")))
    assert (sequence.tokens[-1:], sequence.finish) == ([*encode("T")], FinishReason.STOP)
    assert tuple(sequence.tokens) == WHOLE[: len(sequence.tokens)]


@pytest.mark.parametrize("most", range(1, len(WHOLE) + 1))
def test_the_limit_counts_tool_content(most: int) -> None:
    sequence = decode(engine(), changed(sum_request(), max_tokens=most))
    assert tuple(sequence.tokens) == WHOLE[:most]
    assert sequence.finish is FinishReason.LENGTH


def test_each_token_has_a_record_and_forced_ones_are_certain() -> None:
    running = engine()
    running.add_request(sum_request(logprobs=2))
    packed, tokens = b"", []
    while running.has_work:
        for update in running.step().updates:
            packed += update.logprobs
            tokens += update.tokens
    records = unpack(packed, 2)
    assert [one.chosen.token_id for one in records] == [*tokens, STOP]
    first = WHOLE.index(IDS.output_start)
    for one in records[first : first + 5]:
        assert (one.chosen.logprob, one.top) == (0.0, ())
    assert all(one.chosen.logprob < 0 or one.top for one in records[:first])
