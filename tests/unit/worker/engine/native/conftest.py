"""The compiled kernels, for every kind of processor that this machine can run as."""

from __future__ import annotations

import ctypes

import pytest

from worker.engine.native.library import build, opened, processor_kinds


@pytest.fixture(scope="session", params=processor_kinds())
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return opened(build(request.param, tmp_path_factory.mktemp(request.param)))
