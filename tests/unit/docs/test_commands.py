"""`make`, the hooks and the checks of a change run the same commands."""

from __future__ import annotations

import re
import subprocess

import yaml

from tests.unit.docs.pages import ROOT


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, with the environment's folder spelled out."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    block = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert block is not None, f"the Makefile has no {target}"
    return [line.strip().replace("$(BIN)", ".venv/bin").replace("$(MAKE)", "make") for line in block[1].splitlines()]


def test_the_hooks_run_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("lint")


def test_make_check_is_lint_then_test() -> None:
    assert recipe("check") == ["make lint", "make test"]


def test_plain_make_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True
    )
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert [line.split()[1] for line in listed.stdout.splitlines()] == targets
