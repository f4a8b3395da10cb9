"""The limit of open files of this process. Each connection is one."""

from __future__ import annotations

import resource

#: The limit that the process asks for. More is never needed: `CELERIAC_MAX_CONNECTIONS` is lower. Some systems allow a
#: billion, which makes programs slow that close all possible files.
WANTED = 65_536
#: Files that are not connections of clients: Redis, logs, modules, and the connections above the limit that get 503.
RESERVED = 192
#: Connections are allowed up to this number, even if the limit of open files leaves no room for them.
FEWEST_CONNECTIONS = 16


def raise_limit() -> None:
    """Allow as many open files as the system permits, up to WANTED. The usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def connections_allowed(wanted: int) -> int:
    """`wanted` connections, or as many as the limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(FEWEST_CONNECTIONS, min(wanted, soft - RESERVED))
