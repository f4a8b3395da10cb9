"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tasks.generation import MAX_TEMPERATURE, MAX_TOKENS_LIMIT, SEED_BITS

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
    options: tuple[Callable[[F], F], ...] = (
        click.option(
            "--max-tokens",
            type=click.IntRange(1, MAX_TOKENS_LIMIT),
            default=100,
            show_default=True,
            help="Most tokens to generate.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0.0, MAX_TEMPERATURE),
            default=0.8,
            show_default=True,
            help="0: always the likeliest token.",
        ),
        click.option("--top-k", type=click.IntRange(min=1), help="Sample from the k likeliest tokens only."),
        click.option(
            "--top-p",
            type=click.FloatRange(0.0, 1.0, min_open=True),
            help="Sample from the likeliest tokens that together have this probability.",
        ),
        click.option("--seed", type=click.IntRange(0, (1 << SEED_BITS) - 1), help="Repeat the draws of another run."),
        click.option("--stop-on-newline", is_flag=True, help="End after the first newline."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End in front of this text; may be given again."),
        click.option("--ignore-eos", is_flag=True, help="Go on where the model would end the text."),
    )
    return _with(options, command)


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
