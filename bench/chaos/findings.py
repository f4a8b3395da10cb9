"""Checks every accepted job: it has ended, exactly once, and its text and its stream equal an undisturbed run's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.chaos.clients import AcceptedJob
from bench.chaos.stream_reader import StreamRecord
from bench.processes import ROOT
from bench.undisturbed import Comparison, Undisturbed, Written
from tasks.job import ErrorCode, Job, Status
from tasks.store.scripts import LIMITS
from tasks.token_log import TokenLog


@dataclass
class Findings:
    """Ids of jobs with faults, the reasons, and counts of all checked jobs."""

    #: The job never ended, its record is gone, or it failed without having lost its worker too often.
    lost: set[str] = field(default_factory=set)
    #: A token is in the log twice, a job has two results, or one request made two jobs.
    duplicated: set[str] = field(default_factory=set)
    #: The log has a gap, or the text differs from the log's or from that of an undisturbed run.
    mismatched: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    #: Number of jobs by their last status.
    statuses: Counter[str] = field(default_factory=Counter)
    #: Number of jobs with more than one attempt.
    resumed: int = 0
    #: Number of differences from undisturbed runs that are proven near ties.
    near_ties: int = 0
    #: Number of jobs whose stream a client read, and of reconnections to these streams.
    streams: int = 0
    reconnects: int = 0

    @property
    def passed(self) -> bool:
        """Whether no job has a fault."""
        return not (self.lost or self.duplicated or self.mismatched)

    def add(self, jobs: set[str], job_id: str, reason: str) -> None:
        """Add a job to one of the three sets of this object, with the reason."""
        jobs.add(job_id)
        self.reasons.append(f"{job_id}: {reason}")


@dataclass(frozen=True, slots=True)
class StoredJob:
    """The record and the token log of a job in Redis after the experiment."""

    record: Job | None
    log: TokenLog


def check_jobs(accepted: Sequence[AcceptedJob], stored: Mapping[str, StoredJob], known: Sequence[str]) -> Findings:
    """Check every accepted job. `stored` has each of them by id; `known` are the ids of all jobs in Redis."""
    findings = Findings()
    for job_id in set(known) - {job.id for job in accepted}:
        findings.add(findings.duplicated, job_id, "the job exists, but no client got its id")
    ended: dict[str, list[tuple[Job, TokenLog]]] = {}
    for job in accepted:
        record, log = stored[job.id].record, stored[job.id].log
        if record is None or job.gone:
            findings.add(findings.lost, job.id, "its record is gone")
        elif not record.status.terminal:
            findings.add(findings.lost, job.id, f"it is {record.status} after {record.tokens} tokens")
        else:
            findings.statuses[record.status.value] += 1
            findings.resumed += record.attempt > 1
            _check_end(findings, job, record)
            _check_log(findings, record, log)
            if job.stream is not None:
                _check_stream(findings, record, job.stream)
            ended.setdefault(record.checkpoint, []).append((record, log))
    for checkpoint, jobs in ended.items():
        undisturbed = Undisturbed(checkpoint, ROOT / "checkpoints", threads=1)
        comparisons = undisturbed.compare([_written(record, log) for record, log in jobs])
        for (record, _), comparison in zip(jobs, comparisons, strict=True):
            _check_text(findings, record, comparison)
    return findings


def _check_end(findings: Findings, job: AcceptedJob, record: Job) -> None:
    """Check that the job has one result, and a valid reason for its end."""
    if job.final is not None and job.final != record:
        findings.add(findings.duplicated, job.id, f"its record changed after its end, from {job.final} to {record}")
    if job.shrank:
        findings.add(findings.mismatched, job.id, "its record lost tokens")
    if record.status is Status.SUCCEEDED or (record.status is Status.CANCELLED and job.cancelled):
        return
    often = record.losses_in_a_row >= LIMITS["MAX_LOSSES_IN_A_ROW"] or record.losses >= LIMITS["MAX_LOSSES"]
    if record.error is None or record.error.code is not ErrorCode.WORKER_LOST or not often:
        findings.add(findings.lost, job.id, f"it is {record.status} after {record.losses} losses: {record.error}")


def _check_log(findings: Findings, record: Job, log: TokenLog) -> None:
    """Check that the log has each token and each attempt once, and the text of the record."""
    end = 0
    for entry in log.entries:
        if entry.before != end:
            jobs = findings.duplicated if entry.before < end else findings.mismatched
            findings.add(jobs, record.id, f"entry {entry.id} begins at {entry.before}, expected {end}")
        end = entry.after
    attempts = [entry.attempt for entry in log.entries if entry.attempt is not None]
    if attempts != list(range(2, record.attempt + 1)):
        findings.add(
            findings.mismatched, record.id, f"its log has attempts {attempts}, its record attempt {record.attempt}"
        )
    if record.tokens != len(log.token_ids):
        findings.add(
            findings.mismatched, record.id, f"its record has {record.tokens} tokens, its log {len(log.token_ids)}"
        )
    if log.text != record.completion:
        findings.add(findings.mismatched, record.id, f"log {log.text!r}, completion {record.completion!r}")


def _check_stream(findings: Findings, record: Job, stream: StreamRecord) -> None:
    """Check that the stream had each token once, in order, over all connections."""
    findings.streams += 1
    findings.reconnects += max(0, stream.connections - 1)
    for reason in stream.repeated:
        findings.add(findings.duplicated, record.id, f"stream: {reason}")
    for reason in [*stream.skipped, *stream.unexpected]:
        findings.add(findings.mismatched, record.id, f"stream: {reason}")
    if stream.done is None:
        findings.add(findings.lost, record.id, "its stream never ended")
    elif (stream.tokens, stream.text) != (record.tokens, record.completion):
        findings.add(
            findings.mismatched, record.id, f"stream: {stream.tokens} tokens, {stream.text!r}; record: {record}"
        )


def _check_text(findings: Findings, record: Job, comparison: Comparison) -> None:
    """Check the text, and that its tokens are those of an undisturbed run."""
    findings.near_ties += comparison.near_ties
    if comparison.difference is not None:
        findings.add(findings.mismatched, record.id, comparison.difference)
    if comparison.text != record.completion:
        findings.add(findings.mismatched, record.id, f"tokens {comparison.text!r}, completion {record.completion!r}")


def _written(record: Job, log: TokenLog) -> Written:
    # The text of a job that did not succeed may be only the beginning of an undisturbed one.
    reason = record.finish_reason if record.status is Status.SUCCEEDED else None
    return Written(record.generation, log.token_ids, reason)
