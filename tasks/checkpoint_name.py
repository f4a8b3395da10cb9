"""Names of checkpoints for clients. They are used in Redis keys, names of Celery queues, and URLs."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: What a name may be, for messages.
RULE = "at most 128 letters, digits, '.', '_' and '-', beginning with a letter or digit"


def is_checkpoint_name(text: str) -> bool:
    """Whether clients can request a checkpoint by this name."""
    return _NAME.fullmatch(text) is not None
