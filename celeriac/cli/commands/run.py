"""`celeriac run`: generate text in this process, without a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from celeriac.cli import options
from celeriac.cli.chat.options import MAX_TOKENS, system
from celeriac.cli.command import Command
from celeriac.cli.environment import load_settings, readable_checkpoint_errors, require
from celeriac.cli.input import prompt_text
from celeriac.cli.output import print_json, print_text, warn

if TYPE_CHECKING:
    from tasks.sampling_params import SamplingParams
    from worker.local import Completion, LocalModel


@click.command("run", cls=Command)
@click.argument("checkpoint")
@click.option("--prompt", help='Text to continue ("-": read standard input).')
@click.option("--token-ids", callback=lambda *given: parse_ids(given[-1]), help="Token ids to continue, such as 1,2,3.")
@click.option("--interactive", is_flag=True, help="Ask for prompts, one after another.")
@click.option("--chat", is_flag=True, help="Talk to a chat model.")
@system
@options.sampling
@click.option(
    "--softcap",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Logit softcap, instead of that of the checkpoint's era.",
)
@click.option("--logits", is_flag=True, help="With --json: also print the logits after the prompt.")
@options.device
@options.weights
@options.compute
@options.as_json
def command(
    checkpoint: str,
    prompt: str | None,
    token_ids: tuple[int, ...] | None,
    interactive: bool,
    chat: bool,
    system: str | None,
    softcap: float | None,
    logits: bool,
    device: Literal["auto", "cpu", "cuda", "mps"],
    weights: Literal["exact", "bf16", "int8"],
    compute: Literal["exact", "fast"],
    as_json: bool,
    **request: Any,
) -> None:
    """Generate text in this process, without a server.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of nanochat such as sft:d20;
    @STEP may follow. Give one of --prompt, --token-ids, --interactive and --chat.
    """
    if sum((prompt is not None, token_ids is not None, interactive, chat)) != 1:
        raise click.UsageError("Give one of --prompt, --token-ids, --interactive and --chat.")
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat.")
    for option, given in (
        ("--logits", logits),
        ("--logprobs", request["logprobs"] is not None),
        ("--prompt-logprobs", request["prompt_logprobs"] is not None),
    ):
        if given and not as_json:
            raise click.UsageError(f"{option} needs --json.")
    for option, given in (("--interactive", interactive), ("--chat", chat)):
        if given and as_json:
            raise click.UsageError(f"{option} and --json cannot be combined.")
    if chat and click.get_current_context().get_parameter_source("max_tokens") is ParameterSource.DEFAULT:
        request["max_tokens"] = MAX_TOKENS
    require("torch", extra="worker")
    settings = load_settings()
    with readable_checkpoint_errors():
        from worker.local import LocalModel, LocalModelError

        try:
            model = LocalModel.load(
                checkpoint,
                settings.checkpoint_dir,
                needs_text=token_ids is None,
                device=device,
                threads=settings.threads,
                softcap=softcap or settings.softcap,
                weights=weights,
                compute=compute,
                prefill_chunk_tokens=settings.prefill_chunk_tokens,
                context=settings.context,
                prefix_cache=settings.prefix_cache == "on",
            )
            warn(model.warnings)
            sampling = options.sampling_of(request)
            if interactive:
                from celeriac.cli.prompt_loop import PromptLoop

                PromptLoop(model, sampling).run()
            elif chat:
                talk(model, sampling, system)
            else:
                decode(model, sampling, prompt=prompt, token_ids=token_ids, logits=logits, as_json=as_json)
        except LocalModelError as error:
            raise click.ClickException(str(error)) from error


def talk(model: LocalModel, sampling: SamplingParams, system: str | None) -> None:
    """Run a conversation. Raises ClickException if the checkpoint is not a chat model."""
    from celeriac.cli.chat.conversation import Conversation
    from celeriac.cli.chat.history import History
    from celeriac.cli.chat.local import LocalBackend

    if model.card.tokenizer.chat is None:
        raise click.ClickException(
            f"{model.card.name} is not a chat model: it has no chat template. `celeriac generate`, and `celeriac run` "
            "with --prompt or --interactive, continue texts with it."
        )
    Conversation(LocalBackend(model, sampling), History(system)).run()


def decode(
    model: LocalModel,
    sampling: SamplingParams,
    *,
    prompt: str | None,
    token_ids: tuple[int, ...] | None,
    logits: bool,
    as_json: bool,
) -> None:
    """Continue one prompt and print the result."""
    text = None if prompt is None else prompt_text(prompt)
    if text is not None:
        ids, warnings = model.encode(text)
        warn(warnings)
    else:
        ids = token_ids or ()
    if as_json:
        output = model.generate(ids, sampling, every_id=text is None, keep_prompt_logits=logits)
        print_json(json_object(output))
        return
    # The prompt is printed with the first piece of its continuation: until then it may turn out to be too long.
    unprinted = [text or ""]

    def print_piece(piece: str) -> None:
        print_text("".join((*unprinted, piece)))
        unprinted.clear()

    output = model.generate(ids, sampling, every_id=text is None, on_text=print_piece)
    print_piece(",".join(map(str, output.token_ids)) if output.text is None else "")
    click.echo()


def parse_ids(text: str | None) -> tuple[int, ...] | None:
    """Parse token ids separated by commas. Raises BadParameter."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of token ids such as 1,2,3") from None


def json_object(output: Completion) -> dict[str, Any]:
    """The object that `--json` prints."""
    fields: dict[str, Any] = {
        "prompt_ids": output.prompt_ids,
        "token_ids": output.token_ids,
        "text": output.text,
        "finish_reason": output.finish_reason.value,
        "seed": output.seed,
    }
    if output.stop_id is not None:
        fields["stop_id"] = output.stop_id
    for name, items in (("logprobs", output.logprobs), ("prompt_logprobs", output.prompt_logprobs)):
        if items is not None:
            fields[name] = [
                {**item.chosen._asdict(), "top": [alternative._asdict() for alternative in item.top]} for item in items
            ]
    if output.prompt_logits is not None:
        fields["last_logits"] = output.prompt_logits
    return fields
