"""Applications of the API. Several tests use the same one, one after the other.

An application makes its routes and its document at its first requests. That takes longer than most tests.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from api.app import create_app
from tasks.settings import Settings

#: Applications that no test uses now, by what they were made from.
_idle: dict[tuple[str, str | None], list[FastAPI]] = defaultdict(list)


@contextmanager
def application(settings: Settings) -> Iterator[FastAPI]:
    """An application with these settings, which nothing else uses inside the `with` block.

    It is not started. Do not change it, because other tests get it later.
    """
    idle = _idle[settings.model_dump_json(), os.environ.get("FORWARDED_ALLOW_IPS")]
    app = idle.pop() if idle else create_app(settings)
    yield app
    idle.append(app)
