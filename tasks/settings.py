"""The settings of all roles, read once from the environment (prefix `CELERIAC_`).

`docs/reference/settings.md` lists them; a test compares it with this class.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from tasks.checkpoint_name import RULE, is_checkpoint_name
from tasks.errors import ConfigurationError
from tasks.time_rules import broken_rules, variable

#: What the environment variable of each setting begins with.
PREFIX = "CELERIAC_"

#: First parts of the API's own paths. With one of them as `root_path`, `/v1/jobs` could mean `/jobs` behind a prefix.
API_PATHS = (
    "detokenize",
    "docs",
    "generate",
    "health",
    "info",
    "openapi.json",
    "redoc",
    "tokenize",
    "tokenizer_info",
    "v1",
)
_ROOT_PATH = re.compile(
    rf"(?!/(?:{'|'.join(map(re.escape, API_PATHS))})(?:/|$))(?:/(?!\.{{1,2}}(?:/|$))[A-Za-z0-9._~-]+)*"
)
#: `https://app.example.com` or `http://10.0.0.7:3000`: what a browser sends as `Origin`.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
#: A name, `*.` with a domain, or `*`.
_HOST_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\*")


def is_root_path(path: str) -> bool:
    """Whether `path` is empty or a path such as `/llm`, under which the API can be served."""
    return _ROOT_PATH.fullmatch(path) is not None


#: Longest time in seconds: ten years. Timers of the operating system do not take much longer ones.
MAX_TIME_S = 315_360_000
#: A time in seconds. The scripts count in milliseconds.
Seconds = Annotated[float, Field(ge=0.001, le=MAX_TIME_S, allow_inf_nan=False)]


class Settings(BaseSettings):
    """All settings. A name that ends in a unit gives the unit of the value. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # A value may be a URL with a password.
        hide_input_in_errors=True,
    )

    # Addresses and folders
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis for jobs and Celery messages, as a URL: redis://, rediss:// or unix:// (one primary, no "
        "Cluster).",
    )
    redis_timeout_s: Seconds = Field(
        5.0, description="How long a Redis command may take. After that, Redis counts as away."
    )
    checkpoint_dir: Path = Field(
        Path("checkpoints"), description="Folder that contains the checkpoints, for checkpoints given by name."
    )

    data_dir: Path = Field(
        Path(".celeriac"),
        description="Data folder for the Redis of `celeriac serve`, with one subfolder per port.",
    )

    redis_appendfsync: Literal["everysec", "always"] = Field(
        "everysec",
        description="When the Redis of `celeriac serve` writes its file to disk. `everysec`: within about a second. "
        "`always`: before it replies, so that no accepted job is lost even if the machine fails, but each write waits "
        "for the disk.",
    )

    redis_maxmemory_mb: int = Field(
        0,
        ge=0,
        description="Most memory in MiB for the jobs in the Redis of `celeriac serve`. 0: a quarter of this machine's "
        "memory. New jobs get status 429 before it is full.",
    )

    # The API
    default_checkpoint: str | None = Field(
        None,
        description="Name of the checkpoint for requests without `model`. Unset: the only one that is served, or "
        "status 422.",
    )
    sync_wait_s: Seconds = Field(120.0, description="How long a synchronous call waits if the caller sets no time.")
    max_wait_s: Seconds = Field(600.0, description="Longest wait that a caller can set with `Prefer: wait=N`.")
    long_poll_max_s: Seconds = Field(60.0, description="Longest `?wait=` of `GET /v1/jobs/{id}`.")
    generate_timeout_status: Literal[504, 202] = Field(
        504,
        description="Status if the wait of a `POST /generate` ends before the job: 504 with the job's URL, or 202.",
    )
    cors_origins: list[str] | None = Field(
        None,
        description="Origins of web pages that may call the API (JSON list), such as `https://app.example.com`; `*` "
        "for any. Unset: pages of this machine (localhost, any port). Pages of the server itself always may.",
    )
    allowed_hosts: list[str] = Field(
        [],
        description="Names of this server in URLs (JSON list), such as `llm.example.com`, `*.example.com`, or `*` for "
        "any. IP addresses, localhost and this machine's own names are always allowed. A request for another host gets "
        "status 421.",
    )
    root_path: str | None = Field(
        None,
        description="Path under which a proxy serves the API, such as `/llm`. The URLs in answers begin with it. The "
        "proxy may remove it from requests or leave it there.",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=MAX_TIME_S,
        description="How long the API keeps an idle connection open. It must be longer than a proxy keeps its idle "
        "connections to the API (often 60 s), or some requests get status 502.",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="Most connections of one `celeriac api`. Above it, the oldest one without a request in progress is "
        "closed; if there is none, new ones get status 503, except for health checks.",
    )
    request_timeout_s: Seconds = Field(
        30.0,
        description="How long a client of `celeriac api` may take to send the headers of a request, and again to send "
        "its body. After that it gets status 408.",
    )
    max_body_bytes: int = Field(1_048_576, gt=0, description="Largest request body. A larger one gets status 413.")
    bell_poll_s: Seconds = Field(
        1.0,
        description="How often the API checks the jobs that clients wait for, even if it receives no notification "
        "(pub/sub may lose one). Streams report the position of a waiting job this often. With more than 5,000 such "
        "jobs in one process, they are checked less often.",
    )

    # The queue
    max_queued_jobs: int = Field(
        10_000, gt=0, description="Most jobs that may wait for one checkpoint. Further requests get status 429."
    )
    result_ttl_s: Seconds = Field(86_400.0, description="How long a finished job is kept.")
    idempotency_ttl_s: Seconds = Field(
        86_400.0, description="How long an `Idempotency-Key` is kept after its job has ended."
    )
    reap_every_s: Seconds = Field(
        1.0, description="How often the reaper searches for lost jobs and messages, in all processes together."
    )
    reap_gap_s: Seconds = Field(
        2.0,
        description="If no process calls the reaper for this long, Redis was away: all leases are extended.",
    )
    dispatch_timeout_s: Seconds = Field(
        10.0, description="If no worker claims a dispatched job for this long, its message is pushed again."
    )

    # The worker
    checkpoint: str | None = Field(
        None,
        description="Checkpoint that the worker serves: the path of its folder, or its name. `@` and a step may "
        "follow, as in `d4@650`.",
    )
    checkpoint_name: str | None = Field(
        None,
        description="Name by which clients request the worker's checkpoint. Unset: made from its folder's name, the "
        "stage of training, and the step if one is given.",
    )
    checkpoints: Path | None = Field(
        None,
        description="Folder of checkpoints, in place of one `CELERIAC_CHECKPOINT`: the worker loads a checkpoint of "
        "this folder when jobs wait for it. It may be nanochat's own folder. What is written to it later is found.",
    )
    memory_mb: int = Field(
        0,
        ge=0,
        description="Memory in MiB for all checkpoints that a worker with `CELERIAC_CHECKPOINTS` has loaded, with "
        "their KV caches. One can always be loaded. 0: half of the device's memory.",
    )
    slots: int = Field(32, ge=1, le=1024, description="Most jobs in one batch; also Celery's concurrency.")
    kv_memory_mb: int = Field(
        0,
        ge=0,
        description="Size of the KV cache in MiB. 0: room for `slots` full contexts, but at most a quarter of the "
        "device's memory.",
    )
    context: int = Field(
        0,
        ge=0,
        description="Longest sequence in tokens, prompt and answer together, if a checkpoint's own context is longer: "
        "one of 131,072 tokens needs gigabytes in the KV cache. 0: the checkpoint's, or what fits into the KV cache. "
        "All workers of a checkpoint must have the same value.",
    )
    prefill_chunk_tokens: int = Field(256, ge=1, description="Most prompt tokens that one engine step processes.")
    prefix_cache: Literal["on", "off"] = Field(
        "on",
        description="`on`: equal beginnings of one client's prompts are computed once, and those of ended texts stay "
        "in the KV cache until their memory is needed. `off`: every prompt is computed.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Device on which the model runs.")
    threads: int = Field(
        0, ge=0, description="Compute threads of the engine process. 0: as many physical cores as make it faster."
    )
    softcap: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Logit softcap, instead of that of the checkpoint's era."
    )
    weights: Literal["exact", "bf16", "int8"] = Field(
        "exact",
        description="Form of the weights in memory. `exact`: as in the checkpoint. `bf16`: rounded to 16 bits. `int8`: "
        "rounded to 8 bits; only on a CPU. Both need less memory and make small batches faster. All workers of a "
        "checkpoint must have the same value.",
    )
    compute: Literal["exact", "fast"] = Field(
        "exact",
        description="`fast`: activations are rounded where the weights are in bf16 or int8, so that processors with "
        "instructions for it multiply many rows faster; only on a CPU. All workers of a checkpoint must have the same "
        "value.",
    )
    worker_name: str | None = Field(None, description="Name of this worker. Unset: `<checkpoint>-<random>@<host>`.")
    flush_interval_ms: int = Field(
        25,
        ge=0,
        description="Shortest time between two flushes of new tokens that a client streams. Other tokens are flushed a "
        "tenth as often; the first and the last token of a job at once.",
    )
    heartbeat_s: Seconds = Field(1.0, description="How often a worker sends a heartbeat.")
    worker_ttl_s: Seconds = Field(5.0, description="A worker counts as gone after this long without a heartbeat.")
    lease_s: Seconds = Field(5.0, description="How long a worker holds a claimed job without renewing its lease.")
    health_file: Path | None = Field(
        None, description="File that the worker touches while it makes progress. `python -m worker.health` checks it."
    )
    engine_silence_s: Seconds = Field(
        60.0,
        description="If the engine finishes no step for this long, it hangs: it is killed, and its jobs are released.",
    )
    load_timeout_s: Seconds = Field(600.0, description="How long loading a checkpoint may take.")
    visibility_timeout_s: int = Field(
        120,
        ge=1,
        le=MAX_TIME_S,
        description="When Celery redelivers unacknowledged messages. Celeriac does not depend on it.",
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: coloured lines on a terminal, JSON otherwise."
    )

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str | None) -> str | None:
        if value is not None and not is_root_path(value):
            raise ValueError(
                f"{value!r} is not a path such as /llm. It begins with a slash and does not end with one, and its "
                f"first part is none of {', '.join(API_PATHS)}"
            )
        return value

    @field_validator("default_checkpoint", "checkpoint_name")
    @classmethod
    def _check_checkpoint_name(cls, value: str | None) -> str | None:
        if value is not None and not is_checkpoint_name(value):
            raise ValueError(
                f"{value!r} cannot be a checkpoint's name, which is {RULE}. It is not the path of a folder: `celeriac "
                "inspect` prints the name of a checkpoint"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: list[str] | None) -> list[str] | None:
        for origin in value or ():
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin such as https://app.example.com: a scheme, a host in lower case and "
                    "perhaps a port, without a path or a slash at the end"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        for host in value:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a name such as llm.example.com or *.example.com: without a scheme and a port"
                )
        return value

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if problems := list(broken_rules(self.model_dump(), self.model_fields_set)):
            raise ValueError("; ".join(problems))
        return self


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read at the first call. Raises ConfigurationError."""
    try:
        return Settings()
    except ValidationError as error:
        problems = []
        for one in error.errors(include_url=False):
            # An error of the whole, from `_check_times`, names its settings itself.
            if one["loc"]:
                problems.append(f"{variable(str(one['loc'][0]))}: {one['msg']}")
            else:
                problems.append(str(one["ctx"]["error"]))
        raise ConfigurationError("; ".join(problems)) from error
    except SettingsError as error:
        raise ConfigurationError(f"A CELERIAC_* variable cannot be read: {error}") from error
