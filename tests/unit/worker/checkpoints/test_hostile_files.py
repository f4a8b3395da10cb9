"""Checkpoints that are damaged, change while they are read, or were made to run code or to use up time and memory."""

from __future__ import annotations

import collections
import copyreg
import functools
import io
import json
import operator
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkpoint_files import SIZES, meta, state_dict, write, write_with_index
from tests.helpers.tokenizer_files import pickled
from tests.unit.worker.checkpoints.test_pickled_data import bombs
from tests.unit.worker.checkpoints.tokenizers.kinds import VOCAB_SIZE, folder_at
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.errors import CheckpointError, TokenizerError
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.checkpoints.json_file import MAX_JSON_BYTES
from worker.checkpoints.tokenizers import load_tokenizer
from worker.checkpoints.tokenizers.finder import MAX_TOKENIZER_BYTES
from worker.local import LocalModel, describe

MODEL, META = "model_000007.pt", "meta_000007.json"
#: A checkpoint that is small, so that many of its bytes matter.
SMALL: dict[str, Any] = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_kv_head": 1, "vocab_size": 4, "sequence_len": 8}


def loaded(folder: Path) -> Checkpoint:
    return load(find(str(folder), folder.parent))


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return dict(loaded(folder).weights)


def refusal(folder: Path, name: str = MODEL) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_all(folder)
    assert str(caught.value).startswith(f"{folder / name}: ")
    return str(caught.value)


# Files that run code when they are unpickled


class Evil:
    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


class Injects:
    """Its state replaces methods of an object."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), {"__class__": Evil(os.system, ("true",))}


def programs(marker: str) -> dict[str, object]:
    """Objects whose unpickling creates `marker`, or would run other code, by ways that are often used."""
    code = f"__import__('os').mkdir({marker!r})"
    return {
        "os": Evil(os.mkdir, (marker,)),
        "eval": Evil(eval, (code,)),
        "exec": Evil(exec, (code,)),
        "import": Evil(__import__, ("antigravity",)),
        "subprocess": Evil(subprocess.Popen, (["mkdir", marker],)),
        "partial": Evil(functools.partial(os.mkdir, marker), ()),
        "attrgetter": Evil(operator.attrgetter("mkdir"), (Evil(__import__, ("os",)),)),
        "getattr": Evil(getattr, (Evil(__import__, ("os",)), "mkdir")),
        "pickle": Evil(pickle.loads, (pickle.dumps(Evil(os.mkdir, (marker,))),)),
        "reconstructor": Evil(copyreg._reconstructor, (Path, object, None)),  # type: ignore[attr-defined]
        "torch.load": Evil(torch.load, (marker,)),
        "torch.hub": Evil(torch.hub.load, ("owner/name", "model")),
        "set_default_dtype": Evil(torch.set_default_dtype, (torch.float64,)),
        "rebuild with a function": Evil(torch._utils._rebuild_tensor_v2, (os.mkdir, marker)),
        "state": Evil(collections.OrderedDict, (), Evil(os.mkdir, (marker,))),
        "injected": Injects(),
        "items": Evil(collections.OrderedDict, (), None, None, iter([("a", Evil(os.mkdir, (marker,)))])),
        "defaultdict": Evil(collections.defaultdict, (Evil(os.mkdir, (marker,)),)),
    }


NAMES = sorted(programs("."))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_no_weights_file_runs_code(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "was_here"
    evil = programs(str(marker))[name]
    for number, content in enumerate((evil, {"lm_head.weight": evil}, [evil])):
        data = pickle.dumps(content, protocol)
        folder = write_with_index(tmp_path / f"run_{number}", data)
        assert "was_here" not in refusal(folder).removeprefix(str(folder))
        (folder / MODEL).write_bytes(data)
        refusal(folder)
    assert not marker.exists()
    assert torch.get_default_dtype() is torch.float32
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_no_tokenizer_runs_code(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "was_here"
    evil = programs(str(marker))[name]
    folder = folder_at(tmp_path / "run")
    file = folder.path / "tokenizer.pkl"
    for content in (pickle.dumps(evil, protocol), pickle.dumps({"a": evil}, protocol), pickled(pat_str=evil)):
        file.write_bytes(content)
        with pytest.raises(TokenizerError) as caught:
            load_tokenizer(folder, VOCAB_SIZE)
        assert str(caught.value).startswith(f"{file}: ")
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_code_in_opcodes_that_picklers_do_not_write_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    path = str(marker).encode()
    for number, data in enumerate(
        (
            b"(S'%s'\nios\nmkdir\n." % path,
            b"(cos\nmkdir\nS'%s'\no." % path,
            b"\x80\x02}X\x01\x00\x00\x00acos\nmkdir\nX%s%s\x85R0s." % (struct.pack("<I", len(path)), path),
            b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93X%s%s\x85}\x92." % (struct.pack("<I", len(path)), path),
        )
    ):
        refusal(write_with_index(tmp_path / f"run_{number}", data))
    assert not marker.exists()


# Damage


def flipped(data: bytes, generator: random.Random) -> bytes:
    broken = bytearray(data)
    broken[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(broken)


@pytest.mark.parametrize("name", [MODEL, META, "tokenizer.pkl", "tokenizer_config.json"])
def test_no_flipped_bit_of_a_file_gives_other_weights_or_a_crash(tmp_path: Path, name: str) -> None:
    """60 flips, spread over the file. What is not refused has the same weights: their checksums are compared."""
    folder = write(tmp_path / "run", state_dict(rows=4, **SMALL), meta(**SMALL) | {"user_config": {"a": "b" * 50}})
    (folder / "tokenizer.pkl").write_bytes(pickled())
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_chars": list("012\n"), "vocab_size": 4}))
    file = folder / name
    data, expected = file.read_bytes(), read_all(folder)
    generator = random.Random(name)
    refused = 0
    for _ in range(60):
        file.write_bytes(flipped(data, generator))
        try:
            weights = read_all(folder)
            load_tokenizer(find(str(folder), tmp_path), 4 if name == "tokenizer_config.json" else VOCAB_SIZE)
        except CheckpointError as error:
            assert str(error).startswith(f"{folder}/")  # noqa: PT017
            refused += 1
        else:
            assert weights.keys() == expected.keys()
            assert all(tensor.equal(expected[key]) for key, tensor in weights.items())
    assert refused > 5


def test_weights_that_were_zeroed_in_place_are_refused_when_they_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    tensor = loaded(folder).weights.tensors["transformer.h.1.mlp.c_fc.weight"]
    digest = describe(str(folder), tmp_path, softcap=None, form="exact", compute="exact").card.digest
    with (folder / MODEL).open("r+b") as file:
        file.seek(tensor.record.start)
        file.write(bytes(tensor.record.size))
    # The card is made from the directory of the file, which has not changed.
    assert describe(str(folder), tmp_path, softcap=None, form="exact", compute="exact").card.digest == digest
    assert f"record {tensor.record.name} differs from its checksum. Copy it again" in refusal(folder)
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        LocalModel.load(str(folder), tmp_path, needs_text=False, device="cpu")


def test_a_part_of_a_record_is_not_read_without_the_checksum_of_the_whole(tmp_path: Path) -> None:
    weights = state_dict()
    weights["lm_head.weight"] = torch.zeros(200, 48)[100:164]
    folder = write(tmp_path / "run", weights)
    record = loaded(folder).weights.tensors["lm_head.weight"].record
    with (folder / MODEL).open("r+b") as file:
        file.seek(record.start)
        file.write(b"\xff")
    assert "differs from its checksum" in refusal(folder)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        folder = write(tmp_path / "run")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_all(folder)["lm_head.weight"].equal(state_dict()["lm_head.weight"])


# Files that change while they are read


def test_a_file_that_is_cut_off_while_it_loads_is_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    checkpoint = loaded(folder)
    os.truncate(folder / MODEL, (folder / MODEL).stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model_000007.pt: was cut off while it was read .* copy it again"):
        dict(checkpoint.weights)


def test_a_file_that_is_overwritten_while_it_loads_is_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    checkpoint = loaded(folder)
    other = write(tmp_path / "other", state_dict(seed=5))
    (folder / MODEL).write_bytes((other / MODEL).read_bytes())
    with pytest.raises(CheckpointError, match="changed while it was read"):
        dict(checkpoint.weights)


def test_a_file_that_is_replaced_while_it_loads_is_still_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    checkpoint = loaded(folder)
    (write(tmp_path / "other", state_dict(seed=5)) / MODEL).replace(folder / MODEL)
    assert checkpoint.weights["lm_head.weight"].equal(state_dict()["lm_head.weight"])


# Files that are no regular files, or are too large


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # A path of a socket is at most 107 bytes long.
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [make_fifo, make_socket, Path.mkdir, link_to("/dev/zero"), link_to("/dev/tty"), link_to("/proc/self/mem")],
)
@pytest.mark.parametrize("name", [MODEL, META, "tokenizer_config.json", "tokenizer.pkl", "tokenizer.json"])
def test_something_else_in_place_of_a_file_is_refused(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = write(tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(CheckpointError) as caught:
        LocalModel.load(str(folder), tmp_path, device="cpu")
    assert str(folder) in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """The files are sparse: they take no space on the disk."""
    for number, (name, size) in enumerate(
        ((META, MAX_JSON_BYTES), ("tokenizer_config.json", MAX_JSON_BYTES), ("tokenizer.json", MAX_TOKENIZER_BYTES))
    ):
        folder = write(tmp_path / str(number))
        with (folder / name).open("wb") as file:
            file.truncate(100 << 30)
        with pytest.raises(CheckpointError, match=f"{name}: is larger than {size:,} bytes"):
            LocalModel.load(str(folder), tmp_path, device="cpu")


# Pickles, JSON and archives that ask for time and memory


#: Bombs of millions of objects, which take long before they are refused. `test_pickled_data` reads them, too.
LONG_BOMBS = {"a million nested lists", "a million nested tuples", "a million marks", "ten million objects"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG_BOMBS)) for name in bombs()]
)
def test_a_bomb_as_index_is_a_short_sentence(tmp_path: Path, name: str) -> None:
    message = refusal(write_with_index(tmp_path / "run", bombs()[name]))
    assert len(message) < 1200 + len(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"model_config":' * 100_000,
        '{"model_config": ' + json.dumps(SIZES | {"n_layer": "@"}).replace('"@"', "[" * 900 + "]" * 900) + "}",
        '{"model_config": ' + json.dumps(SIZES | {"n_layer": "@"}).replace('"@"', "9" * 4000) + "}",
        '{"model_config": ' + json.dumps(SIZES | {"n_layer": "@"}).replace('"@"', "9" * 1_000_000) + "}",
        '{"model_config": ' + json.dumps(SIZES | {"n_layer": "x" * 1_000_000}) + "}",
        '{"step": "\\ud800", "model_config": ' + json.dumps(SIZES | {"window_pattern": "\ud800"}) + "}",
    ],
)
def test_a_meta_file_with_anything_in_it_is_a_short_sentence(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "run")
    (folder / META).write_text(text)
    assert len(refusal(folder, META)) < 1200 + len(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_chars": [[[["a"] * 10_000]]]},
        {"vocab_chars": ["x" * 1_000_000]},
        {"vocab_chars": [*map(chr, range(0x10000, 0x10000 + 200_000)), "\U00010000", "\U00010000"]},
        {"vocab_chars": ["a"], "special_tokens": [*map(str, range(200_000)), "0"]},
        {"vocab_chars": ["a"], "vocab_size": "9" * 1_000_000},
    ],
)
def test_a_vocabulary_with_anything_in_it_is_a_short_sentence(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = folder_at(tmp_path / "run")
    (folder.path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, 32)
    assert len(str(caught.value)) < 1200 + len(str(tmp_path))


def rewritten(folder: Path, change: Callable[[list[zipfile.ZipInfo]], None]) -> Path:
    """Change the directory of a weights file, and nothing else in it."""
    file = write(folder) / MODEL
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"changed"
        change(archive.infolist())
    return folder


def two_records_in_one_place(infos: list[zipfile.ZipInfo]) -> None:
    first, second = (info for info in infos if info.filename.partition("/")[2] in ("data/0", "data/1"))
    second.header_offset = first.header_offset


def overlapping(infos: list[zipfile.ZipInfo]) -> None:
    infos[0].file_size = infos[0].compress_size = infos[0].file_size + 10_000


def beyond_the_end(infos: list[zipfile.ZipInfo]) -> None:
    infos[-1].file_size = infos[-1].compress_size = 1 << 40


def of_two_sizes(infos: list[zipfile.ZipInfo]) -> None:
    infos[-1].file_size += 1


def encrypted(infos: list[zipfile.ZipInfo]) -> None:
    infos[-1].flag_bits |= 1


def of_one_name(infos: list[zipfile.ZipInfo]) -> None:
    infos[-1].filename = infos[-2].filename


@pytest.mark.parametrize(
    "change", [two_records_in_one_place, overlapping, beyond_the_end, of_two_sizes, encrypted, of_one_name]
)
def test_an_archive_with_a_false_directory_is_refused(
    tmp_path: Path, change: Callable[[list[zipfile.ZipInfo]], None]
) -> None:
    assert "is damaged" in refusal(rewritten(tmp_path / "run", change))


def test_an_archive_with_a_huge_directory_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "run") / MODEL
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{number:030d}"), b"")
    assert "its directory is larger than" in refusal(tmp_path / "run")


def tensor(key: str, count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Any:
    """A tensor of a state dict, as torch.save describes it, with any numbers."""

    class Storage:
        persistent = ("storage", torch.FloatStorage, key, "cpu", count)

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, {})

    return Rebuilt()


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return getattr(obj, "persistent", None)


def index_of(content: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "entry",
    [
        tensor("0", 64 * 48, (1 << 40, 48), (0, 0)),
        tensor("0", 64 * 48, (64, 48), (48, 1), offset=1),
        tensor("0", 64 * 48, (64, 48), (1 << 60, 1)),
        tensor("0", 64 * 48, (64, -48), (48, 1)),
        tensor("0", 64 * 48, (64, 48), (48,)),
        tensor("0", 1 << 40, (1 << 20, 1 << 20), (1 << 20, 1)),
        tensor("99", 64 * 48, (64, 48), (48, 1)),
        tensor("../data.pkl", 64 * 48, (64, 48), (48, 1)),
    ],
)
def test_a_tensor_that_does_not_fit_its_content_is_refused(tmp_path: Path, entry: Any) -> None:
    folder = write_with_index(tmp_path / "run", index_of({"transformer.wte.weight": entry}))
    assert "is damaged: tensor transformer.wte.weight" in refusal(folder)


def test_a_file_whose_tensors_all_share_one_content_is_refused(tmp_path: Path) -> None:
    """Otherwise a small file would take any amount of memory when it is packed."""
    shared = {name: tensor("0", 64 * 48, (64, 48), (48, 1)) for name in map(str, range(500))}
    assert "too many of them share their content" in refusal(write_with_index(tmp_path / "run", index_of(shared)))


def test_an_embedding_may_be_the_output_matrix(tmp_path: Path) -> None:
    weights = state_dict()
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    assert read_all(write(tmp_path / "run", weights))["lm_head.weight"].equal(weights["lm_head.weight"])
