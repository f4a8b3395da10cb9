"""The scripts use the names of keys in `tasks.store.keys`, and document their arguments and their reply."""

from __future__ import annotations

import inspect
import re
from importlib.resources import files

import pytest

from tasks.store import keys, redis_check, scripts

SCRIPTS = sorted(
    path.name.removesuffix(".lua") for path in (files("tasks") / "lua").iterdir() if path.name.endswith(".lua")
)


def test_the_generated_tables_build_the_keys_that_python_builds() -> None:
    tables = scripts.generated_tables()
    for name, value in inspect.getmembers(keys):
        if inspect.isfunction(value):
            match = re.search(rf"function KEY\.{name}\(of\) return '(.*)' \.\. of \.\. '(.*)' end", tables)
            assert match is not None
            assert f"{match[1]}some-name{match[2]}" == value("some-name")
        elif name.isupper() and isinstance(value, str):
            assert f"KEY.{name} = '{value}'" in tables


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"prelude/{part}" for part in scripts.PRELUDE)])
def test_scripts_spell_no_key_and_use_only_known_names(name: str) -> None:
    text = (files("tasks") / "lua" / f"{name}.lua").read_text("utf-8")
    code = re.sub(r"--.*", "", text)
    assert keys.PREFIX not in code
    assert set(re.findall(r"KEY\.(\w+)", code)) <= {name for name, _ in inspect.getmembers(keys)}
    assert set(re.findall(r"LIMIT\.(\w+)", code)) <= scripts.LIMITS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_documents_keys_arguments_and_reply(name: str) -> None:
    header = (files("tasks") / "lua" / f"{name}.lua").read_text("utf-8").split("\n\n")[0]
    assert re.search(r"^-- KEYS   none$", header, re.MULTILINE)
    assert re.search(r"^-- ARGV   (1|none)", header, re.MULTILINE)
    assert re.search(r"^-- reply  ", header, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_found_by_name(name: str) -> None:
    script = scripts.get(name)
    assert script is scripts.get(name)
    assert re.fullmatch(r"[0-9a-f]{40}", script.sha)


def test_the_permission_for_every_command_of_a_script_is_checked_at_the_start() -> None:
    """All but INFO: without it, the memory limit of Redis is not known, and nothing else is missing."""
    folder = files("tasks") / "lua"
    names = [*SCRIPTS, *(f"prelude/{part}" for part in scripts.PRELUDE)]
    texts = ((folder / f"{name}.lua").read_text("utf-8") for name in names)
    used = {command for text in texts for command in re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", text)}
    assert {"HSET", "ZADD", "TIME", "SCAN"} <= used
    assert used - redis_check._KEY_COMMANDS.keys() == {"DEL", "INFO", "PUBLISH", "SCAN", "SET", "TIME"}
