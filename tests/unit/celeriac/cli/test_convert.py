"""`celeriac convert`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from celeriac.cli import main
from tests.helpers.gguf_files import of_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden-hf"


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)], prog_name="celeriac")


def test_a_file_becomes_a_folder(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "mistral").write(tmp_path / "model.gguf")
    result = convert(file, tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert "mistral" in result.stdout
    assert "float32" in result.stdout
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "Writing model" in result.stderr


def test_a_folder_with_files_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"old": true}')
    file = of_folder(GOLDEN / "mistral").write(tmp_path / "model.gguf")
    result = convert(file, tmp_path / "model")
    assert result.exit_code == 1
    assert (
        result.stderr == f"Error: {tmp_path / 'model'}: is not empty. Give another folder, or --force to replace it\n"
    )
    assert convert(file, tmp_path / "model", "--force", "--fp32").exit_code == 0
    assert "old" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_a_refused_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("no model")
    result = convert(tmp_path / "model.gguf", tmp_path / "model")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'model.gguf'}: is not a GGUF file\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
