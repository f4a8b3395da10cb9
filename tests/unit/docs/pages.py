"""The documentation and the source code as files, and what the tests of this folder read from a page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("api", "tasks", "worker", "celeriac", "bench")
CODE_SUFFIXES = {".py", ".lua", ".c", ".h"}
#: Folders with files that are not written by people.
GENERATED = {"__pycache__", "built"}

ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))

_PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join((*PACKAGES, 'tests', 'docs', 'examples'))})/[\w./-]*\w")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    """A path as the pages write it: relative to the root."""
    return path.relative_to(ROOT).as_posix()


def code_files(root: Path = ROOT) -> list[Path]:
    """The source files of the packages."""
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*"))]
    return [path for path in found if path.suffix in CODE_SUFFIXES and not GENERATED & {*path.parts}]


def paths_named(text: str) -> set[str]:
    """Every path of this repository that `text` names, in prose, in links from the root and in commands."""
    return {*_PATH.findall(text)}


def links(text: str) -> list[str]:
    """Targets of the links of a page that lead to another file or to a heading."""
    return [target for target in _LINK.findall(_FENCE.sub("", text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """The anchors of a page, which links name after `#`: one for each heading, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = sum(known == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", known) is not None for known in found)
        found.add(f"{slug}-{count}" if count else slug)
    return found
