"""The model on compiled kernels: the same forward pass as `worker.engine.torch.model`, one call a step, fp32 on a CPU.

Its matrices are fp32, or int8 with a scale for each group of inputs."""

from __future__ import annotations

import ctypes
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.rope import rounded_angles
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache
from worker.engine.mapped_pages import MappedPages
from worker.engine.native.library import Layer, Matrix, ModelData, Pass, Table
from worker.engine.native.thread_tuner import ThreadTuner

#: Packed matrices begin at multiples of this many bytes.
_ALIGNMENT = 4096
#: Positions of the first table of angles, and of the first workspace.
_FIRST_POSITIONS = 256


class Arena:
    """Memory of the kernels, given back when this is no longer used."""

    def __init__(self, kernels: ctypes.CDLL, size: int) -> None:
        """MemoryError where the system has not so much."""
        self.address: int | None = kernels.celeriac_reserve(size)
        if self.address is None:
            raise MemoryError(f"there is no memory for {size} bytes of weights")
        self.size = size
        self._end = 0
        weakref.finalize(self, kernels.celeriac_release, self.address, size)

    def filled(self, kernels: ctypes.CDLL) -> None:
        """What was taken is filled, and will only be read."""
        kernels.celeriac_enlarge_pages(self.address, self.size)

    def take(self, size: int) -> int:
        """The address of the next `size` bytes."""
        assert self.address is not None
        begin = self._end
        self._end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return self.address + begin


class NativeModel:
    """A checkpoint's weights, packed for the kernels."""

    #: Attention reads a sequence's own keys and nothing beyond.
    reads_beyond = False

    def __init__(self, config: ModelConfig, device: Device, kernels: ctypes.CDLL) -> None:
        self.config = config
        self.device = device
        self._kernels = kernels
        self._layers = (Layer * config.n_layer)()
        self._data = ModelData(
            layers=config.n_layer,
            channels=config.n_embd,
            heads=config.n_head,
            groups=config.n_kv_head,
            dim=config.head_dim,
            ids=config.vocab_size,
            epsilon=torch.finfo(torch.float32).eps,
            softcap=config.softcap,
            qk_scale=config.era.qk_scale,
            gate_scale=config.era.gate_scale,
            gate_width=config.era.gate_width,
            smear_width=config.era.smear_width,
            layer=self._layers,
        )
        #: What the kernels read by address.
        self._kept: list[Tensor] = []
        self._arena: Arena
        self._angles = torch.empty(0)
        self._reach = 0
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._workspace_for = (0, 0)
        self._pass = Pass()
        self._tuner = ThreadTuner(torch.get_num_threads(), fixed=device.fixed_threads)

    @property
    def matrix_bytes(self) -> int:
        """Memory of the packed matrices."""
        return self._arena.size

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        device: Device,
        kernels: ctypes.CDLL,
        *,
        group: int = 0,
    ) -> NativeModel:
        """As `worker.engine.torch.model.Model.load`. `group` 0: fp32 matrices;
        else int8, so many inputs with one scale."""
        model = cls(config, device, kernels)
        with torch.inference_mode():
            _Loader(model, weights, group).load()
        return model

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Put the keys and values of `batch` in the cache and return the wanted logits (R, V), fp32."""
        positions, outputs = batch.tokens.shape[0], len(batch.outputs)
        sharing = self._tuner.choose(positions, longest=batch.longest)
        reach = batch.last_position + 1
        if reach > self._reach:
            self._grow_angles(reach)
        workspace = self._workspace_of(positions, sharing.threads)
        logits = torch.empty(outputs, self.config.vocab_size)
        step = self._pass
        step.positions = positions
        step.outputs = outputs
        step.tokens = batch.tokens.data_ptr()
        step.previous = batch.previous.data_ptr()
        step.position = batch.positions.data_ptr()
        step.place = batch.places.data_ptr()
        step.wanted = None if batch.wanted is None else batch.wanted.data_ptr()
        step.cache = cache.memory.data_ptr()
        step.places = cache.memory.shape[-2]
        step.logits = logits.data_ptr()
        began = time.perf_counter()
        self._kernels.celeriac_forward(
            ctypes.byref(self._data),
            ctypes.byref(step),
            workspace.data_ptr(),
            self._reach,
            sharing.threads,
            (ctypes.c_int64 * (sharing.threads + 1))(*shares(batch, sharing.threads)) if sharing.by_rows else None,
        )
        self._tuner.record(positions, sharing, time.perf_counter() - began, longest=batch.longest)
        return logits

    def _grow_angles(self, reach: int) -> None:
        """A table of angles for `reach` positions and some more."""
        self._reach = min(self.config.sequence_len, max(2 * reach, _FIRST_POSITIONS))
        era = self.config.era
        self._angles = rounded_angles(self.config.head_dim, era.rope_base, self._reach, bf16=era.rope_bf16)
        self._data.cosines = self._angles[0].data_ptr()
        self._data.sines = self._angles[1].data_ptr()
        self._workspace_for = (0, 0)

    def _workspace_of(self, positions: int, threads: int) -> Tensor:
        """Memory for a pass, kept for the next one that is no larger."""
        if positions > self._workspace_for[0] or threads > self._workspace_for[1]:
            self._workspace_for = (max(positions, self._workspace_for[0]), max(threads, self._workspace_for[1]))
            size = self._kernels.celeriac_workspace_bytes(
                ctypes.byref(self._data), self._workspace_for[0], self._reach, self._workspace_for[1]
            )
            self._workspace = torch.empty(size, dtype=torch.uint8)
        return self._workspace


def shares(batch: Batch, count: int) -> list[int]:
    """Bounds of `count` shares of the positions, about equal ones, none of which cuts a chunk."""
    positions = batch.tokens.shape[0]
    even = [positions * share // count for share in range(count + 1)]
    if batch.longest == 1:
        return even
    ends = [0, *accumulate(chunk.length for chunk in batch.chunks)]
    return [ends[bisect_left(ends, bound)] for bound in even]


class _Loader:
    """Packs a checkpoint's tensors, one by one."""

    def __init__(self, model: NativeModel, weights: Mapping[str, Tensor], group: int) -> None:
        self._model = model
        self._group = group
        self._config = model.config
        self._weights = weights
        self._pages = MappedPages()

    def load(self) -> None:
        model, config, data = self._model, self._config, self._model._data
        width, qkv = config.n_embd, config.n_embd + 2 * config.kv_dim
        shapes = [(qkv, width), (width, width), (4 * width, width), (width, 4 * width)] * config.n_layer
        sizes = [self._size(*shape) for shape in (*shapes, (config.vocab_size, width))]
        model._arena = Arena(model._kernels, sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
        data.head = self._matrix("lm_head.weight", outputs=config.vocab_size)
        data.table = self._table("transformer.wte.weight")
        if config.era.smear:
            data.smear_gate = self._copy("smear_gate.weight")
            data.smear_strength = self._floats("smear_lambda")[0]
            data.backout = self._floats("backout_lambda")[0]
        for i in range(config.n_layer):
            self._load_layer(i, model._layers[i])
        model._arena.filled(model._kernels)

    def _load_layer(self, i: int, layer: Layer) -> None:
        config, name = self._config, f"transformer.h.{i}."
        layer.qkv = self._matrix(*(f"{name}attn.c_{part}.weight" for part in "qkv"))
        layer.attention_out = self._matrix(f"{name}attn.c_proj.weight")
        layer.mlp_in = self._matrix(f"{name}mlp.c_fc.weight")
        layer.mlp_out = self._matrix(f"{name}mlp.c_proj.weight")
        layer.window = config.windows[i]
        layer.mixes = config.era.lambdas
        if config.era.lambdas:
            layer.mix_stream = self._floats("resid_lambdas")[i]
            layer.mix_embedding = self._floats("x0_lambdas")[i]
        if config.has_value_embedding(i):
            layer.value_table = self._table(f"value_embeds.{i}.weight")
            layer.value_gate = self._copy(f"{name}attn.ve_gate.weight")

    def _size(self, outputs: int, depth: int) -> int:
        size: int = self._model._kernels.celeriac_packed_bytes(outputs, depth, self._group)
        return size

    def _matrix(self, *names: str, outputs: int = 0) -> Matrix:
        """The packed matrix of some tensors one below the other; of one alone the first `outputs` rows, if given."""
        model = self._model
        tensors = [self._weights[name] for name in names]
        counts = [outputs or tensor.shape[0] for tensor in tensors]
        depth = tensors[0].shape[1]
        matrix = Matrix(sum(counts), depth, model._arena.take(self._size(sum(counts), depth)), self._group)
        at = 0
        for tensor, count in zip(tensors, counts, strict=True):
            plain = self._plain(tensor)
            model._kernels.celeriac_pack(
                ctypes.byref(matrix),
                at,
                plain.data_ptr(),
                count,
                plain.dtype is torch.bfloat16,
                torch.get_num_threads(),
            )
            self._pages.release(tensor)
            at += count
        return matrix

    def _table(self, name: str) -> Table:
        table = self._keep(name, self._model.device.copy_table)
        return Table(table.data_ptr(), table.dtype is torch.bfloat16)

    def _copy(self, name: str) -> int:
        return self._keep(name, self._model.device.copy).data_ptr()

    def _keep(self, name: str, copy: Callable[[Tensor], Tensor]) -> Tensor:
        tensor = self._weights[name]
        copied = self._plain(copy(tensor))
        self._pages.release(tensor)
        self._model._kept.append(copied)
        return copied

    def _floats(self, name: str) -> list[float]:
        values: list[float] = self._weights[name].float().tolist()
        return values

    @staticmethod
    def _plain(tensor: Tensor) -> Tensor:
        """Contiguous, in a number format that the kernels read."""
        return (tensor.float() if tensor.dtype is torch.float16 else tensor).contiguous()
