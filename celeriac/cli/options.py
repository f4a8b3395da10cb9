"""Command-line options that several commands share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tasks import sampling_params
from tasks.sampling_params import SAMPLING_FIELDS, Bounds, SamplingField, SamplingParams

if TYPE_CHECKING:
    from tasks.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8000"
_ALLOWED_HOSTS = "CELERIAC_ALLOWED_HOSTS"
DEVICES = ("auto", "cpu", "cuda", "mps")
#: Key of a context's `meta`: the values of `--checkpoint`.
_CHECKPOINT_OPTIONS = "celeriac.cli.options.checkpoint"


def url(command: F) -> F:
    """Add the URL of the server."""
    return click.option(
        "--url",
        envvar="CELERIAC_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=_checked_url,
        help="URL of the server.",
    )(command)


def as_json(command: F) -> F:
    """Add `--json`, for output that programs read."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def checkpoints(command: F) -> F:
    """Add the checkpoints to serve, as arguments and as `--checkpoint`. The command gets them as `checkpoints`."""
    options: tuple[Callable[[F], F], ...] = (
        click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, callback=_add_options),
        click.option(
            "--checkpoint",
            "checkpoint_options",
            metavar="CHECKPOINT",
            multiple=True,
            # Before the arguments, whose callback adds these.
            is_eager=True,
            expose_value=False,
            callback=_keep_options,
            help="The same as the argument.  [env: CELERIAC_CHECKPOINT]",
        ),
    )
    return _with(options, command)


def checkpoint_folder(command: F) -> F:
    """Add the folder whose checkpoints are loaded when jobs wait, and the memory for them."""
    options: tuple[Callable[[F], F], ...] = (
        click.option(
            "--checkpoints",
            "folder",
            metavar="FOLDER",
            help="Offer every checkpoint in this folder, and load one when jobs wait for it.  [env: "
            "CELERIAC_CHECKPOINTS]",
        ),
        click.option(
            "--memory-mb",
            type=click.IntRange(min=0),
            metavar="MB",
            help="With --checkpoints: memory for all that are loaded; 0: half of the device's.  [env: "
            "CELERIAC_MEMORY_MB]",
        ),
    )
    return _with(options, command)


def folder_of(settings: Settings, *, given: str | None, checkpoints: tuple[str, ...], names: bool) -> Path | None:
    """The folder of checkpoints to offer; None if the command serves checkpoints that are named. Raises UsageError.

    `given` and `checkpoints` are those of the command line, which come before those of the environment. `names`:
    whether the command line has names for checkpoints.
    """
    if given is not None and (checkpoints or names):
        raise click.UsageError("--checkpoints offers all checkpoints of a folder, under their own names: give only it.")
    if given is None and not checkpoints and settings.checkpoint is not None and settings.checkpoints is not None:
        raise click.UsageError("CELERIAC_CHECKPOINT and CELERIAC_CHECKPOINTS are both set: set one of them.")
    folder = None if checkpoints else settings.checkpoints if given is None else Path(given)
    if folder is not None and not folder.is_dir():
        raise click.UsageError(f"{folder} is no folder. --checkpoints is the folder that contains the checkpoints.")
    return folder


def checkpoint_of(settings: Settings) -> str:
    """The checkpoint of the settings, for a command that was given none. Raises UsageError, with a list, if unset."""
    if settings.checkpoint is None:
        from celeriac.cli.offers import offered

        raise click.UsageError(
            "Give the checkpoint to serve: the path of its folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of "
            "nanochat such as sft:d20. Or set CELERIAC_CHECKPOINT. --checkpoints FOLDER offers all in a folder.\n\n"
            f"{offered(settings.checkpoint_dir)}"
        )
    return settings.checkpoint


def device(command: F) -> F:
    """Add the device that runs the model."""
    return click.option(
        "--device",
        envvar="CELERIAC_DEVICE",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        show_envvar=True,
        help="Device that runs the model. auto: a GPU if there is one.",
    )(command)


def weights(command: F) -> F:
    """Add the format of the weights in memory."""
    return click.option(
        "--weights",
        envvar="CELERIAC_WEIGHTS",
        type=click.Choice(["exact", "bf16", "int8"]),
        default="exact",
        show_default=True,
        show_envvar=True,
        help="Weights in memory. exact: as in the checkpoint. bf16, int8: rounded to 16 or 8 bits, which is smaller "
        "and makes small batches faster; int8 only on a CPU.",
    )(command)


def compute(command: F) -> F:
    """Add how the model multiplies."""
    return click.option(
        "--compute",
        envvar="CELERIAC_COMPUTE",
        type=click.Choice(["exact", "fast"]),
        default="exact",
        show_default=True,
        show_envvar=True,
        help="fast: activations are rounded where weights are bf16 or int8, for faster instructions of processors that "
        "have them; only on a CPU.",
    )(command)


def listening(command: F) -> F:
    """Add the address of the API, `--root-path`, and `--reload` for developers."""
    options: tuple[Callable[[F], F], ...] = (
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address of the API.", callback=_add_allowed_host
        ),
        click.option(
            "--port",
            type=click.IntRange(1, 65535),
            default=8000,
            show_default=True,
            help="Port of the API.",
        ),
        click.option(
            "--root-path",
            metavar="PATH",
            help="Path under which a proxy serves the API, such as /llm.  [env: CELERIAC_ROOT_PATH]",
            expose_value=False,
            # The API reads its settings from the environment, also in another process.
            callback=_set_root_path,
        ),
        click.option("--reload", is_flag=True, help="Restart the API when its code changes (for development)."),
    )
    return _with(options, command)


def serving(command: F) -> F:
    """Add what `celeriac serve` has beside checkpoints: address, device, weights, compute, processes, data."""
    options: tuple[Callable[[F], F], ...] = (
        listening,
        device,
        weights,
        compute,
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Workers for each checkpoint, or for --checkpoints.",
        ),
        click.option(
            "--flower", is_flag=True, help="Also run Flower, the web monitor of Celery, for this machine only."
        ),
        click.option(
            "--flower-port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port of Flower."
        ),
        click.option(
            "--data-dir",
            type=click.Path(),
            help="Folder of the Redis data, with a subfolder for each port.  [env: CELERIAC_DATA_DIR; default: "
            ".celeriac]",
        ),
    )
    return _with(options, command)


def sampling(command: F) -> F:
    """Add the sampling fields. The command gets `max_tokens`, `temperature`, ... as keyword arguments."""
    return _with(tuple(_sampling_option(declared) for declared in SAMPLING_FIELDS), command)


def sampling_of_texts(command: F) -> F:
    """As `sampling`, for a command that shows texts alone: without the fields for log-probabilities."""
    shown = (one for one in SAMPLING_FIELDS if one.name not in ("logprobs", "prompt_logprobs"))
    return _with(tuple(_sampling_option(declared) for declared in shown), command)


def _sampling_option(declared: SamplingField) -> Callable[[F], F]:
    """The option of a sampling field, made from its declaration."""
    name = f"--{declared.name.replace('_', '-')}"
    match declared.type:
        case "bool":
            return click.option(name, is_flag=True, help=declared.description)
        case sampling_params.STRINGS:
            help_ = f"{declared.description} Repeat the option for each text."
            return click.option(name, multiple=True, metavar="TEXT", help=help_)
        case sampling_params.IDS:
            help_ = f"{declared.description} Repeat the option for each id."
            one_id = click.IntRange(0, sampling_params.MAX_TOKEN_ID)
            return click.option(
                name.removesuffix("s"),
                declared.name,
                type=one_id,
                multiple=True,
                metavar="ID",
                callback=_or_none,
                help=help_,
            )
        case sampling_params.BIASES:
            help_ = f"{declared.description} Repeat the option for each id."
            bounds = declared.bounds
            return click.option(
                name,
                multiple=True,
                metavar="ID=BIAS",
                callback=lambda *given: _parsed_biases(bounds, given[-1]),
                help=help_,
            )
        case _:
            type_ = _number_type(declared)
            return click.option(
                name, type=type_, default=declared.default, show_default=True, help=declared.description
            )


def _parsed_biases(bounds: Bounds, texts: tuple[str, ...]) -> dict[str, float] | None:
    """Biases written as 42=-1.5 as an object of JSON; None if there are none. If an id is given twice, the last counts.

    Raises BadParameter.
    """
    biases: dict[str, float] = {}
    for text in texts:
        token_id, _, bias = text.partition("=")
        try:
            biases[token_id] = float(bias)
            possible = bounds.contain(sampling_params.biases_of({token_id: float(bias)}))
        except ValueError:
            possible = False
        if not possible:
            raise click.BadParameter(
                f"{text!r} is not a token id and a bias between {bounds.item_ge:g} and {bounds.item_le:g}, such as "
                "42=-1.5"
            )
    return biases or None


def _or_none(_: click.Context, __: click.Parameter, values: tuple[int, ...]) -> tuple[int, ...] | None:
    return values or None


def sampling_of(request: Mapping[str, Any]) -> SamplingParams:
    """The sampling fields of a command, as it gets them from the options of `sampling`."""
    given = {one.name: request[one.name] for one in SAMPLING_FIELDS if request[one.name] is not None}
    biases = {one.name for one in SAMPLING_FIELDS if one.type == sampling_params.BIASES} & given.keys()
    return SamplingParams(**{**given, **{name: sampling_params.biases_of(given[name]) for name in biases}})


def _number_type(declared: SamplingField) -> click.IntRange | click.FloatRange:
    """The type of a numeric option, with the bounds of its field."""
    bounds = declared.bounds
    low = bounds.ge if bounds.gt is None else bounds.gt
    high = bounds.le if bounds.lt is None else bounds.lt
    min_open, max_open = bounds.gt is not None, bounds.lt is not None
    match declared.type:
        case "int" | "int | None":
            whole_low, whole_high = (None if bound is None else int(bound) for bound in (low, high))
            return click.IntRange(whole_low, whole_high, min_open=min_open, max_open=max_open)
        case "float" | "float | None":
            return click.FloatRange(low, high, min_open=min_open, max_open=max_open)
        case _:
            raise TypeError(f"no command-line option for a sampling field of type {declared.type}")


def limits(command: F) -> F:
    """Add the limits of a job. The command gets `deadline_s`, ... as keyword arguments."""
    seconds = click.FloatRange(min=0.0, min_open=True)
    options: tuple[Callable[[F], F], ...] = (
        click.option(
            "--deadline",
            "deadline_s",
            type=seconds,
            metavar="SECONDS",
            help="Stop the job if it has not ended after this time.",
        ),
        click.option(
            "--queue-timeout",
            "queue_timeout_s",
            type=seconds,
            metavar="SECONDS",
            help="Let the job expire if it has not started after this time.",
        ),
        click.option(
            "--run-timeout",
            "run_timeout_s",
            type=seconds,
            metavar="SECONDS",
            help="Stop the job when it has run for this time, in all attempts together.",
        ),
        click.option(
            "--max-queue-position",
            type=click.IntRange(min=0),
            metavar="N",
            help="Refuse the job if more jobs than this are ahead of it.",
        ),
    )
    return _with(options, command)


def generating(command: F) -> F:
    """Add the server and the checkpoint that generate."""
    command = url(command)
    return click.option("--model", help="Checkpoint to use, if the server serves several.")(command)


def _with(options: tuple[Callable[[F], F], ...], command: F) -> F:
    """Add options to a command, in the order in which its help shows them."""
    for option in reversed(options):
        command = option(command)
    return command


def _keep_options(context: click.Context, _: click.Parameter, given: tuple[str, ...]) -> None:
    context.meta[_CHECKPOINT_OPTIONS] = given


def _add_options(context: click.Context, _: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    return (*given, *context.meta[_CHECKPOINT_OPTIONS])


def _set_root_path(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ["CELERIAC_ROOT_PATH"] = value


def _add_allowed_host(_: click.Context, __: click.Parameter, value: str) -> str:
    """The name of the address on which the API listens is a name by which it may be called."""
    given = os.environ.get(_ALLOWED_HOSTS) or "[]"
    if re.fullmatch(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*", value) and not value.replace(".", "").isdigit():
        # A value that is no list is reported when the settings are read.
        with suppress(ValueError, TypeError):
            os.environ[_ALLOWED_HOSTS] = json.dumps([*json.loads(given), value])
    return value


def _checked_url(_: click.Context, __: click.Parameter, value: str) -> str:
    from celeriac.client.environment import checked_url

    try:
        checked_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value
