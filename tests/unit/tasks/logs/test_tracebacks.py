"""No message that may quote a prompt reaches a log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from pydantic import BaseModel

import api.app
from api.schemas.base import Model
from tasks.errors import QueueError
from tasks.job import Status
from tasks.logs import setup_logging
from tasks.logs.tracebacks import HIDDEN
from tasks.settings import Settings

SECRET = "a secret prompt"


class Ours(Model):
    number: int


class Foreign(BaseModel):
    number: int


def raise_in_a_chain() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError("no quote") from error


def raise_in_a_context() -> None:
    try:
        int(SECRET)
    except ValueError:
        raise OSError("no quote")  # noqa: B904


def raise_a_group() -> None:
    raise ExceptionGroup("several", [KeyError(SECRET), ValueError(SECRET)])


QUOTING: list[Callable[[], object]] = [
    lambda: int(SECRET),
    lambda: Status(SECRET),
    lambda: {}[SECRET],
    lambda: json.loads("{}")[SECRET],
    lambda: SECRET.encode("ascii").decode("utf-16"),
    lambda: "é".join([SECRET]).encode().decode("ascii") and float(SECRET),
    lambda: [].index(SECRET),  # type: ignore[arg-type]
    lambda: Ours(number=SECRET),  # type: ignore[arg-type]
    lambda: Foreign(number=SECRET),  # type: ignore[arg-type]
    lambda: Ours.model_validate_json(f'{{"number": "{SECRET}"}}'),
    raise_in_a_chain,
    raise_in_a_context,
    raise_a_group,
]


class Log:
    """What was logged so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: bytes, _descriptor: int = 2) -> None:
        self.lines.append(line.decode())

    def getvalue(self) -> str:
        return "".join(self.lines)


@pytest.fixture(params=["json", "console"])
def logged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The log of a process that was set up as each role is."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = Log()
    # They have no descriptor, so they stay as they are.
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("tasks.logs.setup.output", written)
    setup_logging(Settings(log_format=request.param))
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("fail", QUOTING)
def test_a_traceback_has_the_place_and_no_message_that_may_quote(logged: Log, fail: Callable[[], object]) -> None:
    for logger in (logging.getLogger("uvicorn.error"), structlog.get_logger("ours")):
        try:
            fail()
        except Exception:
            logger.exception("it failed")
    text = logged.getvalue()
    assert SECRET not in text
    assert text.count("Traceback (most recent call last)") >= 2
    assert "in fail" in text or "<lambda>" in text or "raise_" in text
    assert HIDDEN in text or "no quote" in text


def test_other_messages_are_logged(logged: Log) -> None:
    for error in (QueueError("what to do"), OSError(28, "No space left on device"), RuntimeError("CUDA error")):
        try:
            raise error
        except Exception:
            logging.getLogger("any").exception("it failed")
    assert HIDDEN not in logged.getvalue()
    for message in ("what to do", "No space left on device", "CUDA error"):
        assert message in logged.getvalue()


def test_a_task_whose_error_no_one_reads(logged: Log) -> None:
    async def main() -> None:
        async def fail() -> None:
            int(SECRET)

        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task

    asyncio.run(main())
    assert "exception was never retrieved" in logged.getvalue()
    assert SECRET not in logged.getvalue()


def models(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """All models of this program that the API and the roles have loaded."""
    for model in of.__subclasses__():
        if model.__module__.partition(".")[0] in ("api", "tasks", "worker", "celeriac"):
            yield model
        yield from models(model)


def test_no_error_of_a_model_of_ours_quotes_its_input() -> None:
    assert api.app
    found = {*models(BaseModel)}
    assert Settings in found
    assert len(found) > 20
    assert [model.__name__ for model in found if not model.model_config.get("hide_input_in_errors")] == []


def test_an_error_of_our_models_has_no_input() -> None:
    with pytest.raises(ValueError, match="number") as error:
        Ours(number=SECRET)  # type: ignore[arg-type]
    assert SECRET not in str(error.value)
