"""`celeriac export`: write a checkpoint of nanochat as a folder of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import click

from celeriac.cli.command import Command
from celeriac.cli.environment import load_settings, readable_checkpoint_errors, require
from celeriac.cli.model_folder import folder_options, print_model, write_model


@click.command("export", cls=Command)
@click.argument("checkpoint")
@folder_options
def command(checkpoint: str, folder: Path, force: bool) -> None:
    """Write a checkpoint of nanochat as a folder of Hugging Face.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of nanochat such as sft:d20;
    @STEP may follow. It must be of era E1, which is nanochat of 2025: transformers has no later one. DIR gets its
    configuration, weights, tokenizer and chat template.
    """
    require("torch", "tiktoken", "tokenizers", extra="worker")
    settings = load_settings()
    with readable_checkpoint_errors():
        from worker.checkpoints.folder import find
        from worker.conversion.model_folder import check_target
        from worker.conversion.nanochat import read_nanochat

        check_target(folder, replace=force)
        model = read_nanochat(find(checkpoint, settings.checkpoint_dir), softcap=settings.softcap)
        write_model(model, folder, force=force)
    print_model(model, folder)
