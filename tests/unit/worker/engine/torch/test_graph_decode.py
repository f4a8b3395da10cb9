"""Decoding with CUDA graphs on a CPU: steps of fixed shapes against ordinary ones, with fake graphs."""

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

from bench.random_weights import random_weights
from tests.helpers.engines import (
    FOLDERS,
    Bf16Cpu,
    Tampered,
    checkpoint,
    decode,
    engine,
    graph_model,
    request,
    torch_model,
)
from tests.helpers.fake_graph import FakeGraph
from worker.engine.architecture.era import ERAS, nanochat_config
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


class CountedGraphs:
    """Fake graphs that count captures and replays."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, step: Step) -> Step:
        self.captures += 1
        replay = FakeGraph.capture(step)

        def count() -> Tensor:
            self.replays += 1
            return replay()

        return count


def five_sequences(decoding: DecodingModel, *, each: int) -> Engine:
    """An engine with prompts of 1 to 149 tokens and all kinds of sampling. The sequences end one after the other."""
    running = engine(decoding, slots=5, kv_tokens=2048, prefill_chunk_tokens=64)
    kinds: list[dict[str, object]] = [
        {},
        {"temperature": 0.8},
        {"temperature": 1.2, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.5, "every_id": True},
    ]
    for number, fields in enumerate(kinds):
        prompt = tuple((number + position) % 29 for position in range(1 + number * 37))
        running.add_request(request(str(number), prompt, each + 4 * (4 - number), seed=number, **fields))
    return running


@pytest.mark.parametrize("capture", [lambda step: step, FakeGraph.capture], ids=["called", "captured"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_captured_steps_give_the_logits_the_tokens_and_the_cache_of_ordinary_ones(
    folder: str, capture: Callable[[Step], Step]
) -> None:
    """This includes steps in which rows join or leave, the shape changes, or a window is exceeded."""
    model = torch_model(folder)
    graphs = GraphDecode(model, capture)
    logits: list[Tensor] = []

    def keep(batch: Batch, found: Tensor) -> Tensor:
        logits.append(found.clone())
        return found

    engines = [five_sequences(Tampered(decoding, keep), each=20) for decoding in (model, graphs)]
    while engines[0].has_work:
        logits.clear()
        reports = [running.step() for running in engines]
        assert reports[0] == reports[1]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
        ordinary, captured = (running._cache.memory for running in engines)
        spare = engines[0]._cache.spare
        torch.testing.assert_close(captured[..., :spare, :], ordinary[..., :spare, :], atol=1e-4, rtol=1e-4)
    assert not engines[1].has_work


def test_a_row_that_has_ended_writes_nothing_more() -> None:
    """Its places may belong to another sequence by then."""
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


def test_each_shape_is_captured_once_and_steps_with_prompts_never() -> None:
    counted = CountedGraphs()
    graphs = GraphDecode(torch_model(E7), counted.capture)
    shapes = set()
    prompts = 0

    def note(batch: Batch, logits: Tensor) -> Tensor:
        nonlocal prompts
        if batch.decodes_only:
            longest = max(chunk.end for chunk in batch.chunks)
            shapes.add(Shape.of(len(batch.chunks), longest, graphs.config.sequence_len))
        else:
            prompts += 1
        return logits

    running = five_sequences(Tampered(graphs, note), each=20)
    steps = 0
    while running.has_work:
        running.step()
        steps += 1
    assert counted.captures == len(shapes) >= 4, "5 rows down to 1, at most 128 keys and more"
    assert counted.replays == steps - prompts


@pytest.mark.parametrize(
    ("rows", "keys", "shape"),
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
def test_rows_and_keys_are_rounded_up_to_a_shape(rows: int, keys: int, shape: Shape) -> None:
    assert Shape.of(rows, keys, 1000) == shape
    assert Shape.of(rows, min(keys, 100), 100).keys == 100


def test_the_table_of_angles_never_moves_after_a_capture() -> None:
    """Without graphs, the table grows with the longest context and then moves."""
    era = ERAS["E1b"]
    config = nanochat_config(
        sequence_len=1024,
        vocab_size=32,
        rows=32,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=16,
        era=era,
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


def on_a_cpu(folder: str) -> GraphDecode:
    """A model as a GPU runs it, on a CPU with fake graphs."""
    found = checkpoint(folder)
    return GraphDecode(Model.load(found.config, found.weights, Bf16Cpu("cpu")), FakeGraph.capture)


def on_a_gpu(folder: str) -> GraphDecode:
    """A model on a GPU."""
    found = checkpoint(folder)
    loaded = load_weights(found.config, found.weights, Device("cuda"))
    assert isinstance(loaded, GraphDecode)
    return loaded


gpu = pytest.param(on_a_gpu, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"))


@pytest.mark.parametrize("load", [on_a_cpu, gpu])
@pytest.mark.parametrize("folder", FOLDERS)
def test_captured_steps_match_the_model_in_the_number_format_of_a_gpu(
    folder: str, load: Callable[[str], GraphDecode], caplog: pytest.LogCaptureFixture
) -> None:
    graphs = load(folder)
    shadow = KvCache(graphs.config, 2048, graphs.device)
    errors: list[float] = []

    def compare(batch: Batch, logits: Tensor) -> Tensor:
        expected = graphs._model.forward(batch, shadow)
        assert logits.dtype is torch.float32
        if len(logits):
            errors.append(float((logits - expected).abs().mean()))
        return logits

    with caplog.at_level(logging.WARNING):
        running = five_sequences(Tampered(graphs, compare), each=8)
        while running.has_work:
            running.step()
    assert len(errors) > 20
    assert max(errors) < 0.05
    assert not caplog.records, "every step was captured"


def test_a_failed_capture_is_logged_once_and_decoding_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Earlier captures stay in use."""
    tried = 0

    def capture(step: Step) -> Step:
        nonlocal tried
        tried += 1
        if tried > 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return FakeGraph.capture(step)

    graphs = GraphDecode(torch_model(E7), capture)
    engines = [five_sequences(decoding, each=20) for decoding in (torch_model(E7), graphs)]
    with caplog.at_level(logging.WARNING):
        while engines[0].has_work:
            assert engines[0].step() == engines[1].step()
    assert tried == 3
    assert caplog.text.count("not permitted when stream is capturing") == 1
    assert len(graphs._captured) == 2


@pytest.mark.parametrize(
    "step",
    [
        lambda values: values * values[0].item(),
        lambda values: values + torch.tensor([1.0, 2.0, 3.0]),
        lambda values: values[values > 1],
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_a_fake_graph_refuses_what_a_cuda_graph_cannot_do(step: Callable[[Tensor], Tensor], inference: bool) -> None:
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="cannot be captured"):
        FakeGraph.capture(lambda: step(torch.arange(3.0)))


@pytest.fixture(autouse=True)
def sampler_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use torch's sampler even if the processor has compiled kernels."""
    monkeypatch.setattr(
        "worker.engine.engine.fastest_sampler", lambda vocabulary, device: TorchSampler(vocabulary, device.torch_device)
    )


class HostTransfers(TorchDispatchMode):
    """Records tensors that are created from values of the host, and single values that are copied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::lift_fresh", "aten::item", "aten::_local_scalar_dense"):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("temperature", "sent"), [(0.0, []), (0.8, ["aten::lift_fresh"])])
def test_while_the_same_rows_decode_the_host_sends_only_uniform_numbers(temperature: float, sent: list[str]) -> None:
    running = engine(graph_model(E7))
    for number in range(3):
        running.add_request(
            request(str(number), (1, 2, 3), 30, temperature=temperature, top_k=7, top_p=0.9, seed=number)
        )
    for _ in range(3):
        running.step()
    with HostTransfers() as transfers:
        assert running.step().decoded == 3
    assert transfers.names == sent


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace `torch.cuda` by one with fake graphs. Returns the list of its calls, in order."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    class Graph:
        def __init__(self) -> None:
            self.fake = FakeGraph()

        def replay(self) -> None:
            calls.append("replay")
            self.fake.replay()

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        calls.append(f"on {chosen.name}")
        yield

    @contextmanager
    def graph(captured: Graph, pool: object) -> Iterator[None]:
        calls.append(f"capture in {pool}")
        with captured.fake:
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
    return calls


def test_a_capture_follows_one_run_on_its_own_stream(fake_cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_only_cuda_devices_have_graphs() -> None:
    assert [Device(kind).has_graphs for kind in ("cpu", "cuda", "mps")] == [False, True, False]
