"""A script gets the definitions that it uses, and no others."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from tasks.store import definitions, scripts

SCRIPTS = sorted(
    path.name.removesuffix(".lua") for path in (files("tasks") / "lua").iterdir() if path.name.endswith(".lua")
)
PRELUDE = """
-- About several and other.
local several, other = 1, {}
for index = 1, 3 do
  other[index] = index
end
function KEY.job(of) return of end
function KEY.other_key(of) return of end
KEY.JOBS = 'jobs'
local LIMIT = {MOST = 3}
-- Unlike unused, this uses KEY.job.
local function first(id)
  return KEY.job(id)
end
local function unused(id)
  return KEY.other_key(id)
end
local function second(id)
  return first(id) + several
end
"""


def names_before(script: str) -> list[str]:
    """Names of the definitions that the script gets."""
    text = definitions.with_definitions(script, definitions.split(PRELUDE))
    return [name for definition in definitions.split(PRELUDE) if definition.text in text for name in definition.names]


def test_a_script_gets_what_it_uses_and_what_that_uses() -> None:
    assert set(names_before("return second(1)")) == {"several", "other", "KEY.job", "first", "second"}
    assert names_before("return KEY.JOBS") == ["KEY.JOBS"]
    assert names_before("-- Not unused, nor first.\nreturn 1") == []


def test_code_between_definitions_belongs_to_the_one_before_it() -> None:
    text = definitions.with_definitions("return several", definitions.split(PRELUDE))
    assert text.index("local several, other") < text.index("other[index] = index") < text.index("return several")


def test_what_is_used_only_after_the_marker_follows_it() -> None:
    script = f"local early = KEY.JOBS\n{definitions.MARKER}return second(KEY.JOBS)"
    text = definitions.with_definitions(script, definitions.split(PRELUDE))
    order = ["KEY.JOBS = 'jobs'", "local early", "function KEY.job", "local function second", "return second"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert text.count("KEY.JOBS = 'jobs'") == 1


def test_code_without_a_definition_is_refused() -> None:
    with pytest.raises(ValueError, match="definition"):
        definitions.split("redis.call('PING')\nlocal late = 1")


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_uses_a_definition_that_it_did_not_get(name: str) -> None:
    text = re.sub(r"^ *--.*$", "", scripts.get(name).text, flags=re.MULTILINE)
    for definition in scripts.prelude():
        used = [found.start() for name in definition.names for found in re.finditer(_use(name), text)]
        assert not used or text.index(definition.text) <= min(used)


def _use(name: str) -> str:
    """A pattern for a use of a definition, neither a field of a table nor a text."""
    return rf"(?<![\w.':]){re.escape(name)}(?!\w)"


def test_a_call_that_does_nothing_does_not_pay_for_definitions() -> None:
    """Every process calls the reaper each second, and nearly all of these calls return at once."""
    before, _, after = scripts.get("reap").text.partition("-- Most calls have returned by now.")
    assert "local function finish(" not in before
    assert "local function finish(" in after
