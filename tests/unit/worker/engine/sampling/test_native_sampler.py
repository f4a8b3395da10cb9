"""The compiled kernels draw the same ids as torch, for every kind of processor that this machine can run as."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.helpers.engines import engine, model, request, run_until_done
from tests.helpers.samplers import KINDS, drawn, kernels_for, native_sampler, sequence, torch_sampler
from worker.engine.backends import fastest_sampler
from worker.engine.device import Device
from worker.engine.philox import uniforms
from worker.engine.sampling.native_sampler import NativeSampler
from worker.engine.sampling.torch_sampler import TorchSampler
from worker.engine.sequence import Sequence
from worker.engine.vocabulary import Vocabulary

pytestmark = pytest.mark.skipif(not KINDS, reason="no C compiler, or no kernels for this processor")

#: One id, less than one vector, whole vectors, one more; a small BPE vocabulary; nanochat's.
SIZES = [1, 2, 31, 32, 33, 1000, 65_536]
TEMPERATURES = [0.0, 0.01, 0.3, 0.8, 1.0, 2.0, 50.0]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def vocabulary_of(size: int) -> Vocabulary:
    """A vocabulary in which some ids have no text, and the last one is a stop id."""
    return Vocabulary(size, tuple(None if token % 7 == 3 else b"a" for token in range(size)), frozenset({size - 1}))


def some_rows(size: int, choose: random.Random) -> tuple[Tensor, list[Sequence]]:
    """Random rows and requests. Some logits are equal, and some are not finite."""
    vocabulary = vocabulary_of(size)
    count = choose.choice((1, 3, 8))
    logits = torch.randn(count, size, generator=torch.Generator().manual_seed(choose.getrandbits(32)))
    logits *= choose.choice((0.1, 1, 4, 15))
    if choose.random() < 0.4:
        logits = (logits * 4).round() / 4
    if choose.random() < 0.2:
        logits[choose.randrange(count), choose.randrange(size)] = choose.choice((math.nan, math.inf, -math.inf))
    batch = [
        sequence(
            vocabulary,
            generated=(0,) * choose.randrange(4),
            temperature=choose.choice(TEMPERATURES),
            top_k=choose.choice((None, 1, 2, 50, size // 2 or 1, size, size + 5)),
            # No round numbers: with equal logits, only rounding would decide whether they are reached.
            top_p=choose.choice((None, 0.0, 0.9000001, 0.999999, 1.0, choose.random())),
            min_p=choose.choice((None, None, 0.0, 1.0, choose.random(), choose.random() ** 4)),
            presence_penalty=choose.choice((None, None, choose.uniform(-2, 2))),
            frequency_penalty=choose.choice((None, None, choose.uniform(-2, 2))),
            repetition_penalty=choose.choice((None, None, choose.uniform(0.1, 10))),
            logit_bias=tuple(
                (choose.randrange(size), choose.uniform(-100, 100)) for _ in range(choose.choice((0, 0, 3)))
            ),
            stop_token_ids=tuple(choose.randrange(size) for _ in range(choose.choice((0, 0, 2)))),
            min_tokens=choose.choice((None, None, 2)),
            seed=choose.getrandbits(64),
            choice=choose.choice((0, choose.getrandbits(32))),
            every_id=size == 1 or choose.random() < 0.5,
            ignore_eos=size > 2 and choose.random() < 0.3,
        )
        for _ in range(count)
    ]
    return logits, batch


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_drawn_ids_are_those_of_torch(kind: str, size: int) -> None:
    choose = random.Random(size)
    native, reference = native_sampler(kind, vocabulary_of(size)), torch_sampler(vocabulary_of(size))
    for _ in range(200 if size < 10_000 else 10):
        logits, batch = some_rows(size, choose)
        assert drawn(native, logits, batch) == drawn(reference, logits, batch), [row.request for row in batch]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["rising", "falling", "equal", "steps", "one above"])
def test_logits_in_any_order_give_the_ids_of_torch(kind: str, order: str) -> None:
    size = 5000
    ramp = torch.arange(size) / 1000
    logits = {
        "rising": ramp,
        "falling": ramp.flip(0),
        "equal": torch.zeros(size),
        "steps": ramp.floor(),
        "one above": torch.eye(1, size)[0] * 30,
    }[order].repeat(8, 1)
    vocabulary = Vocabulary.without_text(size)
    native, reference = native_sampler(kind, vocabulary), torch_sampler(vocabulary)
    for top_k in (None, 1, 7, 500, 4000, 4999):
        for top_p in (None, 0.0, 0.3111, 0.9777, 1 - 2.0**-53):
            batch = [
                sequence(vocabulary, temperature=1.0, top_k=top_k, top_p=top_p, seed=seed, every_id=True)
                for seed in range(8)
            ]
            assert drawn(native, logits, batch) == drawn(reference, logits, batch), (top_k, top_p)


@pytest.mark.parametrize("kind", KINDS)
def test_where_rounding_decides_top_p_keeps_at_most_one_id_more(kind: str) -> None:
    size = 40
    vocabulary = Vocabulary.without_text(size)
    native = native_sampler(kind, vocabulary)
    choose = random.Random(1)
    for _ in range(500):
        logits = torch.rand(size, generator=torch.Generator().manual_seed(choose.getrandbits(32))).sort(
            descending=True
        )[0]
        logits -= logits[0].item()
        weights = logits.double().exp().tolist()
        kept = choose.randrange(1, size - 8)
        top_p = sum(reversed(weights[:kept])) / sum(weights)
        batch = [sequence(vocabulary, temperature=1.0, top_p=top_p, seed=seed, every_id=True) for seed in range(32)]
        ids = drawn(native, logits.repeat(32, 1), batch)
        assert max(token for token in ids if token is not None) <= kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_neither_on_the_batch_nor_on_the_threads(kind: str) -> None:
    size = 65_536
    vocabulary = Vocabulary.without_text(size)
    logits = torch.randn(9, size)
    batch = [
        sequence(vocabulary, temperature=row / 4, top_k=(None, 40)[row % 2], top_p=0.9, seed=row, every_id=True)
        for row in range(9)
    ]
    torch.set_num_threads(1)
    alone = native_sampler(kind, vocabulary)
    expected = [drawn(alone, logits[row : row + 1], [batch[row]])[0] for row in range(9)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sampler = native_sampler(kind, vocabulary)
        assert drawn(sampler, logits, batch) == expected
        assert drawn(sampler, logits.flip(0), batch[::-1]) == expected[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_a_batch_has_its_own_uniform_number(kind: str) -> None:
    vocabulary = Vocabulary.without_text(1024)
    native, reference = native_sampler(kind, vocabulary), torch_sampler(vocabulary)
    logits = torch.zeros(3, 1024)
    batch = [sequence(vocabulary, temperature=1.0, seed=seed, every_id=True) for seed in (0, 1, 2**64 - 1)]
    all_ids = []
    for _ in range(70):
        all_ids.append(drawn(native, logits, batch))
        assert all_ids[-1] == drawn(reference, logits, batch)
        for row in batch:
            row.tokens.append(0)
    assert len({tuple(ids) for ids in all_ids}) == 70


@pytest.mark.parametrize("kind", KINDS)
def test_the_uniform_numbers_are_those_of_philox(kind: str) -> None:
    for seed in (0, 1, 12345, 2**32, 2**53 - 1, 2**64 - 1):
        for index in (0, 63, 2**32 - 1, 2**32, 2**40 + 5):
            for choice in (0, 1, 2**32 - 1):
                assert [kernels_for(kind).celeriac_uniform(seed, index, choice)] == uniforms(seed, index, 1, choice)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_cdf_always_finds_an_id_with_weight(kind: str) -> None:
    def invert(weights: list[float], uniform: float) -> int:
        padded = (ctypes.c_double * 256)(*weights)
        return int(kernels_for(kind).celeriac_invert_cdf(padded, len(weights), uniform))

    largest = 1 - 2.0**-53
    rows = [[0.0, 1.0, 2.0**-52, 0.0], [1.5, 0, 0, 0], [1.0, 1e-308, 0, 0], [0.1] * 101 + [0.0] * 140]
    for weights in rows:
        assert weights[invert(weights, largest)] > 0
    assert [invert(weights, 0) for weights in rows] == [1, 0, 0, 0]
    assert [invert([0.0] * 100 + [1.0] * 10, step / 10) for step in range(10)] == list(range(100, 110))


def test_the_device_determines_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = vocabulary_of(8)
    assert isinstance(fastest_sampler(vocabulary, Device("cpu")), NativeSampler)
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    assert isinstance(fastest_sampler(vocabulary, Device("cpu")), TorchSampler)


def test_an_engine_draws_the_same_with_both_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = model("E1b-seed/step_000102")

    def texts() -> list[list[int]]:
        running = engine(decoding)
        sequences = [
            running.add_request(request(f"{seed}", (1, 2), 20, temperature=1.0, seed=seed)) for seed in range(6)
        ]
        return [run_until_done(running, one).tokens for one in sequences]

    native = texts()
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    assert texts() == native


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_another_shape_or_number_format_are_refused(kind: str) -> None:
    sampler = native_sampler(kind, vocabulary_of(8))
    for logits in (torch.zeros(1, 7), torch.zeros(2, 8), torch.zeros(1, 8, dtype=torch.float64)):
        with pytest.raises(ValueError, match="logits for 1 rows of 8 ids"):
            drawn(sampler, logits, [sequence(vocabulary_of(8))])


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_without_an_id_to_sample_is_refused(kind: str) -> None:
    vocabulary = Vocabulary.without_text(4)
    for sampler in (native_sampler(kind, vocabulary), torch_sampler(vocabulary)):
        sampler.check(sequence(vocabulary, every_id=True).request)
        with pytest.raises(ValueError, match="every_id"):
            sampler.check(sequence(vocabulary).request)
