"""`bench.fleet` reports the cost of every script, and what one Redis carries."""

from __future__ import annotations

from importlib.resources import files

import pytest

from tests.integration.bench.command import result_of

#: Scripts that are not part of the life of a job, of a worker or of a client that waits.
RARE = {"delete", "find", "reject", "release", "repair", "requeue", "retract", "schema"}


@pytest.mark.slow
def test_it_reports_every_script_and_the_load() -> None:
    result = result_of(
        "bench.fleet",
        *("--workers", "1,3", "--backlog", "400", "--rounds", "1", "--watched", "200"),
        timeout_s=300,
    )
    scripts = {row["script"].partition(",")[0] for row in result["rows"] if "script" in row}
    present = {
        path.name.removesuffix(".lua") for path in (files("tasks") / "lua").iterdir() if path.name.endswith(".lua")
    }
    assert scripts == present - RARE
    for row in result["rows"]:
        assert all(value > 0 for name, value in row.items() if name.startswith(("us, ", "processor", "jobs/s")))
    [watched] = [row["poll of watched jobs"] for row in result["rows"] if "poll of watched jobs" in row]
    assert watched == 200
