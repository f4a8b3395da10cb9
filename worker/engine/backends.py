"""Chooses the fastest model and sampler for a device: compiled kernels where there are any, else torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import INT8_GROUP, WeightForm
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
    config: ModelConfig, weights: Mapping[str, Tensor], device: Device, form: WeightForm = "exact"
) -> DecodingModel:
    """Build a model from `weights`, the tensors of a checkpoint as they are on disk.

    It runs on compiled kernels where the device has them, else on torch, with CUDA graphs on CUDA. Raises ValueError if
    `form` needs the kernels and there are none.
    """
    kernels = compiled_kernels(device)
    if kernels is not None:
        return NativeModel.load(config, weights, device, kernels, group=INT8_GROUP if form == "int8" else 0)
    if form != "exact":
        missing = (
            "this machine has none: install a C compiler"
            if device.kind == "cpu"
            else f"{device.kind} has none: use cpu"
        )
        raise ValueError(f"{form} weights need the compiled kernels, and {missing}, or set CELERIAC_WEIGHTS to exact")
    model = Model.load(config, weights, device)
    return GraphDecode(model, CudaGraphs().capture) if device.has_graphs else model


def fastest_sampler(vocabulary: Vocabulary, device: Device) -> Sampler:
    """A sampler for models on `device`: on compiled kernels where the device has them, else on torch."""
    kernels = compiled_kernels(device)
    if kernels is None:
        return TorchSampler(vocabulary, device.sampling_device)
    return NativeSampler(vocabulary, kernels, fixed_threads=device.fixed_threads)
