"""A real API process with a worker that has no model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.settings import Settings
from tests.helpers.api_client import server, settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


@pytest.fixture
def worker(settings: Settings) -> Iterator[FakeWorker]:
    with fake_worker(settings) as worker:
        yield worker


@pytest.fixture
def url(settings: Settings, worker: FakeWorker) -> Iterator[str]:
    with server(settings) as url:
        yield url
