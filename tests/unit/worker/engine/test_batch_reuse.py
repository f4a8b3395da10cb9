"""The batch of one decoding step is reused for the next one while the same rows decode."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.helpers.engines import Tampered, decode, engine, model, request, run_until_idle
from worker.engine.batch import Batch
from worker.engine.engine import Engine

FOLDER = "E1b-seed/step_000102"


class Recorded:
    """An engine that records the batches of its steps."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        #: Raised by the next forward pass.
        self.error: Exception | None = None
        self.engine: Engine = engine(Tampered(model(FOLDER), self._record))

    def _record(self, batch: Batch, logits: Tensor) -> Tensor:
        self.batches.append(batch)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return logits

    def step(self) -> Batch:
        """Run one step and return its last batch."""
        self.engine.step()
        return self.batches[-1]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_a_batch_is_reused_until_the_rows_change(recorded: Recorded) -> None:
    first = recorded.engine.add_request(request("first", (1, 2), 12))
    prefill, decoding = recorded.step(), recorded.step()
    assert decoding is not prefill, "a batch with a prompt is not reused"
    assert recorded.step() is decoding
    assert decoding.last_position == first.length - 1, "it already holds the next step"
    recorded.engine.add_request(request("second", (3,), 12))
    both = recorded.step()
    assert both is not decoding
    assert recorded.step() is both
    recorded.engine.abort("first")
    assert recorded.step() is not both
    run_until_idle(recorded.engine)


def test_a_batch_of_a_suspect_is_not_reused_for_the_rows_that_were_paused(recorded: Recorded) -> None:
    recorded.engine.add_request(request("other", (1, 2), 12))
    recorded.engine.add_request(request("suspect", (3,), 12, alone=2))
    suspects = [recorded.step(), recorded.step()]
    assert [len(batch.chunks) for batch in suspects] == [1, 1]
    assert [chunk.sequence.id for chunk in recorded.step().chunks] == ["suspect", "other"]
    run_until_idle(recorded.engine)


def test_after_an_error_the_next_batch_is_new_and_the_tokens_stay_the_same(recorded: Recorded) -> None:
    one, expected = request("one", (1, 2), 12), decode(engine(model(FOLDER)), request("one", (1, 2), 12)).tokens
    sequence = recorded.engine.add_request(one)
    recorded.engine.add_request(request("other", (3,), 12))
    failed = [recorded.step(), recorded.step()][-1]
    recorded.error = RuntimeError("only this time")
    assert recorded.step() is not failed
    assert [len(batch.chunks) for batch in recorded.batches[-3:]] == [2, 1, 1]
    assert len(recorded.step().chunks) == 2
    run_until_idle(recorded.engine)
    assert sequence.tokens == expected
