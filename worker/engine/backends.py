"""The fastest form of a model that this machine can run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import INT8_GROUP, WeightForm
from worker.engine.device import Device
from worker.engine.engine import DecodingModel
from worker.engine.native.model import NativeModel
from worker.engine.torch.cuda_graphs import CudaGraphs
from worker.engine.torch.graph_decode import StaticDecode
from worker.engine.torch.model import Model


def load_weights(
    config: ModelConfig, weights: Mapping[str, Tensor], device: Device, form: WeightForm = "exact"
) -> DecodingModel:
    """A model of `weights`, which are as on disk: on compiled kernels where the device has them, else on torch, with
    its decoding steps recorded where the device can do that.

    ValueError where `form` needs the kernels and there are none.
    """
    kernels = device.kernels
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
    return StaticDecode(model, CudaGraphs().record) if device.graphs else model
