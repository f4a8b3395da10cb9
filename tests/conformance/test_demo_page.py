"""The programs of docs/demo.md and of the README, with the real model served by `celeriac demo`: their answers."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.helpers.smollm2 import smollm2_gguf
from tests.integration.stack import ROOT, Process, free_port

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "demo.md"
_EXAMPLE = re.compile(r"^```(bash|python)\n([^`]*)^```\n\n```text\n([^`]*)^```$", re.MULTILINE)
#: In the README, the program that asks this model, and its answer in a comment; and a command with its output.
_README_PROGRAM = re.compile(r"^```py\n([^`]*SmolLM2[^`]*print\([^)]*\))  # ([^`]*)^```$", re.MULTILINE)
_README_COMMAND = re.compile(r"^```console\n\$ (printf.*)\n([^`]*)^```$", re.MULTILINE)
#: The conversion of the model and its start, on a busy machine, in seconds.
START_S = 120.0


def test_the_answers_of_the_page(tmp_path: Path) -> None:
    packages = smollm2_gguf().parents[1]
    clients = ClientEnvironment("clients", tmp_path)
    examples = _EXAMPLE.findall(PAGE.read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    examples += [("python", *found) for found in _README_PROGRAM.findall(readme)]
    examples += [("bash", *found) for found in _README_COMMAND.findall(readme)]
    assert [language for language, *_ in examples] == ["python", "bash"] * 2
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    data = tmp_path / "data"
    command = [sys.executable, "-m", "celeriac", "demo", "--port", str(port), "--data-dir", str(data)]
    # The package is found there, but nothing that it requires.
    demo = Process("demo", command, env={"PYTHONPATH": f"{ROOT}:{packages}"}, log_dir=tmp_path)
    try:
        demo.wait_for_line(f"Celeriac is ready: {url}", timeout_s=START_S)
        for language, code, answer in examples:
            program = "python" if language == "python" else "bash"
            local = code.replace("http://127.0.0.1:8000", url)
            assert clients.run(program, "-c", local, CELERIAC_URL=url) == answer
        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
    finally:
        demo.kill()
    assert [path.name for path in (data / "models").iterdir()] == ["SmolLM2-135M-Instruct"]
