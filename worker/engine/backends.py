"""Chooses the fastest model and sampler for a device: compiled kernels where there are any, else torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import Compute, WeightForm
from worker.engine.bf16_weights import Bf16Weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.native.library import library, load
from worker.engine.native.model import NativeModel
from worker.engine.sampling.native_sampler import NativeSampler
from worker.engine.sampling.sampler import Sampler
from worker.engine.sampling.torch_sampler import TorchSampler
from worker.engine.torch.cuda_graphs import CudaGraphs
from worker.engine.torch.graph_decode import GraphDecode
from worker.engine.torch.model import Model
from worker.engine.vocabulary import Vocabulary


def compiled_kernels(device: Device) -> ctypes.CDLL | None:
    """The compiled kernels for `device`, or None if there are none."""
    if device.kind != "cpu":
        return None
    return library() if device.processor is None else load(device.processor)


def load_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    device: Device,
    form: WeightForm = "exact",
    compute: Compute = "exact",
) -> DecodingModel:
    """Build a model from `weights`, the tensors of a checkpoint as they are on disk.

    It runs on compiled kernels where the device has them, else on torch, with CUDA graphs on CUDA. Raises ValueError if
    `form` or `compute` needs the kernels and there are none.
    """
    if form == "bf16":
        weights = Bf16Weights(weights)
    kernels = compiled_kernels(device)
    if kernels is not None:
        return NativeModel.load(config, weights, device, kernels, int8=form == "int8", compute=compute)
    missing = (
        "this machine has none: install a C compiler" if device.kind == "cpu" else f"{device.kind} has none: use cpu"
    )
    if form == "int8":
        raise ValueError(f"int8 weights need the compiled kernels, and {missing}, or set CELERIAC_WEIGHTS to exact")
    if compute == "fast":
        raise ValueError(f"fast compute needs the compiled kernels, and {missing}, or set CELERIAC_COMPUTE to exact")
    model = Model.load(config, weights, device)
    return GraphDecode(model, CudaGraphs().capture) if device.has_graphs else model


def compute_warnings(model: DecodingModel, compute: Compute) -> tuple[str, ...]:
    """What an operator should know about `compute` with this model on this machine."""
    if compute == "exact" or not isinstance(model, NativeModel):
        return ()
    if not model.rounding_kinds:
        return (
            "fast compute changes nothing: the matrices are neither in bf16 nor in int8. Set CELERIAC_WEIGHTS to bf16 "
            "or int8, or CELERIAC_COMPUTE to exact.",
        )
    if slow := model.rounding_kinds - model.fast_kinds:
        names = " and ".join(sorted(kind.name.lower().removesuffix("_dot") for kind in slow))
        return (
            f"This processor has no instructions for dot products in {names}: fast compute gives the same numbers as "
            "on processors that have them, but is not faster than exact.",
        )
    return ()


def fastest_sampler(vocabulary: Vocabulary, device: Device) -> Sampler:
    """A sampler for models on `device`: on compiled kernels where the device has them, else on torch."""
    kernels = compiled_kernels(device)
    if kernels is None:
        return TorchSampler(vocabulary, device.sampling_device)
    return NativeSampler(vocabulary, kernels, fixed_threads=device.fixed_threads)
