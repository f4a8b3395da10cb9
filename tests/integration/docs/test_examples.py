"""The examples of the documentation, run as a reader runs them, against a server with the shipped checkpoints."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from celeriac import InferenceClient
from celeriac.cli import main
from tests.integration.stack import CHECKPOINTS, ROOT, START_S, Process, free_port, until
from tests.unit.docs.pages import PAGES, name_of

#: The shipped checkpoints. Requests without a model use the first one.
SERVED = ("step_002920", "step_003650", "arithmetic_chat")
#: Pages whose blocks are run.
RUN = ("README.md", "docs/quickstart.md", "docs/guide.md", "docs/reference/commands.md", "docs/reference/client.md")
#: A block with one of these needs another machine, files of the reader, or a server of its own.
_NOT_HERE = re.compile(r"make |docker |celeriac (?:serve|worker|api|flower)|path/to|~/|pip install")
#: A block that only shows a part of an asynchronous program.
_FRAGMENT = re.compile(r"^async with", re.MULTILINE)
#: A command line of `celeriac`, at the beginning of a line, in a substitution or in a pipe.
_COMMAND = re.compile(r"(?:^|\$\(|xargs -r )(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?celeriac ([^|)\n]*)", re.MULTILINE)
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$(?:\n+```json\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code, and the output that the page shows after it."""

    page: str
    number: int
    language: str
    code: str
    output: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


BLOCKS = [
    Block(page, number, *found)
    for page in map(name_of, PAGES)
    for number, found in enumerate(_BLOCK.findall((ROOT / page).read_text("utf-8")))
]


def runs_here(block: Block) -> bool:
    """Whether a block can be run against the server of this module."""
    return block.page in RUN and not _NOT_HERE.search(block.code) and not _FRAGMENT.search(block.code)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with the shipped checkpoints."""
    folder, port = tmp_path_factory.mktemp("docs"), free_port()
    command = [sys.executable, "-m", "celeriac", "serve", *SERVED, "--port", str(port)]
    env = {"CELERIAC_THREADS": "1", "CELERIAC_CHECKPOINT_DIR": str(CHECKPOINTS)}
    serve = Process("serve", [*command, "--data-dir", str(folder / "data")], env=env, log_dir=folder)
    try:
        serve.wait_for_line("Celeriac is ready")
        yield port
    finally:
        serve.terminate(60.0)
        serve.kill()


@pytest.fixture
def reader(port: int, tmp_path: Path) -> dict[str, str]:
    """The environment of a reader, in the folder that contains the clone."""
    (tmp_path / "celeriac").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CELERIAC_URL": f"http://127.0.0.1:{port}",
        "CELERIAC_CHECKPOINT_DIR": str(CHECKPOINTS),
        "CELERIAC_THREADS": "1",
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash" and runs_here(b)], ids=str)
def test_a_shell_block_runs(block: Block, port: int, reader: dict[str, str], tmp_path: Path) -> None:
    with InferenceClient(f"http://127.0.0.1:{port}") as client:
        job = client.submit("123+", max_tokens=50)
    code = re.sub(r"127\.0\.0\.1:800[01]", f"127.0.0.1:{port}", block.code).replace("JOB_ID", job.id)
    script = f"set -eo pipefail\n{code}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=reader, capture_output=True, timeout=START_S)
    assert done.returncode == 0, (code, done.stdout, done.stderr)
    assert b"problem+json" not in done.stdout
    assert b"Traceback" not in done.stderr
    if block.output:
        assert json.loads(done.stdout) == json.loads(block.output)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and runs_here(b)], ids=str)
def test_a_python_block_runs(block: Block, port: int, reader: dict[str, str], tmp_path: Path) -> None:
    code = re.sub(r"127\.0\.0\.1:8000", f"127.0.0.1:{port}", block.code)
    # Some blocks continue an earlier one.
    begin = "" if "InferenceClient" in code else "from celeriac import InferenceClient\nclient = InferenceClient()\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code], cwd=tmp_path, env=reader, capture_output=True, timeout=START_S
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def commands_in(code: str) -> Iterator[list[str]]:
    """The arguments of each `celeriac` in a block."""
    for match in _COMMAND.finditer(code.replace("\\\n", " ")):
        yield shlex.split(match[1].partition(" > ")[0], comments=True)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash" and "celeriac " in b.code], ids=str)
def test_every_command_line_is_valid(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELERIAC_ROOT_PATH", raising=False)
    for words in commands_in(block.code):
        name, *rest = words
        if name.startswith("-"):
            continue
        if not rest and name in ("retry",):
            # Its arguments come through a pipe.
            rest = ["job_1"]
        try:
            main.commands[name].make_context(name, rest)
        except click.UsageError as error:
            pytest.fail(f"celeriac {shlex.join(words)}: {error.format_message()}")


def test_the_pages_have_examples() -> None:
    """A change of the pages' form does not leave these tests without blocks."""
    assert sum(runs_here(block) for block in BLOCKS) >= 12
    assert sum(bool(block.output) for block in BLOCKS if runs_here(block)) >= 2


def test_the_example_of_info_is_what_the_server_answers(port: int) -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text("utf-8")
    shown = re.search(r'^\{"checkpoint":.*\}$', page, re.MULTILINE)
    assert shown is not None
    with InferenceClient(f"http://127.0.0.1:{port}") as client:
        until(lambda: client.info("step_002920") == json.loads(shown[0]), "the example of /info")
