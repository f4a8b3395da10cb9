"""Variables that would change Celery are removed, and only those."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest

from tasks.celery_app import make_app
from tasks.environment.foreign_variables import configures_celery, remove_celery_variables
from tasks.settings import Settings

#: How a Python file reads a variable with a constant name, and how click declares one.
_READS = re.compile(
    r"""(?:environ(?:\.get|\.setdefault|\.pop)?\s*[(\[]|getenv\(|_env\(|envvar=)\s*['"](\w+)['"]""", re.MULTILINE
)
#: Variables that these packages read, and that may change Celeriac's processes as well.
KEPT = {
    # About the terminal.
    *("NO_COLOR", "TERM", "ITERM_PROFILE"),
    # Celery sets it, and reads it nowhere.
    "celery_dummy_proxy",
    # Of Windows.
    "NUMBER_OF_PROCESSORS",
}
#: Parts of the packages that Celeriac does not run: tests, and transports other than Redis.
NOT_RUN = ("/contrib/", "/t/", "/testing/", "/transport/SLMQ.py", "/transport/gcpubsub.py", "/backends/")


def variables_of(package: str) -> set[str]:
    """The names of all variables that the files of an installed package read."""
    file = importlib.import_module(package).__file__
    assert file is not None
    folder = Path(file).parent
    files = [path for path in folder.rglob("*.py") if not any(part in path.as_posix() for part in NOT_RUN)]
    return {name for path in files for name in _READS.findall(path.read_text("utf-8"))}


@pytest.mark.parametrize("package", ["celery", "kombu", "billiard"])
def test_every_variable_that_a_package_reads_is_removed(package: str) -> None:
    names = variables_of(package)
    assert names, "no variable was found: the pattern of this test does not fit any more"
    assert {name for name in names if not configures_celery(name)} <= KEPT


@pytest.mark.parametrize(
    "name", ["CELERIAC_REDIS_URL", "PATH", "C_INCLUDE_PATH", "CC", "HOME", "NO_COLOR", *sorted(KEPT)]
)
def test_other_variables_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    remove_celery_variables()
    assert os.environ[name] == "1"


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_an_application_has_the_redis_of_its_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "redis://elsewhere:6379/9")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://elsewhere:6379/9")
    monkeypatch.setenv("CELERY_LOADER", "default")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "another_project.settings")
    app = make_app(Settings(redis_url="redis://here:6379/1"))
    urls = {app.conf.broker_url, app.conf.broker_read_url, app.conf.broker_write_url}
    assert urls == {"redis://here:6379/1"}
    assert app.conf.result_backend is None
    assert type(app.loader).__name__ == "AppLoader"
    assert app.fixups == []
