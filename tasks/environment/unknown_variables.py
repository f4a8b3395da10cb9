"""Finds environment variables that look like settings and are none, such as a misspelt name."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping

from tasks.settings import PREFIX, Settings

#: Holds the names that this process or its parent has reported, separated by `=`, which no name contains. Child
#: processes inherit it, so that they do not report the same names again.
REPORTED = f"{PREFIX}REPORTED_NAMES"
#: Variables with the prefix that are not settings: of the client's commands, of docker-compose.yml, and of this module.
OTHER_VARIABLES = frozenset({f"{PREFIX}URL", f"{PREFIX}CHECKPOINTS", f"{PREFIX}PORT", REPORTED})
SETTINGS = frozenset(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)

#: A prefix that is at least as similar as this counts as a misspelt one: `CELERAIC_` does, `CELERY_` does not.
_SIMILAR_PREFIX = 0.8
#: Kubernetes sets these variables in each container, for a service whose name begins with `celeriac`.
_KUBERNETES = re.compile(r"_(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_[A-Z]+(?:_[A-Z]+)?)?)$")


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that are not known, each with the known name that is nearest, if one is near.

    An empty variable counts as unset. Upper and lower case are the same, as for settings.
    """
    found: dict[str, str | None] = {}
    for name, value in environment.items():
        prefix, separator, rest = name.upper().partition("_")
        spelled = f"{PREFIX}{rest}"
        if not value or not separator:
            continue
        if f"{prefix}_" == PREFIX:
            if spelled not in SETTINGS | OTHER_VARIABLES and not _is_of_kubernetes(name, environment):
                found[name] = _nearest(rest)
        elif spelled in SETTINGS and _similarity(f"{prefix}_", PREFIX) >= _SIMILAR_PREFIX:
            found[name] = spelled
    return found


def report_unknown_variables() -> None:
    """Print one line to stderr that names the unknown variables, unless they were reported already. Prints no value."""
    reported = os.environ.get(REPORTED, "").split("=")
    unknown = {name: near for name, near in unknown_variables(os.environ).items() if ascii(name) not in reported}
    if not unknown:
        return
    named = (_printable(name) + (f" (did you mean {near}?)" if near else "") for name, near in sorted(unknown.items()))
    print(f"Warning: Celeriac has no setting {', '.join(named)}", file=sys.stderr, flush=True)
    os.environ[REPORTED] = "=".join(filter(None, (*reported, *map(ascii, unknown))))


def _nearest(rest: str) -> str | None:
    # Without the prefix, which would make all names similar.
    known = [name.removeprefix(PREFIX) for name in sorted(SETTINGS | {f"{PREFIX}URL"})]
    return next((f"{PREFIX}{near}" for near in difflib.get_close_matches(rest, known, n=1)), None)


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _is_of_kubernetes(name: str, environment: Mapping[str, str]) -> bool:
    match = _KUBERNETES.search(name)
    return match is not None and f"{name[: match.start()]}_SERVICE_HOST" in environment


def _printable(name: str) -> str:
    return name if name.isascii() and name.isprintable() else ascii(name)
