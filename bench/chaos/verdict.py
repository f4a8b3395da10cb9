"""The verdict on every accepted job: it is over, once, and its text is that of an undisturbed run, also
for who read along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.chaos.clients import Ordered
from bench.chaos.follow import Followed
from bench.processes import ROOT
from bench.undisturbed import Comparison, Undisturbed, Written
from tasks.job import ErrorCode, Job, Status
from tasks.store.scripts import LIMITS
from tasks.token_log import TokenLog


@dataclass
class Verdict:
    """Jobs by what is wrong with them, and the reasons."""

    #: They never ended, are not there any more, or failed without having lost a worker too often.
    lost: set[str] = field(default_factory=set)
    #: A token stands twice in the log, or a job has two results, or one request made two jobs.
    duplicated: set[str] = field(default_factory=set)
    #: The log has a hole, or the text is another than the log's or than that of an undisturbed run.
    mismatched: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    #: Jobs by the status in which they ended.
    statuses: Counter[str] = field(default_factory=Counter)
    #: Jobs that were taken up again, and differences from an undisturbed run that are proven near ties.
    resumed: int = 0
    near_ties: int = 0
    #: Jobs that a customer read along, and how often one of these streams went on behind a break.
    streams: int = 0
    reconnects: int = 0

    @property
    def spotless(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.mismatched)

    def blame(self, jobs: set[str], job_id: str, reason: str) -> None:
        """Enter a job that something is wrong with."""
        jobs.add(job_id)
        self.reasons.append(f"{job_id}: {reason}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What Redis holds of a job in the end."""

    job: Job | None
    log: TokenLog


def judge(orders: Sequence[Ordered], evidence: Mapping[str, Evidence], known: Sequence[str]) -> Verdict:
    """Judge every job of `orders`. `known` are the ids of all jobs in Redis."""
    verdict = Verdict()
    for job_id in set(known) - {order.id for order in orders}:
        verdict.blame(verdict.duplicated, job_id, "it is there, and nobody was told of it")
    over: dict[str, list[tuple[Job, TokenLog]]] = {}
    for order in orders:
        found = evidence[order.id]
        if found.job is None or order.gone:
            verdict.blame(verdict.lost, order.id, "its record is not there any more")
        elif not found.job.status.terminal:
            verdict.blame(verdict.lost, order.id, f"it is {found.job.status} after {found.job.tokens} tokens")
        else:
            verdict.statuses[found.job.status.value] += 1
            verdict.resumed += found.job.attempt > 1
            _judge_end(verdict, order, found.job)
            _judge_log(verdict, found.job, found.log)
            if order.followed is not None:
                _judge_stream(verdict, found.job, order.followed)
            over.setdefault(found.job.checkpoint, []).append((found.job, found.log))
    for checkpoint, jobs in over.items():
        right = Undisturbed(checkpoint, ROOT / "checkpoints", threads=1)
        for (job, _), comparison in zip(jobs, right.compare([_written(*one) for one in jobs]), strict=True):
            _judge_text(verdict, job, comparison)
    return verdict


def _judge_end(verdict: Verdict, order: Ordered, job: Job) -> None:
    """One result, and a reason for it."""
    if order.final is not None and order.final != job:
        verdict.blame(verdict.duplicated, job.id, f"its record changed after its end, from {order.final} to {job}")
    if order.shrank:
        verdict.blame(verdict.mismatched, job.id, "tokens that were there vanished")
    if job.status is Status.SUCCEEDED or (job.status is Status.CANCELLED and order.cancelled):
        return
    often = job.losses_in_a_row >= LIMITS["MAX_LOSSES_IN_A_ROW"] or job.losses >= LIMITS["MAX_LOSSES"]
    if job.error is None or job.error.code is not ErrorCode.WORKER_LOST or not often:
        verdict.blame(verdict.lost, job.id, f"it is {job.status} after {job.losses} losses: {job.error}")


def _judge_log(verdict: Verdict, job: Job, log: TokenLog) -> None:
    """Each token once, each attempt once, and the text that the record has."""
    end = 0
    for entry in log.entries:
        if entry.before < end:
            verdict.blame(verdict.duplicated, job.id, f"entry {entry.id} begins at {entry.before}, before {end}")
        elif entry.before > end:
            verdict.blame(verdict.mismatched, job.id, f"entry {entry.id} begins at {entry.before}, behind {end}")
        end = entry.after
    attempts = [entry.attempt for entry in log.entries if entry.attempt is not None]
    if attempts != list(range(2, job.attempt + 1)):
        verdict.blame(verdict.mismatched, job.id, f"its log tells of attempts {attempts}, its record of {job.attempt}")
    if job.tokens != len(log.token_ids):
        verdict.blame(verdict.mismatched, job.id, f"{job.tokens} tokens in its record, {len(log.token_ids)} in its log")
    if log.text != job.completion:
        verdict.blame(verdict.mismatched, job.id, f"log {log.text!r}, completion {job.completion!r}")


def _judge_stream(verdict: Verdict, job: Job, followed: Followed) -> None:
    """Each token once, in order, over every break."""
    verdict.streams += 1
    verdict.reconnects += max(0, followed.connections - 1)
    for reason in followed.repeated:
        verdict.blame(verdict.duplicated, job.id, f"stream: {reason}")
    for reason in [*followed.skipped, *followed.odd]:
        verdict.blame(verdict.mismatched, job.id, f"stream: {reason}")
    if followed.done is None:
        verdict.blame(verdict.lost, job.id, "its stream never ended")
    elif (followed.tokens, followed.text) != (job.tokens, job.completion):
        verdict.blame(verdict.mismatched, job.id, f"stream: {followed.tokens} tokens, {followed.text!r}; record: {job}")


def _judge_text(verdict: Verdict, job: Job, comparison: Comparison) -> None:
    verdict.near_ties += comparison.near_ties
    if comparison.difference is not None:
        verdict.blame(verdict.mismatched, job.id, comparison.difference)
    if comparison.text != job.completion:
        verdict.blame(verdict.mismatched, job.id, f"tokens {comparison.text!r}, completion {job.completion!r}")


def _written(job: Job, log: TokenLog) -> Written:
    reason = job.finish_reason if job.status is Status.SUCCEEDED else None
    return Written(job.generation, log.token_ids, None if reason is None else reason.value)
