"""The command line. Each command is one file in `commands/`. Commands import heavy packages only when they run."""

from __future__ import annotations

import errno
from typing import Any

import click

from celeriac.cli.commands import (
    api,
    cancel,
    chat,
    convert,
    delete,
    demo,
    export,
    export_tokenizer,
    flower,
    generate,
    inspect,
    jobs,
    retry,
    run,
    serve,
    submit,
    watch,
    worker,
)
from celeriac.cli.printable import LINES, printable
from celeriac.errors import CeleriacError


class Commands(click.Group):
    """Prints each failure as one line, with exit code 1. A wrong command line gives exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            # The message may quote a file or a server.
            error.message = printable(error.message, keep=LINES)  # type: ignore[misc]
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CeleriacError as error:
            raise click.ClickException(str(error)) from error
        except UnicodeEncodeError as error:
            advice = "" if error.encoding.lower() in ("utf-8", "utf8") else " Set PYTHONIOENCODING=utf-8."
            raise click.ClickException(f"The output is not text in the encoding {error.encoding}.{advice}") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                # The reader of the output has exited. click ends the command without a message.
                raise
            file = "" if error.filename is None else f": {error.filename}"
            raise click.ClickException(f"{error.strerror or error}{file}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="celeriac")
def main() -> None:
    """Generate text with trained checkpoints, served through a task queue."""


for module in (
    *(serve, demo, api, worker, flower, run, inspect, convert, export, export_tokenizer),
    *(generate, chat, submit, watch, cancel, retry, delete, jobs),
):
    main.add_command(module.command)
