"""Reads a checkpoint in Hugging Face's form: its configuration, and the place of each tensor in its files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.errors import CheckpointError, listed
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.huggingface import config
from worker.checkpoints.huggingface.description import describe
from worker.checkpoints.huggingface.families import Family
from worker.checkpoints.huggingface.names import Source
from worker.checkpoints.huggingface.shards import Stored, open_weights, same_content
from worker.checkpoints.huggingface.weights import DTYPES, HuggingFaceWeights, StoredTensor
from worker.checkpoints.huggingface_files import checked
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.tensors import EMBEDDING, HEAD, shapes


def load(folder: CheckpointFolder, *, softcap: float | None = None) -> Checkpoint:
    """Open the weights of a checkpoint, and check names, shapes and types. Raises CheckpointError.

    `softcap` replaces that of the file, in families that have one.
    """
    values = config.read(checked(folder.meta_file))
    family, model = config.family_of(values), describe(values)
    if softcap is not None:
        if family.softcap is None:
            raise CheckpointError(
                "softcap", f"cannot be set: models of the family {family.name} do not cap their logits"
            )
        model = replace(model, softcap=softcap)
    stored = open_weights(folder.model_file)
    sources = family.names.sources(shapes(model), stored)
    unused = {name for name in stored if family.names.ignored.fullmatch(name)}
    warnings = []
    if model.tied_head and HEAD in stored:
        embedding = sources[EMBEDDING].name
        if embedding not in stored:
            sources[EMBEDDING] = Source(HEAD)
        elif same_content(stored[embedding], stored[HEAD]):
            unused.add(HEAD)
        else:
            model, sources[HEAD] = replace(model, tied_head=False), Source(HEAD)
            warnings.append(
                f"{folder.meta_file.name} says that the head is tied to the embedding, but {HEAD} is another matrix, "
                "which is used, as in transformers. Set `tie_word_embeddings` to false to silence this."
            )
    return Checkpoint(
        folder=folder,
        config=model,
        weights=HuggingFaceWeights(_tensors(folder, family, model, sources, stored, unused)),
        identity=json.dumps(_without_defaults(model), sort_keys=True),
        warnings=tuple(warnings),
    )


def _tensors(
    folder: CheckpointFolder,
    family: Family,
    model: ModelConfig,
    sources: Mapping[str, Source],
    stored: Stored,
    unused: Collection[str],
) -> dict[str, StoredTensor]:
    """The place of each tensor of the engine. Raises CheckpointError if one is missing, left over or unfit."""
    config_name, path = folder.meta_file.name, folder.model_file
    needed = dict.fromkeys(source.name for source in sources.values())
    if missing := [name for name in needed if name not in stored]:
        raise CheckpointError(path, f"lacks tensors that {config_name} requires: {listed(missing)}")
    if left_over := [name for name in stored if name not in needed and name not in unused]:
        shown = [f"{name} {stored[name][1].shape}" for name in left_over]
        raise CheckpointError(
            path, f"has tensors that a {family.name} with this {config_name} does not have: {listed(shown)}"
        )
    tensors = {}
    for name, shape in shapes(model).items():
        source = sources[name]
        file, entry = stored[source.name]
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                file.path,
                f"tensor {entry.name} is of type {entry.dtype}; {', '.join(DTYPES)} are supported, and quantised "
                "weights are not",
            )
        if entry.shape != (expected := source.stored_shape(shape)):
            raise CheckpointError(
                file.path, f"tensor {entry.name} has shape {entry.shape}; {config_name} requires {expected}"
            )
        tensors[name] = StoredTensor(
            file=file,
            entry=entry,
            dtype=DTYPES[entry.dtype],
            shape=shape,
            first_column=source.part * (expected[-1] // source.parts),
            transposed=source.transposed,
        )
    return tensors


def _without_defaults(value: Any) -> Any:
    """A description as JSON, without texts for people and without the fields that have their default.

    A later version may add fields, and the digests of checkpoints stay the same.
    """
    if not is_dataclass(value):
        return value
    found = {one.name: (getattr(value, one.name), one.default) for one in fields(value) if one.compare}
    return {name: _without_defaults(held) for name, (held, default) in found.items() if held != default}
