"""The commands and programs of docs/clients.md, run in the environments of the clients."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conformance.conftest import Server
from tests.integration.stack import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "clients.md"
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A section of the page, and its blocks of code."""

    title: str
    blocks: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return self.title


def sections() -> list[Section]:
    """The sections that have something to run."""
    parts = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    found = [Section(part.splitlines()[0], tuple(_BLOCK.findall(part))) for part in parts]
    return [section for section in found if section.blocks]


#: What the last block of a section prints, among other things.
PRINTED = {
    "OpenAI's Python library": "",
    "llm": "579",
    "LangChain": "['2', '579']",
    "lm-evaluation-harness": "|exact_match|",
    "guidellm": "",
    "evalscope": "100%",
}


def test_every_section_is_known() -> None:
    assert {section.title for section in sections()} == {*PRINTED}


@pytest.mark.parametrize("section", sections(), ids=str)
def test_a_section(server: Server, tmp_path: Path, section: Section) -> None:
    """The blocks of a section follow one another in one folder."""
    checkpoints = tmp_path / "checkpoints"
    for folder in (server.sums, server.chat):
        shutil.copytree(folder, checkpoints / folder.name)
    environment = ClientEnvironment(
        "evalscope" if section.title == "evalscope" else "clients",
        tmp_path,
        CELERIAC_CHECKPOINT_DIR=str(checkpoints),
    )
    printed = ""
    for language, code in section.blocks:
        local = code.replace("http://127.0.0.1:8000", server.url)
        program = "python" if language == "python" else "bash"
        begin = "" if language == "python" else "set -eo pipefail\n"
        printed += environment.run(program, "-c", begin + local)
    assert printed.strip()
    assert PRINTED[section.title] in printed
