"""The warm-up leaves the engine as it was."""

from __future__ import annotations

import pytest

from tests.helpers.engines import decode, engine, model, request
from worker.engine.warm_up import warm_up


@pytest.mark.parametrize("slots", [1, 4])
def test_after_the_warm_up_the_engine_is_idle_and_decodes_as_before(slots: int) -> None:
    one = request("a", (1, 2, 3), 8, temperature=0.9, seed=4)
    fresh = engine(model("E7/step_000101"), slots=slots)
    warm = engine(model("E7/step_000101"), slots=slots)
    warm_up(warm)
    assert not warm.has_work
    warm.check_idle()
    assert decode(warm, one).tokens == decode(fresh, one).tokens
