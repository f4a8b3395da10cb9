"""Tokenizers in the format of Hugging Face, for clients that count or send token ids."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from celeriac.cli import main


def exported(checkpoint: Path, folder: Path) -> Path:
    """The folder that `celeriac export-tokenizer` writes."""
    result = CliRunner().invoke(main, ["export-tokenizer", str(checkpoint), str(folder)])
    assert result.exit_code == 0, result.output
    return folder
