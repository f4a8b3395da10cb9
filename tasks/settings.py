"""Every setting of every role, read once from the environment (prefix `CELERIAC_`).

`docs/reference/settings.md` lists this class; a test holds the two against each other.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The settings. Times are in seconds, sizes say their unit."""

    model_config = SettingsConfigDict(env_prefix="CELERIAC_", extra="ignore", frozen=True)

    # Where things are
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis of jobs and Celery messages: redis://, rediss:// or unix:// (one primary, no Cluster).",
    )
    redis_timeout_s: float = Field(5.0, gt=0, description="How long a command may take until Redis counts as away.")
    checkpoint_dir: Path = Field(Path("checkpoints"), description="Folder in which a checkpoint's name is looked up.")

    data_dir: Path = Field(
        Path(".celeriac"), description="Where `celeriac serve` keeps the data of its Redis, one folder for each port."
    )

    redis_appendfsync: Literal["everysec", "always"] = Field(
        "everysec",
        description="When the Redis of `celeriac serve` has its file on the disk: within about a second, or before it "
        "answers (nothing accepted is lost even if the machine fails; each write waits for the disk).",
    )

    # The API
    default_checkpoint: str | None = Field(
        None, description="Checkpoint of a request without `model`. Unset: the only one served, else 422."
    )
    sync_wait_s: float = Field(
        120.0, gt=0, description="How long a synchronous call waits when the caller does not say how long."
    )
    max_wait_s: float = Field(600.0, gt=0, description="Longest wait that a caller may ask for with `Prefer: wait=N`.")
    long_poll_max_s: float = Field(60.0, gt=0, description="Longest `?wait=` of `GET /v1/jobs/{id}`.")
    generate_timeout_status: Literal[504, 202] = Field(
        504, description="Answer of a plain `POST /generate` whose wait is over: 504 with the job's URL, or 202."
    )
    cors_origins: list[str] = Field(["*"], description="Origins whose browsers may call the API (JSON list).")
    max_body_bytes: int = Field(1_048_576, gt=0, description="Largest request body; a larger one is answered 413.")
    bell_poll_s: float = Field(
        1.0,
        gt=0,
        description="Watched jobs are looked at this often even if no bell rang (pub/sub may lose one); streams tell "
        "their position as often.",
    )

    # The queue
    max_queued_jobs: int = Field(10_000, gt=0, description="Jobs that may wait for one checkpoint; then 429.")
    result_ttl_s: float = Field(86_400.0, gt=0, description="How long a finished job is kept.")
    idempotency_ttl_s: float = Field(
        86_400.0, gt=0, description="How long an `Idempotency-Key` is remembered after its job ended."
    )
    reap_every_s: float = Field(
        1.0, gt=0, description="How often lost jobs and messages are looked for, by all processes together."
    )
    reap_gap_s: float = Field(
        2.0, gt=0, description="When no process looked for so long, Redis was away: all leases are extended first."
    )
    dispatch_timeout_s: float = Field(
        10.0, gt=0, description="A message that brought no worker to claim its job for so long is pushed again."
    )

    # The worker
    checkpoint: str | None = Field(None, description="Checkpoint that the worker serves: a folder's path, or its name.")
    slots: int = Field(32, ge=1, le=1024, description="Sequences in one batch; also Celery's concurrency.")
    kv_memory_mb: int = Field(
        0,
        ge=0,
        description="Memory of the KV cache in MiB. 0: room for `slots` full contexts, at most a quarter of "
        "the device's memory.",
    )
    prefill_chunk_tokens: int = Field(256, ge=1, description="Prompt tokens that one engine step prefills at most.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the model runs.")
    threads: int = Field(
        0, ge=0, description="Compute threads of the engine process. 0: as many physical cores as pay."
    )
    softcap: float | None = Field(None, gt=0, description="Overrides the logit softcap of the checkpoint's era.")
    weights: Literal["exact", "int8"] = Field(
        "exact",
        description="`int8`: the weights are rounded to 8 bits, which takes a quarter of the memory and makes small "
        "batches faster; on a CPU alone. All workers of a checkpoint need the same.",
    )
    worker_name: str | None = Field(None, description="Name of this worker. Unset: `<checkpoint>-<random>@<host>`.")
    flush_interval_ms: int = Field(
        25,
        ge=0,
        description="Least time between two flushes of new tokens that somebody reads; others go a tenth as often, "
        "first and last at once.",
    )
    heartbeat_s: float = Field(1.0, gt=0, description="How often a worker says that it is alive.")
    worker_ttl_s: float = Field(5.0, gt=0, description="After this long without a heartbeat a worker counts as gone.")
    lease_s: float = Field(5.0, gt=0, description="How long a claim on a job holds without renewal.")
    health_file: Path | None = Field(
        None, description="File that the worker touches while it makes progress, for `python -m worker.health`."
    )
    engine_silence_s: float = Field(
        60.0,
        gt=0,
        description="An engine that finishes no step for so long hangs: it is killed, and its jobs are handed back.",
    )
    load_timeout_s: float = Field(600.0, gt=0, description="How long loading a checkpoint may take.")
    visibility_timeout_s: int = Field(
        120, ge=1, description="Celery's own redelivery of unacknowledged messages; it only tidies up here."
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: coloured lines on a terminal, JSON elsewhere."
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read at the first call."""
    return Settings()
