"""Programs of other people, each run in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.integration.stack import ROOT

FOLDER = ROOT / ".venv-conformance"
SCRIPTS = ROOT / "tests" / "conformance" / "clients"
#: How long a program may run, in seconds. It imports much, and the machine may be busy.
DEADLINE_S = 180.0


class ClientEnvironment:
    """An environment that `make conformance` builds, and the variables for the programs in it."""

    def __init__(self, name: str, home: Path, **variables: str) -> None:
        """`home`: a folder for what the programs keep. Skips the test if the environment is missing."""
        self._bin = FOLDER / name / "bin"
        if not (self._bin.parent / ".installed").exists():
            pytest.skip(f"{self._bin.parent.relative_to(ROOT)} is missing: `make conformance` builds it")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "HF_", "CELERIAC_"))}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self._variables = {
            **kept,
            **offline,
            "HOME": str(home),
            # Scripts of the shell find the programs of this environment, and `celeriac`.
            "PATH": f"{self._bin}:{os.environ['PATH']}:{Path(sys.executable).parent}",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **variables,
        }

    def start(self, *command: str, stdin: int = subprocess.DEVNULL, **variables: str) -> subprocess.Popen[str]:
        """Start a program of the environment, or of the system. Its output is in pipes."""
        own = self._bin / command[0]
        return subprocess.Popen(
            [str(own) if own.exists() else command[0], *command[1:]],
            env=self._variables | variables,
            cwd=self._variables["HOME"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, timeout_s: float = DEADLINE_S, **variables: str) -> str:
        """Run a program of the environment, which must succeed. Returns its standard output."""
        process = self.start(*command, **variables)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # With the processes that it started.
            os.killpg(process.pid, SIGKILL)
            output, errors = process.communicate()
            pytest.fail(f"{command[0]} did not end within {timeout_s:g} s:\n{output[-5000:]}\n{errors[-5000:]}")
        assert process.returncode == 0, f"{command[0]} failed:\n{output[-5000:]}\n{errors[-10000:]}"
        return output

    def script(self, name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = DEADLINE_S) -> Any:
        """Run a script of the folder `clients`, which gets its arguments as JSON, and prints JSON as its last line."""
        output = self.run("python", str(SCRIPTS / f"{name}.py"), json.dumps(arguments or {}), timeout_s=timeout_s)
        return json.loads(output.splitlines()[-1])
