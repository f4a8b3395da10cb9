"""A small chat checkpoint with random weights: nanochat's newest era, and its tokenizer with all special tokens."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import checkpoint_files, tokenizer_files

#: Tokens of text and special tokens.
VOCAB_SIZE = tokenizer_files.TEXT_IDS + len(tokenizer_files.SPECIALS)
CONTEXT = 128
ROWS = -(-VOCAB_SIZE // 64) * 64


def write_chat_checkpoint(parent: Path, name: str = "chat_random", *, context: int = CONTEXT) -> Path:
    """Write the checkpoint into a new folder in `parent`. Returns the folder."""
    sizes = {"vocab_size": VOCAB_SIZE, "sequence_len": context}
    folder = checkpoint_files.write(
        parent / name,
        checkpoint_files.state_dict("E7", rows=ROWS, **sizes),
        checkpoint_files.meta("E7", **sizes),
        era="E7",
    )
    (folder / "tokenizer.pkl").write_bytes(tokenizer_files.pickled())
    return folder
