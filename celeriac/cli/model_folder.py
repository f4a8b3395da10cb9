"""What the commands that write a folder of Hugging Face share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from celeriac.cli.output import print_fields

if TYPE_CHECKING:
    from worker.conversion.model_folder import ModelFolder

F = TypeVar("F", bound=Callable[..., Any])


def folder_options(command: F) -> F:
    """Add the folder to write. The command gets it as `folder`, and whether it may be replaced as `force`."""
    argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
    force = click.option(
        "--force", is_flag=True, help="Replace DIR if it has the files of another model, and nothing else."
    )
    return argument(force(command))


def write_model(model: ModelFolder, folder: Path, *, force: bool = False, wait: bool = False) -> None:
    """Write the folder, and show the progress on stderr. Raises CheckpointError and OSError."""
    from worker.conversion.model_folder import new_folder

    with (
        new_folder(folder, replace=force, wait=wait) as part,
        click.progressbar(length=model.weight_bytes, label=f"Writing {folder.name}", file=sys.stderr) as bar,
    ):
        model.write_into(part, bar.update)


def print_model(model: ModelFolder, folder: Path) -> None:
    """Print what was written."""
    print_fields(
        [
            ("folder", str(folder)),
            ("family", model.config["model_type"]),
            ("parameters", f"{model.parameters:,}"),
            ("weights", f"{model.weight_bytes:,} bytes, {model.config['dtype']}"),
            ("context", f"{model.tokenizer_config['model_max_length']} tokens"),
            ("chat template", "no" if model.chat_template is None else "yes"),
        ]
    )
