"""The fastest form of a model that this machine can run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from worker.engine.config import ModelConfig
from worker.engine.device import Device
from worker.engine.model import Model
from worker.engine.native.model import NativeModel


def load_weights(config: ModelConfig, weights: Mapping[str, Tensor], device: Device) -> Model | NativeModel:
    """A model of `weights`, which are as on disk: on compiled kernels where the device has them, else on torch."""
    kernels = device.kernels
    if kernels is None:
        return Model.load(config, weights, device)
    return NativeModel.load(config, weights, device, kernels)
