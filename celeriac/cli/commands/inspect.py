"""`celeriac inspect`: what a checkpoint is, and whether it can be served."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from celeriac.cli import options
from celeriac.cli.environment import load_settings, readable_checkpoint_errors, require
from celeriac.cli.output import print_fields, print_json, warn
from tasks.sampling_params import MAX_TOKENS_LIMIT

if TYPE_CHECKING:
    from tasks.card import Card


@click.command("inspect")
@click.argument("checkpoint")
@options.as_json
def command(checkpoint: str, as_json: bool) -> None:
    """Print the card of CHECKPOINT, a folder's path or its name under CELERIAC_CHECKPOINT_DIR."""
    require("torch", extra="worker")
    settings = load_settings()
    with readable_checkpoint_errors():
        from worker.local import read_card

        card, warnings = read_card(checkpoint, settings.checkpoint_dir, softcap=settings.softcap, form=settings.weights)
    warn(warnings)
    if as_json:
        print_json(json.loads(card.to_json()))
    else:
        print_fields(fields_of(card))


def fields_of(card: Card) -> list[tuple[str, str]]:
    """The card for people."""
    tokenizer = card.tokenizer
    kind = f"{tokenizer.kind}, {tokenizer.text_ids} ids with text"
    loss = "unknown" if card.loss is None else f"{card.loss:.4f} ({card.loss_name})"
    fields = [
        ("name", card.name),
        ("step", "unknown" if card.step is None else f"{card.step}"),
        ("loss", loss),
        ("era", card.era),
        ("layers", f"{card.n_layer}"),
        ("width", f"{card.n_embd}"),
        ("heads", f"{card.n_head}, {card.n_kv_head} of keys and values"),
        ("vocabulary", f"{card.vocab_size} ids"),
        ("context", f"{card.context} tokens"),
        ("limits", f"prompt {card.context - 1} tokens, answer {min(MAX_TOKENS_LIMIT, card.context - 1)}"),
        ("softcap", f"{card.softcap:g}"),
        ("parameters", f"{card.parameters:,}"),
        ("weights", f"{card.weight_bytes:,} bytes, {card.weights} in memory"),
        ("KV memory", f"{card.kv_bytes_per_token:,} bytes per token, {megabytes(card)} MiB for a full context"),
        ("tokenizer", "none: it takes token ids alone" if tokenizer.kind == "none" else kind),
    ]
    if tokenizer.characters is not None:
        unknown = "left out of a prompt" if tokenizer.unknown == "skip" else "refused"
        fields.append(("characters", f"{tokenizer.characters!r}; others are {unknown}"))
    if tokenizer.bos_id is not None:
        fields.append(("BOS", f"{tokenizer.bos_id}, {'' if tokenizer.prepend_bos else 'not '}put in front of a prompt"))
    return [*fields, ("digest", card.digest)]


def megabytes(card: Card) -> str:
    """KV memory of one full context."""
    return f"{card.kv_bytes_per_token * card.context / 2**20:,.1f}"
