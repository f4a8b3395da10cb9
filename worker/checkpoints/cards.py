"""The card of a checkpoint: what it is, for people, for front ends, and to tell equal weights from others."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict

from tasks.card import Card, TokenizerCard
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.formats import Checkpoint
from worker.checkpoints.tokenizers import Tokenizer
from worker.checkpoints.tokenizers.finder import tokenizer_file

#: The card's tokenizer where there is none: prompts must be token ids.
NO_TOKENIZER = TokenizerCard(kind="none", text_ids=0)


def build_card(checkpoint: Checkpoint, tokenizer: Tokenizer | None, *, kv_bytes_per_token: int) -> Card:
    """The card. Raises CheckpointError where the files vanished meanwhile."""
    config, meta, folder = checkpoint.config, checkpoint.meta, checkpoint.folder
    weights = checkpoint.weights.values()
    return Card(
        name=folder.name,
        digest=_digest(checkpoint),
        step=folder.step,
        loss=meta.loss,
        loss_name=meta.loss_name,
        era=config.era.name,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        n_embd=config.n_embd,
        vocab_size=config.vocab_size,
        context=config.sequence_len,
        softcap=config.softcap,
        parameters=sum(tensor.numel() for tensor in weights),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        kv_bytes_per_token=kv_bytes_per_token,
        tokenizer=NO_TOKENIZER if tokenizer is None else tokenizer.card(),
    )


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over the checksums of the weights file's records, the shape, and the tokenizer's file.

    torch.save writes a CRC-32 of every tensor into the file's directory, so that 2.5 GB need not be read again. It
    tells apart what training changes; it is no defence against a file that was made to collide.
    """
    digest = hashlib.sha256()
    for name, size, crc in _records(checkpoint.folder):
        digest.update(f"{name} {size} {crc}\n".encode())
    digest.update(json.dumps(asdict(checkpoint.config), default=str, sort_keys=True).encode())
    if (file := tokenizer_file(checkpoint.folder)) is not None:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _records(folder: CheckpointFolder) -> list[tuple[str, int, int]]:
    """Name, size and CRC-32 of each record; the archive's own name, which is the file's, is left out."""
    try:
        with zipfile.ZipFile(folder.model_file) as archive:
            return [(info.filename.partition("/")[2], info.file_size, info.CRC) for info in archive.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(folder.model_file, f"cannot be read any more: {error}") from error
