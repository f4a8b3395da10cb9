"""Names of all Redis keys and channels. No other file spells them: the scripts get them as the table `KEY`."""

PREFIX = "celeriac:"
#: Version of the layout of these keys. A process that finds another version in Redis stops: see `tasks.store.schema`.
SCHEMA_VERSION = 3

#: String: the version of the layout.
SCHEMA = f"{PREFIX}schema"
#: Zset: all jobs by creation time in ms, for listing.
JOBS = f"{PREFIX}jobs"
#: Zset: finished jobs by the time in ms at which their records expire, to remove them from the listing then.
EXPIRIES = f"{PREFIX}expiries"
#: Hash: times in ms for the reaper, `called_at`, `ran_at`, `extended_at` and `recounted_at`; and
#: `cursor`, the state of its scan of all keys.
REAPED = f"{PREFIX}reaped"
#: Zset: waiting jobs with a time limit, by the time in ms at which they may wait no longer.
TIMEOUTS = f"{PREFIX}timeouts"
#: No key has this name. A script that must write deletes it first: see `lua/prelude/memory.lua`.
NOTHING = f"{PREFIX}nothing"
#: String: bytes that the live jobs may still need together.
RESERVED = f"{PREFIX}reserved"
#: List: damaged records and keys that were found and not logged yet, as JSON.
DAMAGED = f"{PREFIX}damaged"
#: Hash and zset: messages that workers took and did not acknowledge. kombu keeps them under these names.
UNACKED = "unacked"
UNACKED_INDEX = "unacked_index"
#: Set: names of all checkpoints that a worker serves or has served, or for which jobs wait. The reaper works for them.
#: A checkpoint that is only offered is in `OFFERED` alone.
CHECKPOINTS = f"{PREFIX}checkpoints"
#: Zset: checkpoints for which jobs wait, by a time in ms at which none of these had been submitted yet, or just one.
WAITING = f"{PREFIX}waiting"
#: Zset: switching workers by the time in ms at which they count as gone.
SWITCHING = f"{PREFIX}switching"
#: Zset: checkpoints that switching workers offer, with the score `inf`, and those that they offered, by the time in ms
#: at which their cards are deleted.
OFFERED = f"{PREFIX}offered"
#: Hash: why a checkpoint is no longer offered, if its waiting jobs must fail for it: `removed` or `unloadable`.
RETRACTED = f"{PREFIX}retracted"
#: String: changes with every card, and with every change of what is offered.
CATALOG_VERSION = f"{PREFIX}catalog-version"


def job(job_id: str) -> str:
    """Hash: the record."""
    return f"{PREFIX}job:{job_id}"


def tokens(job_id: str) -> str:
    """Stream: the token log, entry ids `<tokens after this entry>-<k>`."""
    return f"{PREFIX}job:{job_id}:tokens"


def jobs_with(status: str) -> str:
    """Zset: jobs in one status by creation time in ms."""
    return f"{PREFIX}jobs:{status}"


def backlog(checkpoint: str) -> str:
    """Zset: waiting jobs in serving order."""
    return f"{PREFIX}backlog:{checkpoint}"


def dispatched(checkpoint: str) -> str:
    """Zset: jobs whose message was pushed to Celery's list and that are not claimed yet, in the order of that list."""
    return f"{PREFIX}dispatched:{checkpoint}"


def running(checkpoint: str) -> str:
    """Zset: running jobs by the time in ms at which their lease expires."""
    return f"{PREFIX}running:{checkpoint}"


def waiting_tokens(checkpoint: str) -> str:
    """String: number of tokens that the waiting jobs may still generate together."""
    return f"{PREFIX}waiting-tokens:{checkpoint}"


def pace(checkpoint: str) -> str:
    """Hash: averages of recent jobs, `first_token_ms`, `ms_per_token` and `share` (generated part of `max_tokens`).

    Of a checkpoint that a switching worker has loaded also `load_ms`, how long its last load took, and `left_at`, the
    time in ms at which a switching worker last gave it up for another one.
    """
    return f"{PREFIX}pace:{checkpoint}"


def accuracy(checkpoint: str) -> str:
    """List: ratios of real to predicted duration of the last jobs, newest first."""
    return f"{PREFIX}accuracy:{checkpoint}"


def workers(checkpoint: str) -> str:
    """Zset: workers of a checkpoint by the time in ms at which they count as gone."""
    return f"{PREFIX}workers:{checkpoint}"


def capacity(checkpoint: str) -> str:
    """Hash: what the workers of a checkpoint do, and their slots: see `lua/prelude/workers.lua`."""
    return f"{PREFIX}capacity:{checkpoint}"


def worker_jobs(name: str) -> str:
    """Set: running jobs of a worker."""
    return f"{PREFIX}worker-jobs:{name}"


def worker(name: str) -> str:
    """Hash: the last heartbeat of a live worker."""
    return f"{PREFIX}worker:{name}"


def switching_worker(name: str) -> str:
    """Hash: the last heartbeat of a live switching worker."""
    return f"{PREFIX}switching-worker:{name}"


def offers(name: str) -> str:
    """Hash: what a switching worker offers: `<bytes of memory that it needs> <bytes of weights> <digest>` of each."""
    return f"{PREFIX}offers:{name}"


def offering(checkpoint: str) -> str:
    """Set: switching workers that offer a checkpoint. One that is not in `SWITCHING`, or too old there, is gone."""
    return f"{PREFIX}offering:{checkpoint}"


def loading(checkpoint: str) -> str:
    """String: the switching worker that is about to load a checkpoint: see `lua/prelude/switching.lua`."""
    return f"{PREFIX}loading:{checkpoint}"


def card(checkpoint: str) -> str:
    """Hash: the fields `card` (JSON) and `digest`."""
    return f"{PREFIX}card:{checkpoint}"


def tokenizer(digest: str) -> str:
    """String: the tokenizer of the checkpoint with this digest, for front ends: see `api.jobs.tokenizers`."""
    return f"{PREFIX}tokenizer:{digest}"


def deleted(job_id: str) -> str:
    """String: exists for a while after a job was deleted, to distinguish its id from one that was never used."""
    return f"{PREFIX}deleted:{job_id}"


def idempotency(key_hash: str) -> str:
    """String: job id and fingerprint, separated by a space."""
    return f"{PREFIX}idempotency:{key_hash}"


def queue(checkpoint: str) -> str:
    """List: Celery's queue, which kombu keeps under this name."""
    return f"generate.{checkpoint}"


#: Channel that receives the name of a checkpoint that is offered and not served, when a job is submitted for it.
SWITCHING_CHANNEL = f"{PREFIX}wanted"


# The names of these channels contain "bell", an old word for a notification. Names in Redis are part of the layout, so
# they do not change with the words of the code.


def state_channel(job_id: str) -> str:
    """Channel that is notified when the state of a job changes."""
    return f"{PREFIX}bell:{job_id}:state"


def tokens_channel(job_id: str) -> str:
    """Channel that is notified when a job has new tokens."""
    return f"{PREFIX}bell:{job_id}:tokens"


def reply_channel(process: str) -> str:
    """Channel that receives the ids of ended jobs, for the API process that submitted them and waits for their end."""
    return f"{PREFIX}bell:api:{process}"


def worker_channel(name: str) -> str:
    """Channel that receives the ids of running jobs that a worker must stop."""
    return f"{PREFIX}bell:worker:{name}"
