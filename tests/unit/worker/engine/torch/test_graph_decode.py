"""The path of a GPU on a CPU: steps of fixed shapes beside ordinary ones, with tapes in the place of graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.shapes import random_weights
from tests.helpers.engines import (
    FOLDERS,
    Narrow,
    Tampered,
    checkpoint,
    decode,
    engine,
    graph_model,
    request,
    torch_model,
)
from tests.helpers.fake_graph import FakeGraph
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import ERAS
from worker.engine.backends import load_weights
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.kv.cache import KvCache
from worker.engine.sampling.torch_sampler import TorchSampler
from worker.engine.torch.cuda_graphs import Step
from worker.engine.torch.graph_decode import GraphDecode, Shape
from worker.engine.torch.model import Model

E7 = "E7/step_000101"


class Counted:
    """Tapes, counted."""

    def __init__(self) -> None:
        self.records = 0
        self.runs = 0

    def record(self, step: Step) -> Step:
        self.records += 1
        run = FakeGraph.capture(step)

        def count() -> Tensor:
            self.runs += 1
            return run()

        return count


def five_sequences(decoding: DecodingModel, *, each: int) -> Engine:
    """Prompts from 1 token to 150, greedy and drawn in each way, which end one after the other, the longest first."""
    running = engine(decoding, slots=5, kv_tokens=2048, prefill_chunk_tokens=64)
    ways: list[dict[str, object]] = [
        {},
        {"temperature": 0.8},
        {"temperature": 1.2, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.5, "every_id": True},
    ]
    for number, way in enumerate(ways):
        prompt = tuple(position % 29 for position in range(1 + number * 37))
        running.add_request(request(str(number), prompt, each + 4 * (4 - number), seed=number, **way))
    return running


@pytest.mark.parametrize("record", [lambda step: step, FakeGraph.capture], ids=["called", "taped"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_steps_of_fixed_shapes_give_the_logits_the_draws_and_the_cache_of_ordinary_ones(
    folder: str, record: Callable[[Step], Step]
) -> None:
    """Also where rows come and go, contexts pass a rung, and windows end."""
    model = torch_model(folder)
    static = GraphDecode(model, record)
    logits: list[Tensor] = []

    def keep(batch: Batch, found: Tensor) -> Tensor:
        logits.append(found.clone())
        return found

    engines = [five_sequences(Tampered(decoding, keep), each=20) for decoding in (model, static)]
    while engines[0].has_work:
        logits.clear()
        reports = [running.step() for running in engines]
        assert reports[0] == reports[1]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
        ordinary, recorded = (running._cache.memory for running in engines)
        spare = engines[0]._cache.spare
        torch.testing.assert_close(recorded[..., :spare, :], ordinary[..., :spare, :], atol=1e-4, rtol=1e-4)
    assert not engines[1].has_work


def test_a_row_that_has_left_writes_no_more() -> None:
    """Its places may be another's by then."""
    running = engine(graph_model(E7), slots=4)
    for number in range(4):
        running.add_request(request(str(number), (1, 2, 3), 20 - 4 * number))
    running.step()
    extents = [sequence.extent for sequence in running._scheduler.running]
    while running.has_work:
        running.step()
        for extent in extents:
            if extent is not None and extent not in running._cache.allocator.used:
                assert not running._cache.memory[..., extent.start : extent.start + extent.size, :].any()


def test_each_shape_is_recorded_once_and_steps_with_prompts_never() -> None:
    counted = Counted()
    static = GraphDecode(torch_model(E7), counted.record)
    shapes = set()
    prompts = 0

    def note(batch: Batch, logits: Tensor) -> Tensor:
        nonlocal prompts
        if batch.decodes_only:
            longest = max(chunk.end for chunk in batch.chunks)
            shapes.add(Shape.of(len(batch.chunks), longest, static.config.sequence_len))
        else:
            prompts += 1
        return logits

    running = five_sequences(Tampered(static, note), each=20)
    steps = 0
    while running.has_work:
        running.step()
        steps += 1
    assert counted.records == len(shapes) >= 4, "of 5 rows down to 1, below 128 keys and above"
    assert counted.runs == steps - prompts


@pytest.mark.parametrize(
    ("rows", "keys", "rung"),
    [
        (1, 1, Shape(1, 128)),
        (3, 128, Shape(4, 128)),
        (8, 129, Shape(8, 256)),
        (9, 256, Shape(16, 256)),
        (17, 600, Shape(24, 1000)),
        (33, 1000, Shape(48, 1000)),
        (64, 513, Shape(64, 1000)),
        (65, 512, Shape(96, 512)),
        (1024, 1, Shape(1024, 128)),
    ],
)
def test_rows_and_keys_are_rounded_up_to_a_rung(rows: int, keys: int, rung: Shape) -> None:
    assert Shape.of(rows, keys, 1000) == rung
    assert Shape.of(rows, min(keys, 100), 100).keys == 100


def test_the_angles_stay_where_a_record_reads_them() -> None:
    """The table of an ordinary model grows with its longest context, and moves then."""
    era = ERAS["E1b"]
    config = ModelConfig(
        sequence_len=1024,
        vocab_size=32,
        rows=32,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=16,
        era=era,
        softcap=era.softcap,
    )
    model = Model.load(config, random_weights(2, 16, 32), Device("cpu"))
    tokens = decode(engine(model), request("a", (1,), 300)).tokens
    model = Model.load(config, random_weights(2, 16, 32), Device("cpu"))
    running = engine(GraphDecode(model, FakeGraph.capture), prefill_chunk_tokens=1024)
    decode(running, request("b"))
    address = model.rope._table.data_ptr()
    assert decode(running, request("a", (1,), 300)).tokens == tokens
    decode(running, request("c", (1,) * 900))
    assert model.rope._table.data_ptr() == address


def on_tapes(folder: str) -> GraphDecode:
    """What a GPU runs, on a CPU."""
    found = checkpoint(folder)
    return GraphDecode(Model.load(found.config, found.weights, Narrow("cpu")), FakeGraph.capture)


def on_a_gpu(folder: str) -> GraphDecode:
    """What a GPU runs, on a GPU."""
    found = checkpoint(folder)
    loaded = load_weights(found.config, found.weights, Device("cuda"))
    assert isinstance(loaded, GraphDecode)
    return loaded


gpu = pytest.param(on_a_gpu, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"))


@pytest.mark.parametrize("load", [on_tapes, gpu])
@pytest.mark.parametrize("folder", FOLDERS)
def test_in_a_gpus_number_format_too_a_recorded_step_is_that_of_the_model(
    folder: str, load: Callable[[str], GraphDecode], caplog: pytest.LogCaptureFixture
) -> None:
    static = load(folder)
    shadow = KvCache(static.config, 2048, static.device)
    errors: list[float] = []

    def compare(batch: Batch, logits: Tensor) -> Tensor:
        expected = static._model.forward(batch, shadow)
        assert logits.dtype is torch.float32
        if len(logits):
            errors.append(float((logits - expected).abs().mean()))
        return logits

    with caplog.at_level(logging.WARNING):
        running = five_sequences(Tampered(static, compare), each=8)
        while running.has_work:
            running.step()
    assert len(errors) > 20
    assert max(errors) < 0.05
    assert not caplog.records, "every step was recorded"


def test_what_cannot_be_recorded_is_told_once_and_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """What was recorded before stays."""
    tried = 0

    def record(step: Step) -> Step:
        nonlocal tried
        tried += 1
        if tried > 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return FakeGraph.capture(step)

    static = GraphDecode(torch_model(E7), record)
    engines = [five_sequences(decoding, each=20) for decoding in (torch_model(E7), static)]
    with caplog.at_level(logging.WARNING):
        while engines[0].has_work:
            assert engines[0].step() == engines[1].step()
    assert tried == 3
    assert caplog.text.count("not permitted when stream is capturing") == 1
    assert len(static._captured) == 2


@pytest.mark.parametrize(
    "step",
    [
        lambda figures: figures * figures[0].item(),
        lambda figures: figures + torch.tensor([1.0, 2.0, 3.0]),
        lambda figures: figures[figures > 1],
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_a_tape_refuses_what_a_graph_cannot_hold(step: Callable[[Tensor], Tensor], inference: bool) -> None:
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="cannot be captured"):
        FakeGraph.capture(lambda: step(torch.arange(3.0)))


@pytest.fixture(autouse=True)
def the_sampler_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the processor has one of its own."""
    monkeypatch.setattr(
        "worker.engine.engine.fastest_sampler", lambda vocabulary, device: TorchSampler(vocabulary, device.torch_device)
    )


class Crossings(TorchDispatchMode):
    """Counts what is made of the host's figures, and single figures that go there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::lift_fresh", "aten::item", "aten::_local_scalar_dense"):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("temperature", "sent"), [(0.0, []), (0.8, ["aten::lift_fresh"])])
def test_while_rows_decode_on_the_host_sends_uniform_numbers_and_nothing_else(
    temperature: float, sent: list[str]
) -> None:
    running = engine(graph_model(E7))
    for number in range(3):
        running.add_request(
            request(str(number), (1, 2, 3), 30, temperature=temperature, top_k=7, top_p=0.9, seed=number)
        )
    for _ in range(3):
        running.step()
    with Crossings() as crossings:
        assert running.step().decoded == 3
    assert crossings.names == sent


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`torch.cuda` with tapes for graphs. What is asked of it, in order."""
    asked: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            asked.append(f"{self.name} waits for {other.name}")

    class Graph:
        def __init__(self) -> None:
            self.tape = FakeGraph()

        def replay(self) -> None:
            asked.append("replay")
            self.tape.replay()

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        asked.append(f"on {chosen.name}")
        yield

    @contextmanager
    def graph(captured: Graph, pool: object) -> Iterator[None]:
        asked.append(f"capture in {pool}")
        with captured.tape:
            yield

    fake = SimpleNamespace(
        Stream=Stream,
        CUDAGraph=Graph,
        stream=stream,
        graph=graph,
        current_stream=lambda: Stream("main"),
        graph_pool_handle=lambda: "the pool",
    )
    monkeypatch.setattr("worker.engine.torch.cuda_graphs.torch", SimpleNamespace(cuda=fake))
    return asked


def test_a_device_with_graphs_captures_behind_a_run_on_a_stream_of_its_own(
    fake_cuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.backends.library", lambda: None)
    monkeypatch.setattr(Device, "has_graphs", True)
    found = checkpoint(E7)
    running = engine(load_weights(found.config, found.weights, Device("cpu")))
    tokens = decode(running, request("a", (1,), 5)).tokens
    assert tokens == decode(engine(torch_model(E7)), request("a", (1,), 5)).tokens
    assert fake_cuda == [
        "side waits for main",
        "on side",
        "main waits for side",
        "capture in the pool",
        *["replay"] * 5,
    ]


def test_graphs_are_what_a_cuda_device_has() -> None:
    assert [Device(kind).has_graphs for kind in ("cpu", "cuda", "mps")] == [False, True, False]
