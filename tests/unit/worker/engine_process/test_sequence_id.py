"""Ids of sequences in the engine."""

from worker.engine_process.sequence_id import job_id_of, sequence_id_of


def test_a_sequence_id_leads_back_to_its_job() -> None:
    assert job_id_of(sequence_id_of("job_1", 12)) == "job_1"
