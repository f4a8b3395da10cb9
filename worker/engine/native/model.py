"""The model on compiled kernels, for CPUs: the forward pass of `worker.engine.torch.model`, as one call for each step.

Sums are fp32, and so are activations, unless they are rounded for a faster multiplication. The matrices keep the number
format in which they are stored, fp32, bf16 or fp16, or are int8 with one scale for each group of inputs.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.machine_memory import memory_bytes
from worker.engine.architecture import tensors
from worker.engine.architecture.angles import angle_table
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import INT8_GROUP, Compute
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache
from worker.engine.native.library import (
    ACTIVATIONS,
    Layer,
    Linear,
    Matrix,
    MatrixKind,
    ModelData,
    Norm,
    NormWeights,
    PackTarget,
    Pass,
    QkNormPlace,
    Table,
)
from worker.engine.native.thread_tuner import ThreadTuner

#: Packed matrices begin at multiples of this, in bytes.
_ALIGNMENT = 4096
#: The kind of a plain matrix.
KINDS = {torch.float32: MatrixKind.FP32, torch.bfloat16: MatrixKind.BF16, torch.float16: MatrixKind.FP16}
#: The kind of an int8 matrix.
INT8_KINDS: dict[Compute, MatrixKind] = {"exact": MatrixKind.INT8, "fast": MatrixKind.INT8_DOT}
#: Positions of the first table of angles.
_FIRST_POSITIONS = 256
#: Biases are filled up with zeros to a multiple of this many numbers: the kernels read whole vectors.
_BIAS_MULTIPLE = 64
_FP32_EPSILON = torch.finfo(torch.float32).eps


def aligned(size: int) -> int:
    """The smallest multiple of the alignment that is at least `size`."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _epsilon(epsilon: float | None) -> float:
    return _FP32_EPSILON if epsilon is None else epsilon


def _qk_norm_place(config: ModelConfig) -> QkNormPlace:
    if config.qk_norm is None:
        return QkNormPlace.NONE
    return QkNormPlace.AFTER_ROTATION if config.qk_norm.after_rotation else QkNormPlace.BEFORE_ROTATION


class Arena:
    """A region of memory for packed matrices. It is freed when this object is garbage-collected."""

    def __init__(self, kernels: ctypes.CDLL, limit: int) -> None:
        """Reserve `limit` bytes. Memory is used only when it is written to. Raises MemoryError."""
        self._kernels = kernels
        self._end = 0
        self._address: int | None = kernels.celeriac_reserve(limit)
        if self._address is None:
            raise MemoryError(f"the system refuses to reserve {limit} bytes for the weights")
        self._limit = limit
        self._freed = weakref.finalize(self, kernels.celeriac_free, self._address, limit)

    @property
    def size(self) -> int:
        """Bytes that were taken."""
        return self._end

    def take(self, size: int) -> int:
        """Take the next `size` bytes. Returns their address."""
        assert self._address is not None
        begin = self._end
        self._end += aligned(size)
        assert self._end <= self._limit
        return self._address + begin

    def close(self) -> None:
        """Give back what was not taken, and move the rest to large pages in the background.

        Call this when everything is written.
        """
        assert self._address is not None
        if self._end < self._limit:
            self._kernels.celeriac_free(self._address + self._end, self._limit - self._end)
        self._freed.detach()
        if self._end:
            self._freed = weakref.finalize(self, self._kernels.celeriac_free, self._address, self._end)
            self._kernels.celeriac_enlarge_pages(self._address, self._end)


class NativeModel:
    """A checkpoint's weights, packed for the kernels, and its forward pass. Not thread-safe."""

    #: Attention reads only the keys of its own sequence.
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
            hidden=config.n_hidden,
            ids=config.vocab_size,
            norm=Norm(config.norm.kind == "layer", _epsilon(config.norm.epsilon)),
            qk_norm=_qk_norm_place(config),
            qk_epsilon=_epsilon(None if config.qk_norm is None else config.qk_norm.epsilon),
            activation=ACTIVATIONS[config.activation],
            gated=config.gated,
            attention_scale=config.attention_scale,
            softcap=config.softcap or 0.0,
            embedding_norm=config.embedding_norm,
            gate_scale=0.0 if config.value_gate is None else config.value_gate.scale,
            gate_width=0 if config.value_gate is None else config.value_gate.width,
            smear_width=config.smear_width,
            layer=self._layers,
        )
        #: The kinds of the matrices that are multiplied by rounded activations.
        self.rounding_kinds: frozenset[MatrixKind] = frozenset()
        #: Tensors that the kernels read by address.
        self._kept: list[Tensor] = []
        self._arena: Arena
        self._angles = torch.empty(0)
        self._angle_positions = 0
        self._workspace = torch.empty(0, dtype=torch.uint8)
        #: The largest number of positions, and of threads, that the workspace is large enough for.
        self._workspace_limits = (0, 0)
        self._pass = Pass()
        self._tuner = ThreadTuner(torch.get_num_threads(), fixed=device.fixed_threads)

    @property
    def fast_kinds(self) -> frozenset[MatrixKind]:
        """The kinds for whose dot products this processor has instructions."""
        bits = self._kernels.celeriac_dot_kinds()
        return frozenset(kind for kind in MatrixKind if bits >> kind & 1)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the packed matrices."""
        return self._arena.size

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        device: Device,
        kernels: ctypes.CDLL,
        *,
        int8: bool = False,
        compute: Compute = "exact",
    ) -> NativeModel:
        """Load a checkpoint's weights, like `worker.engine.torch.model.Model.load`.

        `int8`: matrices are rounded to 8 bits. Otherwise they keep the format that they have in the checkpoint. Raises
        MemoryError.
        """
        model = cls(config, device, kernels)
        with torch.inference_mode():
            _Loader(model, weights, int8=int8, compute=compute).load()
        return model

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Write the keys and values of `batch` to the cache. Returns the wanted logits (R, V), fp32."""
        positions, outputs = batch.tokens.shape[0], len(batch.outputs)
        sharing = self._tuner.choose(positions, longest=batch.longest)
        if batch.last_position >= self._angle_positions:
            self._grow_angles(batch.last_position + 1)
        workspace = self._workspace_of(positions, sharing.threads)
        logits = torch.empty(outputs, self.config.vocab_size)
        arguments = self._pass
        arguments.positions = positions
        arguments.outputs = outputs
        arguments.tokens = batch.tokens.data_ptr()
        arguments.previous = batch.previous.data_ptr()
        arguments.position = batch.positions.data_ptr()
        arguments.place = batch.places.data_ptr()
        arguments.wanted = None if batch.wanted is None else batch.wanted.data_ptr()
        arguments.cache = cache.memory.data_ptr()
        arguments.places = cache.memory.shape[-2]
        arguments.alone = batch.longest == 1
        arguments.logits = logits.data_ptr()
        started_at = time.perf_counter()
        bounds = share_bounds(batch, sharing.threads) if sharing.by_rows else None
        self._kernels.celeriac_forward(
            ctypes.byref(self._data),
            ctypes.byref(arguments),
            workspace.data_ptr(),
            self._angle_positions,
            sharing.threads,
            bounds,
        )
        self._tuner.record(positions, sharing, time.perf_counter() - started_at, longest=batch.longest)
        return logits

    def _grow_angles(self, positions: int) -> None:
        """Make a table of angles for at least `positions` positions."""
        self._angle_positions = min(self.config.sequence_len, max(2 * positions, _FIRST_POSITIONS))
        if self.config.rope is not None:
            self._angles = angle_table(self.config.rope, self._angle_positions)
            self._data.cosines = self._angles[0].data_ptr()
            self._data.sines = self._angles[1].data_ptr()
        # A larger workspace is needed, too: it has room for a score of each position.
        self._workspace_limits = (0, 0)

    def _workspace_of(self, positions: int, threads: int) -> Tensor:
        """Memory for a pass. It is kept, and replaced when a pass needs more."""
        most_positions, most_threads = self._workspace_limits
        if positions > most_positions or threads > most_threads:
            self._workspace_limits = limits = max(positions, most_positions), max(threads, most_threads)
            size = self._kernels.celeriac_workspace_bytes(
                ctypes.byref(self._data), limits[0], self._angle_positions, limits[1]
            )
            self._workspace = torch.empty(size, dtype=torch.uint8)
        return self._workspace


def share_bounds(batch: Batch, count: int) -> ctypes.Array[ctypes.c_int64]:
    """The bounds of `count` shares of a batch's positions. The shares are about equal, and no chunk is divided."""
    positions = batch.tokens.shape[0]
    bounds = [positions * share // count for share in range(count + 1)]
    if batch.longest > 1:
        ends = [0, *accumulate(chunk.length for chunk in batch.chunks)]
        bounds = [ends[bisect_left(ends, bound)] for bound in bounds]
    return (ctypes.c_int64 * len(bounds))(*bounds)


class _Loader:
    """Packs a checkpoint's tensors one after the other: `weights` may read each of them when it is asked for it."""

    def __init__(self, model: NativeModel, weights: Mapping[str, Tensor], *, int8: bool, compute: Compute) -> None:
        self._model = model
        self._int8 = int8
        self._compute = compute
        self._config = model.config
        self._weights = weights

    def load(self) -> None:
        model, config, data = self._model, self._config, self._model._data
        width, hidden = config.n_embd, config.n_hidden
        shapes = [
            (config.q_dim + 2 * config.kv_dim, width),
            (width, config.q_dim),
            (2 * hidden if config.gated else hidden, width),
            (width, hidden),
        ] * config.n_layer
        shapes.append((config.vocab_size, width))
        # The types are known only when the tensors are read.
        least, most = (INT8_KINDS[self._compute],) * 2 if self._int8 else (MatrixKind.BF16, MatrixKind.FP32)
        if sum(self._size(Matrix(*shape, kind=least, group=INT8_GROUP)) for shape in shapes) > memory_bytes():
            raise MemoryError(f"the weights need more than the {memory_bytes()} bytes of memory of this machine")
        model._arena = Arena(
            model._kernels, sum(aligned(self._size(Matrix(*shape, kind=most, group=INT8_GROUP))) for shape in shapes)
        )
        head = tensors.EMBEDDING if config.tied_head else tensors.HEAD
        data.head = Linear(self._matrix([self._weights[head][: config.vocab_size]]))
        # The rows of a tied head are read from the packed matrix, unless it is rounded.
        if not config.tied_head or self._int8:
            data.table = self._table(tensors.EMBEDDING)
        if config.learned_positions:
            data.positions = self._table(tensors.POSITIONS)
        data.final_norm = self._norm(tensors.FINAL_NORM)
        if config.smear_width:
            data.smear_gate = self._copy("smear_gate.weight")
            data.smear_strength = self._floats("smear_lambda")[0]
            data.backout = self._floats("backout_lambda")[0]
        for i in range(config.n_layer):
            self._load_layer(i, model._layers[i])
        model._arena.close()

    def _load_layer(self, i: int, layer: Layer) -> None:
        config, name = self._config, tensors.layer_name(i)
        layer.qkv = self._linear(*(f"{name}attn.c_{part}" for part in "qkv"), bias=config.qkv_bias)
        layer.attention_out = self._linear(f"{name}attn.c_proj", bias=config.attention_out_bias)
        layer.mlp_in = self._mlp_in(name)
        layer.mlp_out = self._linear(f"{name}mlp.c_proj", bias=config.mlp_bias)
        layer.attention_norm = self._norm(f"{name}ln_1")
        layer.mlp_norm = self._norm(f"{name}ln_2")
        if config.qk_norm is not None and config.qk_norm.weights:
            layer.q_norm = self._copy(f"{name}attn.q_norm.weight")
            layer.k_norm = self._copy(f"{name}attn.k_norm.weight")
        layer.rotates = config.rotates(i)
        layer.window = config.windows[i]
        layer.mixes = config.residual_mix
        if config.residual_mix:
            layer.mix_stream = self._floats("resid_lambdas")[i]
            layer.mix_embedding = self._floats("x0_lambdas")[i]
        if config.has_value_embedding(i):
            layer.value_table = self._table(f"value_embeds.{i}.weight")
            layer.value_gate = self._copy(f"{name}attn.ve_gate.weight")

    def _linear(self, *names: str, bias: bool) -> Linear:
        """Some linear layers with the same inputs, stacked."""
        matrix = self._matrix([self._weights[f"{name}.weight"] for name in names])
        return Linear(matrix, self._bias(*names) if bias else None)

    def _mlp_in(self, layer: str) -> Linear:
        config = self._config
        name, gate = f"{layer}mlp.c_fc", f"{layer}mlp.c_gate"
        if not config.gated:
            return self._linear(name, bias=config.mlp_bias)
        parts = [self._weights[f"{part}.weight"] for part in (gate, name)]
        matrix = self._empty_matrix(2 * config.n_hidden, parts)
        for part, target in zip(parts, (PackTarget.FIRST_HALVES, PackTarget.SECOND_HALVES), strict=True):
            self._pack(matrix, part, target)
        return Linear(matrix, self._bias(name), self._bias(gate)) if config.mlp_bias else Linear(matrix)

    def _size(self, matrix: Matrix) -> int:
        size: int = self._model._kernels.celeriac_packed_bytes(ctypes.byref(matrix))
        return size

    def _empty_matrix(self, outputs: int, parts: Sequence[Tensor]) -> Matrix:
        """A matrix for some parts, which have the same inputs."""
        matrix = Matrix(outputs, parts[0].shape[1], kind=self._kind(parts), group=INT8_GROUP)
        matrix.panels = self._model._arena.take(self._size(matrix))
        if matrix.kind in (MatrixKind.BF16_DOT, MatrixKind.INT8_DOT):
            self._model.rounding_kinds |= {MatrixKind(matrix.kind)}
        return matrix

    def _matrix(self, parts: Sequence[Tensor]) -> Matrix:
        """Pack some matrices, stacked, as one."""
        matrix = self._empty_matrix(sum(part.shape[0] for part in parts), parts)
        at = 0
        for part in parts:
            self._pack(matrix, part, PackTarget.IN_A_ROW, at)
            at += part.shape[0]
        return matrix

    def _pack(self, matrix: Matrix, part: Tensor, target: PackTarget, at: int = 0) -> None:
        plain = part.contiguous()
        self._model._kernels.celeriac_pack(
            ctypes.byref(matrix),
            target,
            at,
            plain.data_ptr(),
            plain.shape[0],
            KINDS[plain.dtype],
            torch.get_num_threads(),
        )

    def _kind(self, parts: Sequence[Tensor]) -> MatrixKind:
        """The number format of a matrix of some parts."""
        if self._int8:
            return INT8_KINDS[self._compute]
        kinds = {KINDS[part.dtype] for part in parts}
        # A bf16 matrix holds pairs of inputs.
        if len(kinds) > 1 or (kinds == {MatrixKind.BF16} and parts[0].shape[1] % 2):
            return MatrixKind.FP32
        kind = kinds.pop()
        return MatrixKind.BF16_DOT if kind is MatrixKind.BF16 and self._compute == "fast" else kind

    def _bias(self, *names: str) -> int:
        """The biases of some linear layers, one after the other."""
        bias = torch.cat([self._weights[f"{name}.bias"].float() for name in names])
        return self._kept_address(F.pad(bias, (0, -len(bias) % _BIAS_MULTIPLE)))

    def _norm(self, name: str) -> NormWeights:
        norm = self._config.norm
        if not norm.weights:
            return NormWeights()
        return NormWeights(self._copy(f"{name}.weight"), self._copy(f"{name}.bias") if norm.kind == "layer" else None)

    def _table(self, name: str) -> Table:
        table = self._model.device.copy_table(self._weights[name]).contiguous()
        return Table(self._kept_address(table), KINDS[table.dtype])

    def _copy(self, name: str) -> int:
        return self._kept_address(self._model.device.copy(self._weights[name]).contiguous())

    def _kept_address(self, tensor: Tensor) -> int:
        """The address of a tensor, which lives as long as the model."""
        self._model._kept.append(tensor)
        return tensor.data_ptr()

    def _floats(self, name: str) -> list[float]:
        values: list[float] = self._weights[name].float().tolist()
        return values
