"""The compiled kernels, for the kinds of processor that this machine can run as."""

from __future__ import annotations

import ctypes
import platform

import pytest

from tests.helpers.kernels import kinds_by_width
from worker.engine.native.library import build, load, opened, processor_kinds

#: Kinds that differ from another one only in their instructions for dot products.
OTHERS = [kind for kind in processor_kinds() if kind not in kinds_by_width()]


@pytest.fixture(scope="session", params=kinds_by_width())
def kernels(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return load(request.param)


@pytest.fixture(scope="session", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS])
def other_kernels(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return load(request.param)


@pytest.fixture(scope="session")
def plain_kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Kernels without the instructions of a kind, as on a processor that is not x86-64."""
    if platform.machine() != "x86_64":
        pytest.skip("the kernels of this machine are the plain ones")
    return opened(build("x86-64-v2", tmp_path_factory.mktemp("plain")))
