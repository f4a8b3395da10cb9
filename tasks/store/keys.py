"""The only place that spells Redis keys and channels. Lua scripts get every key from here or build it from `PREFIX`."""

PREFIX = "celeriac:"
#: Version of the layout of these keys; a process that finds another one in Redis stops (see `tasks.store.schema`).
SCHEMA_VERSION = 2

SCHEMA = f"{PREFIX}schema"
#: zset of all jobs by creation time in ms, for listing.
JOBS = f"{PREFIX}jobs"
#: zset of finished jobs by the ms at which they are forgotten, so that the listing forgets them too.
EXPIRIES = f"{PREFIX}expiries"
#: Hash of the times in ms that the reaper goes by: `called_at`, `ran_at`, `extended_at`.
REAPED = f"{PREFIX}reaped"
#: zset of waiting jobs that have a limit in time, by the ms at which it is over.
TIMEOUTS = f"{PREFIX}timeouts"
#: set of the names of all checkpoints that ever published a card.
CHECKPOINTS = f"{PREFIX}checkpoints"


def job(job_id: str) -> str:
    """Hash: the record."""
    return f"{PREFIX}job:{job_id}"


def tokens(job_id: str) -> str:
    """Stream: the token log, entry ids `<tokens after this entry>-<k>`."""
    return f"{PREFIX}job:{job_id}:tokens"


def jobs_with(status: str) -> str:
    """Zset of the jobs in one status by creation time in ms."""
    return f"{PREFIX}jobs:{status}"


def backlog(checkpoint: str) -> str:
    """Zset of waiting jobs in serving order."""
    return f"{PREFIX}backlog:{checkpoint}"


def dispatched(checkpoint: str) -> str:
    """Zset of jobs whose message is on Celery's list, in the order of that list."""
    return f"{PREFIX}dispatched:{checkpoint}"


def running(checkpoint: str) -> str:
    """Zset of running jobs by the end of their lease in ms."""
    return f"{PREFIX}running:{checkpoint}"


def waiting_tokens(checkpoint: str) -> str:
    """String: tokens that the waiting jobs may still generate, in all."""
    return f"{PREFIX}waiting-tokens:{checkpoint}"


def pace(checkpoint: str) -> str:
    """Hash: how jobs went of late; `first_token_ms`, `ms_per_token`, `share` (of `max_tokens` that they generated)."""
    return f"{PREFIX}pace:{checkpoint}"


def accuracy(checkpoint: str) -> str:
    """List: real over predicted duration of the last jobs, the newest first."""
    return f"{PREFIX}accuracy:{checkpoint}"


def workers(checkpoint: str) -> str:
    """Zset of the workers of a checkpoint by the ms at which they count as gone."""
    return f"{PREFIX}workers:{checkpoint}"


def worker(name: str) -> str:
    """Hash: what one live worker is and does."""
    return f"{PREFIX}worker:{name}"


def card(checkpoint: str) -> str:
    """Hash with the fields `card` (JSON) and `digest`."""
    return f"{PREFIX}card:{checkpoint}"


def deleted(job_id: str) -> str:
    """String: a job was deleted, and its id is none that never was."""
    return f"{PREFIX}deleted:{job_id}"


def idempotency(key_hash: str) -> str:
    """String: job id and fingerprint, separated by a space."""
    return f"{PREFIX}idempotency:{key_hash}"


def queue(checkpoint: str) -> str:
    """Celery's queue, which is a Redis list of this very name."""
    return f"generate.{checkpoint}"


def state_channel(job_id: str) -> str:
    """Channel that rings when the state of a job changes."""
    return f"{PREFIX}bell:{job_id}:state"


def tokens_channel(job_id: str) -> str:
    """Channel that rings when a job has new tokens."""
    return f"{PREFIX}bell:{job_id}:tokens"


def reply_channel(process: str) -> str:
    """Channel on which an API process hears the ids of jobs that are over, of those that it submitted and waits for."""
    return f"{PREFIX}bell:api:{process}"


def worker_channel(name: str) -> str:
    """Channel on which a worker hears the ids of its jobs that were asked to stop."""
    return f"{PREFIX}bell:worker:{name}"
