"""Whether a command serves checkpoints that are named, or all of a folder."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from celeriac.cli.options import folder_of
from tasks.settings import Settings


def test_the_command_line_comes_before_the_environment(tmp_path: Path) -> None:
    both = Settings(checkpoint="d4", checkpoints=tmp_path / "other")
    assert folder_of(both, given=str(tmp_path), checkpoints=(), names=False) == tmp_path
    assert folder_of(both, given=None, checkpoints=("d8",), names=False) is None
    with pytest.raises(click.UsageError, match="CELERIAC_CHECKPOINT and CELERIAC_CHECKPOINTS are both set"):
        folder_of(both, given=None, checkpoints=(), names=False)


def test_one_of_the_variables_is_enough(tmp_path: Path) -> None:
    assert folder_of(Settings(checkpoints=tmp_path), given=None, checkpoints=(), names=False) == tmp_path
    assert folder_of(Settings(checkpoint="d4"), given=None, checkpoints=(), names=False) is None


@pytest.mark.parametrize(("checkpoints", "names"), [(("d4",), False), ((), True)])
def test_a_folder_goes_with_no_checkpoint_and_no_name(
    tmp_path: Path, checkpoints: tuple[str, ...], names: bool
) -> None:
    with pytest.raises(click.UsageError, match="--checkpoints offers all checkpoints of a folder"):
        folder_of(Settings(), given=str(tmp_path), checkpoints=checkpoints, names=names)


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="absent is no folder"):
        folder_of(Settings(), given=str(tmp_path / "absent"), checkpoints=(), names=False)
