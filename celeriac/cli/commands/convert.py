"""`celeriac convert`: write the model of a GGUF file as a folder of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import click

from celeriac.cli.command import Command
from celeriac.cli.environment import readable_checkpoint_errors, require
from celeriac.cli.model_folder import folder_options, print_model, write_model


@click.command("convert", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@folder_options
@click.option("--fp32", is_flag=True, help="Write quantised weights as fp32, which holds their values exactly.")
def command(file: Path, folder: Path, force: bool, fp32: bool) -> None:
    """Write the model of a GGUF file as a folder of Hugging Face.

    FILE is a model of llama.cpp of the architecture llama (Llama, Mistral, SmolLM2, ...), qwen2, qwen3, smollm3 or
    gpt2. DIR gets its configuration, weights, tokenizer and chat template, and can be served. Weights keep their type;
    quantised ones become bf16. The folder appears when it is complete.
    """
    require("gguf", "tokenizers", extra="gguf")
    with readable_checkpoint_errors():
        from worker.conversion.gguf.convert import read_gguf
        from worker.conversion.model_folder import check_target

        check_target(folder, replace=force)
        model = read_gguf(file, exact=fp32)
        write_model(model, folder, force=force)
    print_model(model, folder)
