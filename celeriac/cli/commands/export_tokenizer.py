"""`celeriac export-tokenizer`: write the tokenizer of a checkpoint for programs of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import click

from celeriac.cli.command import Command
from celeriac.cli.environment import load_settings, readable_checkpoint_errors, require
from celeriac.cli.output import print_fields, warn


@click.command("export-tokenizer", cls=Command)
@click.argument("checkpoint")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Write into a folder that has files, and replace those of a tokenizer.")
def command(checkpoint: str, folder: Path, force: bool) -> None:
    """Write the tokenizer of a checkpoint to a folder in the format of Hugging Face.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of nanochat such as sft:d20;
    @STEP may follow. DIR gets tokenizer.json and tokenizer_config.json, which give the same token ids, BOS included,
    and the same prompts for conversations. Clients that count or send token ids, such as lm-eval, load it.
    """
    require("tiktoken", "tokenizers", extra="worker")
    settings = load_settings()
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} is not empty. Give another folder, or --force to write into it.")
    with readable_checkpoint_errors():
        from worker.checkpoints.folder import find
        from worker.checkpoints.sizes import sizes_of
        from worker.checkpoints.tokenizers import load_tokenizer
        from worker.checkpoints.tokenizers.export import ExportedTokenizer

        found = find(checkpoint, settings.checkpoint_dir)
        sizes = sizes_of(found)
        tokenizer = load_tokenizer(found, sizes.vocab_size)
        exported = ExportedTokenizer.of(tokenizer, context=sizes.context)
    exported.write(folder)
    if tokenizer.kind == "characters":
        warn(["Programs of Hugging Face leave out characters that are not in this vocabulary, without a message."])
    card = tokenizer.card()
    print_fields(
        [
            ("folder", str(folder)),
            ("ids that have text", f"{card.text_ids}"),
            ("BOS", f"{exported.config['bos_token']}{', put before each text' if card.prepend_bos else ''}"),
            ("end of an answer", f"{exported.config['eos_token']}"),
            ("chat template", "no" if tokenizer.chat is None else "yes"),
        ]
    )
