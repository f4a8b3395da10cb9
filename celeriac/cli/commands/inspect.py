"""`celeriac inspect`: print the card of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.environment import load_settings, readable_checkpoint_errors, require
from celeriac.cli.output import print_fields, print_json, print_table, warn
from tasks.sampling_params import MAX_TOKENS_LIMIT

if TYPE_CHECKING:
    from tasks.card import Card
    from worker.checkpoints.runs import Run
    from worker.engine.architecture.config import ModelConfig

#: What the form of the weights means for their size in memory.
IN_MEMORY = {
    "exact": "",
    "bf16": "; in memory the matrices take two bytes per weight (bf16)",
    "int8": "; in memory the matrices take about one byte per weight (int8)",
}
#: How a worker multiplies with them.
COMPUTE = {"exact": "", "fast": "; activations are rounded (fast compute)"}
#: How messages become a prompt.
CHAT = {None: "no: it has no chat template", "nanochat": "nanochat's layout", "jinja": "its own template (Jinja)"}
#: Most steps of a run that the list of runs shows.
MAX_STEPS = 5


@click.command("inspect", cls=Command)
@click.argument("checkpoint")
@options.as_json
def command(checkpoint: str, as_json: bool) -> None:
    """Print the training, size and tokenizer of a checkpoint, or list the checkpoints in a folder.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of nanochat such as sft:d20;
    @STEP may follow. Warns if it cannot be served. A folder that contains runs is listed, with the name under which
    each run would be served.
    """
    require("torch", extra="worker")
    settings = load_settings()
    with readable_checkpoint_errors():
        from worker.checkpoints.runs import runs_in
        from worker.local import describe

        if runs := runs_in(Path(checkpoint)):
            print_runs(Path(checkpoint), runs, as_json=as_json)
            return

        found = describe(
            checkpoint,
            settings.checkpoint_dir,
            softcap=settings.softcap,
            form=settings.weights,
            context=settings.context,
            compute=settings.compute,
        )
    warn(found.warnings)
    if as_json:
        print_json(json.loads(found.card.to_json()))
    else:
        print_fields(fields_of(found.card, found.config))


def print_runs(folder: Path, runs: Sequence[Run], *, as_json: bool) -> None:
    """Print the runs in a folder, and to stderr why some of them cannot be served."""
    if as_json:
        print_json([{**asdict(run), "path": str(run.path)} for run in runs])
        return
    rows = [
        (
            str(run.path.relative_to(folder)),
            run.name,
            listed_steps(run.steps),
            " ".join(filter(None, (run.family, run.era))) or "unknown",
            run.tokenizer or "none",
        )
        for run in runs
    ]
    print_table(
        ("FOLDER", "NAME", "STEPS", "MODEL", "TOKENIZER"), rows, cut="STEPS", hide=("TOKENIZER", "MODEL", "STEPS")
    )
    warn(f"{run.name} cannot be served. {run.problem}" for run in runs if run.problem is not None)


def listed_steps(steps: Sequence[int]) -> str:
    """The first steps and the last one, which is served unless another is named."""
    shown = [str(step) for step in steps]
    if len(shown) > MAX_STEPS:
        shown[MAX_STEPS - 1 : -1] = ["..."]
    return ", ".join(shown) or "none"


def fields_of(card: Card, config: ModelConfig) -> list[tuple[str, str]]:
    """What is known of a checkpoint as names and values."""
    tokenizer = card.tokenizer
    kind = f"{tokenizer.kind}, {tokenizer.text_ids} ids that have text"
    in_memory = IN_MEMORY[card.weights] + COMPUTE[card.compute]
    fields = [("name", card.name), ("family", card.family)]
    if card.era:
        loss = "unknown" if card.loss is None else f"{card.loss:.4f} ({card.loss_name})"
        step = "unknown" if card.step is None else f"{card.step}"
        fields += [("era", card.era), ("step", step), ("loss", loss)]
    fields += [
        ("layers", f"{card.n_layer}"),
        ("width", f"{card.n_embd}"),
        ("heads", f"{card.n_head} of {config.head_dim} channels, {card.n_kv_head} for keys and values"),
        ("MLP", f"{config.n_hidden} hidden values, {config.activation}{', gated' if config.gated else ''}"),
        ("positions", positions_of(config)),
        ("windows", windows_of(config)),
        ("vocabulary", f"{card.vocab_size} ids"),
        ("context", f"{card.context} tokens"),
        ("limits", f"prompt {card.context - 1} tokens, continuation {min(MAX_TOKENS_LIMIT, card.context - 1)}"),
        ("softcap", "none" if card.softcap is None else f"{card.softcap:g}"),
        ("parameters", f"{card.parameters:,}{'; the head is the embedding' if config.tied_head else ''}"),
        ("weights", f"{card.weight_bytes:,} bytes in {card.dtype} on disk{in_memory}"),
        ("KV memory", f"{card.kv_bytes_per_token:,} bytes per token, {context_mib(card)} MiB for a full context"),
        ("tokenizer", "none: only prompts of token ids" if tokenizer.kind == "none" else kind),
    ]
    if tokenizer.characters is not None:
        unknown = "left out of the prompt" if tokenizer.unknown == "skip" else "refused"
        fields.append(("characters", f"{tokenizer.characters!r}; others are {unknown}"))
    if tokenizer.bos_id is not None:
        fields.append(("BOS", f"{tokenizer.bos_id}, {'' if tokenizer.prepend_bos else 'not '}put before a prompt"))
    fields.append(("chat", f"{CHAT[tokenizer.chat]}{', with the calculator' if tokenizer.calculator else ''}"))
    if card.default_sampling is not None:
        shown = ", ".join(f"{name} {value:g}" for name, value in card.default_sampling.items())
        fields.append(("sampling", f"{shown}, on OpenAI's routes where a request does not say otherwise"))
    return [*fields, ("digest", card.digest)]


def positions_of(config: ModelConfig) -> str:
    """How the model knows the positions of tokens."""
    if config.rope is None:
        return "learned" if config.learned_positions else "none"
    without = [layer for layer in range(config.n_layer) if not config.rotates(layer)]
    return f"rotary ({config.rope.origin})" + (f", not in layers {layers(without)}" if without else "")


def windows_of(config: ModelConfig) -> str:
    """How many tokens each layer attends to, its own included, if that is less than the context."""
    by_size: dict[int, list[int]] = {}
    for layer, window in enumerate(config.windows):
        if window < config.sequence_len:
            by_size.setdefault(window + 1, []).append(layer)
    if not by_size:
        return "none: every layer attends to the whole context"
    return ", ".join(f"{size} tokens in layers {layers(found)}" for size, found in by_size.items())


def layers(numbers: Sequence[int]) -> str:
    """Numbers of layers, counted from 0, such as `0-2, 5`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, one)) for one in ranges)


def context_mib(card: Card) -> str:
    """KV memory of one full context, in MiB."""
    return f"{card.kv_bytes_per_token * card.context / 2**20:,.1f}"
