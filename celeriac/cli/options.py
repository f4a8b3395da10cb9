"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tasks.sampling_params import SAMPLING_FIELDS, SamplingField

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8000"
DEVICES = ("auto", "cpu", "cuda", "mps")


def url(command: F) -> F:
    """Which server."""
    return click.option(
        "--url",
        envvar="CELERIAC_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=_checked_url,
        help="The server.",
    )(command)


def as_json(command: F) -> F:
    """Whether programs read the output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def checkpoint(command: F) -> F:
    """Which checkpoint to serve."""
    return click.option(
        "--checkpoint",
        envvar="CELERIAC_CHECKPOINT",
        required=True,
        show_envvar=True,
        metavar="NAME|PATH",
        help="The checkpoint's folder, or its name under CELERIAC_CHECKPOINT_DIR.",
    )(command)


def device(command: F) -> F:
    """Where the model runs."""
    return click.option(
        "--device",
        envvar="CELERIAC_DEVICE",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        show_envvar=True,
        help="Where the model runs.",
    )(command)


def weights(command: F) -> F:
    """How the weights are held in memory."""
    return click.option(
        "--weights",
        envvar="CELERIAC_WEIGHTS",
        type=click.Choice(["exact", "int8"]),
        default="exact",
        show_default=True,
        show_envvar=True,
        help="Hold the weights as they are, or rounded to 8 bits (on a CPU alone): smaller and faster.",
    )(command)


def listening(command: F) -> F:
    """Where the API listens, and whether it is being developed."""
    options: tuple[Callable[[F], F], ...] = (
        click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on."),
        click.option(
            "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port that it listens on."
        ),
        click.option("--reload", is_flag=True, help="Load the API again when its code changes (for development)."),
    )
    return _with(options, command)


def sampling(command: F) -> F:
    """How to continue a prompt; the command gets `max_tokens`, `temperature`, ... as keywords."""
    return _with(tuple(_sampling_option(one) for one in SAMPLING_FIELDS), command)


def _sampling_option(one: SamplingField) -> Callable[[F], F]:
    """The option of a sampling field, made from its declaration."""
    name, bounds = f"--{one.name.replace('_', '-')}", one.bounds
    low, high = bounds.ge if bounds.gt is None else bounds.gt, bounds.le if bounds.lt is None else bounds.lt
    strict = {"min_open": bounds.gt is not None, "max_open": bounds.lt is not None}
    if one.type == "bool":
        return click.option(name, is_flag=True, help=one.description)
    if one.type == "tuple[str, ...]":
        return click.option(name, multiple=True, metavar="TEXT", help=f"{one.description} May be given again.")
    whole = one.type.startswith("int")
    type_ = click.IntRange(low, high, **strict) if whole else click.FloatRange(low, high, **strict)  # type: ignore[arg-type]
    return click.option(name, type=type_, default=one.default, show_default=True, help=one.description)


def limits(command: F) -> F:
    """What a job may cost its sender in time; the command gets `deadline_s`, ... as keywords."""
    seconds = click.FloatRange(min=0.0, min_open=True)
    options: tuple[Callable[[F], F], ...] = (
        click.option(
            "--deadline", "deadline_s", type=seconds, metavar="SECONDS", help="Stop it if it is not over by then."
        ),
        click.option(
            "--queue-timeout",
            "queue_timeout_s",
            type=seconds,
            metavar="SECONDS",
            help="Let it expire if it is not started by then.",
        ),
        click.option(
            "--run-timeout",
            "run_timeout_s",
            type=seconds,
            metavar="SECONDS",
            help="Stop it when it has run for so long.",
        ),
        click.option(
            "--max-queue-position",
            type=click.IntRange(min=0),
            metavar="N",
            help="Refuse it if more jobs than this are ahead of it.",
        ),
    )
    return _with(options, command)


def generating(command: F) -> F:
    """Which server and which of its checkpoints generate."""
    command = url(command)
    return click.option("--model", help="Checkpoint to use, where several are served.")(command)


def prompt_text(argument: str) -> str:
    """A prompt from the command line; `-` stands for the standard input."""
    return sys.stdin.read() if argument == "-" else argument


def _with(options: tuple[Callable[[F], F], ...], command: F) -> F:
    """A command with options, in the order in which its help shall show them."""
    for option in reversed(options):
        command = option(command)
    return command


def _checked_url(_: click.Context, __: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r} does not begin with http:// or https://")
    return value
