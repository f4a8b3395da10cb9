"""docs/reference/settings.md lists every setting with its default and its description."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.environment.unknown_variables import OTHER_VARIABLES
from tasks.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "settings.md"


def table() -> str:
    """The table that the page must contain."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is None:
            shown = "unset"
        elif isinstance(default, list):
            shown = f"`{json.dumps(default)}`"
        else:
            shown = f"`{default}`"
        rows.append(f"| `CELERIAC_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(), f"put this table into {PAGE.name}:\n\n{table()}"


def test_every_setting_that_is_named_exists() -> None:
    """In the documentation, the container files and the messages."""
    root = PAGE.parents[2]
    known = {f"CELERIAC_{name.upper()}" for name in Settings.model_fields}
    places = [root / "README.md", root / "CONTRIBUTING.md", root / "docker-compose.yml", *root.glob("docs/**/*.md")]
    places += [path for package in ("api", "tasks", "worker", "celeriac") for path in root.glob(f"{package}/**/*.py")]
    for place in places:
        words = place.read_text().replace("`", " ").replace("=", " ").replace("'", " ").replace('"', " ").split()
        spelled = {word.strip("().,:;{}$") for word in words if word.strip("().,:;{}$").startswith("CELERIAC_")}
        named = {name for name in spelled if name.isupper() and name.isidentifier()}
        unknown = named - known - OTHER_VARIABLES - {"CELERIAC_"}
        assert not unknown, f"{place.relative_to(root)} names {unknown}"
