"""The figures of `bench.engine`, computed from the measurements of all rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.decoding import Run
from bench.engine.limits import Limits
from bench.engine.measured_model import least_prefill_s, least_step_s
from bench.peers.peer import Times
from worker.engine.decoding_model import DecodingModel


@dataclass(frozen=True, slots=True)
class Round:
    """The measurements of one batch size in one round."""

    celeriac: Run
    #: The times of every variant of the baseline; empty if there is no baseline.
    baseline: dict[str, Times]
    limits: Limits


def engine_figures(
    model: DecodingModel, batch: int, rounds: Sequence[Round], *, prompt: int, tokens: int
) -> dict[str, Any]:
    """Return Celeriac's figures, also as shares of the limit. Each text has `prompt` and `tokens` tokens."""
    context = prompt + tokens / 2
    runs = [(each.celeriac, each.limits) for each in rounds]
    return {
        "tokens_per_s": _median(batch * run.steps / run.decode_s for run, _ in runs),
        "step_ms": _median(1000 * run.decode_s / run.steps for run, _ in runs),
        "limit_share": _median(
            least_step_s(model, limits, batch, context) * run.steps / run.decode_s for run, limits in runs
        ),
        "prefill_tokens_per_s": _median(batch * prompt / run.prefill_s for run, _ in runs),
        "prefill_ms": _median(1000 * run.prefill_s for run, _ in runs),
        "prefill_limit_share": _median(
            least_prefill_s(model, limits, batch, prompt) / run.prefill_s for run, limits in runs
        ),
    }


def peer_figures(batch: int, rounds: Sequence[Round], *, tokens: int) -> dict[str, Any]:
    """Return the figures of the baseline's fastest variant, and how many times as fast Celeriac is."""
    speeds = {
        variant: _median(batch * tokens / each.baseline[variant].seconds for each in rounds)
        for variant in rounds[0].baseline
    }
    fastest = max(speeds, key=lambda variant: speeds[variant])
    pairs = [(each.celeriac, each.baseline[fastest]) for each in rounds]
    ratios = [peer.seconds / run.seconds for run, peer in pairs]
    decode_ratios = [peer.decode_s / run.decode_s for run, peer in pairs]
    return {
        "peer_variant": fastest,
        "peer_tokens_per_s": speeds[fastest],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": _median(ratios),
        "peer_decode_tokens_per_s": _median(batch * (tokens - 1) / peer.decode_s for _, peer in pairs),
        "decode_ratios": [round(ratio, 3) for ratio in decode_ratios],
        "decode_ratio": _median(decode_ratios),
        "other_variants": {variant: speed for variant, speed in speeds.items() if variant != fastest},
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)
