"""Variables of the environment that would change Celery, although they are not settings of Celeriac.

Celery prefers some variables to its configuration: with `CELERY_BROKER_URL`, a worker would take messages from another
Redis than the one in which its jobs are. No configuration prevents this, so the variables are removed.
"""

from __future__ import annotations

import os

#: Variables whose names begin like this are removed. Celery's command reads its options from `CELERY_<OPTION>`.
_PREFIXES = ("CELERY", "KOMBU_", "_MP_FORK_")

#: Variables with other names that Celery, kombu and billiard read. A test compares them with the installed packages.
_NAMES = frozenset(
    {
        # Options of Celery's command.
        *("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND", "SKIP_CHECKS"),
        # Celery imports the Django project that they name.
        *("DJANGO_PROJECT_DIR", "DJANGO_SETTINGS_MODULE"),
        # Switches of Celery.
        *("C_BENCH", "C_BENCH_EVERY", "C_FAKEFORK", "C_FORCE_ROOT", "C_IMPDEBUG", "C_REMDEBUG", "C_STRICT_APP"),
        *("C_WARN_APP", "C_WNOCONF", "AUTOSCALE_KEEPALIVE", "EVENTLET_NOBLOCK", "NOSETPS", "TIMER_DEBUG"),
        "USE_FAST_LOCALS",
        # Switches of kombu and billiard.
        *("DISABLE_TRACEBACKS", "PICKLE_PROTOCOL", "FORKED_BY_MULTIPROCESSING", "MP_LOG", "MP_MAIN_FILE"),
        *("MULTIPROCESSING_FORKING_DISABLE", "REMAP_SIGTERM"),
    }
)


def configures_celery(name: str) -> bool:
    """Whether a variable would change Celery, kombu or billiard."""
    return name.startswith(_PREFIXES) or name in _NAMES


def remove_celery_variables() -> None:
    """Remove these variables from the environment of this process and of the processes that it starts later.

    Call it before Celery is imported where that is possible: Celery reads some of them only then.
    """
    for name in filter(configures_celery, list(os.environ)):
        del os.environ[name]
