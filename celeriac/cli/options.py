"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from tasks.generation import MAX_TEMPERATURE, MAX_TOKENS_LIMIT, SEED_BITS

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8000"
DEVICES = ("auto", "cpu", "cuda", "mps")

url = click.option(
    "--url", envvar="CELERIAC_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="The server."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
checkpoint_name = click.option(
    "--checkpoint",
    envvar="CELERIAC_CHECKPOINT",
    required=True,
    show_envvar=True,
    metavar="NAME|PATH",
    help="The checkpoint's folder, or its name under CELERIAC_CHECKPOINT_DIR.",
)
device = click.option(
    "--device",
    envvar="CELERIAC_DEVICE",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    show_envvar=True,
    help="Where the model runs.",
)
port = click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the API.")
host = click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on.")
reload = click.option("--reload", is_flag=True, help="Load the API again when its code changes (for development).")


def sampling(command: F) -> F:
    """How to continue a prompt; the command gets `max_tokens`, `temperature`, ... as keywords."""
    options = (
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
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


def queueing(command: F) -> F:
    """Which server and which of its checkpoints generate."""
    return url(click.option("--model", help="Checkpoint to use, where several are served.")(command))


def prompt_text(argument: str) -> str:
    """A prompt from the command line; `-` stands for the standard input."""
    return click.get_text_stream("stdin").read() if argument == "-" else argument
