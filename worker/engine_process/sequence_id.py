"""Ids of sequences in the engine: one for each attempt at a job.

Updates that the engine still sends for an earlier attempt can therefore not be mistaken for those of the current one.
"""

from __future__ import annotations


def sequence_id_of(job_id: str, attempt: int) -> str:
    """Id of the sequence that decodes an attempt at a job."""
    return f"{job_id}/{attempt}"


def job_id_of(sequence_id: str) -> str:
    """Id of the job that a sequence belongs to."""
    return sequence_id.rpartition("/")[0]
