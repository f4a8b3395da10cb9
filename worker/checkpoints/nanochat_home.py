"""nanochat's own folder of runs, in which a run is named by its stage of training and its tag, such as `sft:d20`.

Source: `get_base_dir` in https://github.com/karpathy/nanochat/blob/master/nanochat/common.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The folders of each stage. For one day nanochat wrote to `sft_checkpoints`.
FOLDERS = {
    "base": ("base_checkpoints",),
    "mid": ("mid_checkpoints",),
    "sft": ("chatsft_checkpoints", "sft_checkpoints"),
    "rl": ("chatrl_checkpoints",),
}
_RUN = re.compile(rf"({'|'.join(FOLDERS)}):(?!\.\.?$)([^/\\]+)")


def home() -> Path:
    """nanochat's folder: NANOCHAT_BASE_DIR, or else `~/.cache/nanochat`."""
    given = os.environ.get("NANOCHAT_BASE_DIR")
    return Path(given) if given else Path("~/.cache/nanochat").expanduser()


def folders_of(text: str) -> tuple[Path, ...]:
    """Where a run such as `sft:d20` may be. Empty if `text` does not name a run in this way."""
    match = _RUN.fullmatch(text)
    return () if match is None else tuple(home() / folder / match[2] for folder in FOLDERS[match[1]])


def run_name(path: Path) -> str | None:
    """The name of a run by its folder, such as `sft:d20`. None if the folder is not one of a stage in `home`."""
    if path.parent.parent == home():
        for stage, folders in FOLDERS.items():
            if path.parent.name in folders:
                return f"{stage}:{path.name}"
    return None
