"""What a Hugging Face tokenizer puts before a text, and what ends one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tasks.chat import Message
from tests.unit.worker.checkpoints.tokenizers.kinds import VOCAB_SIZE, metaspace, without_deadline
from worker.checkpoints.errors import CheckpointError, TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer, tokenizer_content, tokenizer_digest
from worker.jobs.prompt import encode_prompt

UNK, BOS, EOS = 0, 1, 2
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def template(*single: str, ids: tuple[int, ...] = (BOS, EOS)) -> dict[str, Any]:
    """A post-processor that adds special tokens to the text A."""
    names = ("<s>", "</s>")
    pieces: list[dict[str, Any]] = [
        {"Sequence": {"id": one, "type_id": 0}} if one == "A" else {"SpecialToken": {"id": one, "type_id": 0}}
        for one in single
    ]
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for name, i in zip(names, ids, strict=True)
        },
    }


def write(
    path: Path, *, post_processor: Any = None, config: Any = CONFIG, generation: Any = None, model: Any = None
) -> CheckpointFolder:
    """A folder with everything but the weights."""
    path.mkdir(exist_ok=True)
    content = json.loads(metaspace()) | {"post_processor": post_processor}
    for name, found in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", config),
        ("generation_config.json", generation),
        ("config.json", {"model_type": "llama", "vocab_size": VOCAB_SIZE} | (model or {})),
    ):
        if found is not None:
            (path / name).write_text(json.dumps(found))
    return CheckpointFolder(
        path=path,
        name=path.name,
        format="huggingface",
        step=None,
        model_file=path / "model.safetensors",
        meta_file=path / "config.json",
    )


def loaded(path: Path, **files: Any) -> Tokenizer:
    return load_tokenizer(write(path, **files), VOCAB_SIZE)


def begins_with(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens at the beginning of a prompt. There must be none at its end."""
    ids = encode_prompt(tokenizer, "the")[0]
    plain = tokenizer.encode("the").ids
    assert ids[len(ids) - len(plain) :] == plain
    return ids[: len(ids) - len(plain)]


BEGIN, BOTH, NONE = template("<s>", "A"), template("<s>", "A", "</s>"), template("A")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("post_processor", "expected"),
    [
        (None, ()),
        (NONE, ()),
        (BEGIN, (BOS,)),
        (BOTH, (BOS,)),
        (template("A", "</s>"), ()),
        (BYTE_LEVEL, ()),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, BEGIN]}, (BOS,)),
        ({"type": "Sequence", "processors": [NONE, BYTE_LEVEL]}, ()),
        (
            {
                "type": "RobertaProcessing",
                "sep": ["</s>", EOS],
                "cls": ["<s>", BOS],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
            (BOS,),
        ),
        ({"type": "BertProcessing", "sep": ["</s>", EOS], "cls": ["<unk>", UNK]}, (UNK,)),
    ],
)
def test_the_post_processor_decides_what_a_prompt_begins_with(
    tmp_path: Path, post_processor: Any, expected: tuple[int, ...]
) -> None:
    tokenizer = loaded(tmp_path, post_processor=post_processor)
    assert begins_with(tokenizer) == expected
    # The library adds the same before the text, and may add more after it.
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tuple(library.encode("the", add_special_tokens=True).ids[: len(expected)]) == expected
    assert tokenizer.card().prepend_bos == bool(expected)


@pytest.mark.parametrize("post_processor", [None, NONE, BEGIN, BOTH])
def test_a_field_of_the_configuration_overrides_the_post_processor(tmp_path: Path, post_processor: Any) -> None:
    for adds, expected in ((True, (BOS,)), (False, ())):
        config = CONFIG | {"add_bos_token": adds, "add_eos_token": True}
        assert begins_with(loaded(tmp_path, post_processor=post_processor, config=config)) == expected


def test_bos_can_be_asked_for_even_where_the_tokenizer_does_not_add_it(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    assert (tokenizer.bos_id, tokenizer.prepend_bos) == (BOS, False)
    assert encode_prompt(tokenizer, "t", add_bos=True)[0][0] == BOS
    assert loaded(tmp_path, config={"eos_token": "</s>"}).bos_id is None


def test_a_chat_template_that_writes_bos_has_it_once(tmp_path: Path) -> None:
    config = CONFIG | {"add_bos_token": True, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    tokenizer = loaded(tmp_path, post_processor=BEGIN, config=config)
    assert tokenizer.chat is not None
    ids = tokenizer.chat.render([Message("user", "the")])
    assert ids == (BOS, *tokenizer.encode("the").ids)


def test_all_files_name_ids_that_end_a_text(tmp_path: Path) -> None:
    found = loaded(tmp_path, generation={"eos_token_id": [7, 8]}, model={"eos_token_id": 9})
    assert found.stop_ids == {EOS, 7, 8, 9}
    assert found.card().eos_id == EOS
    without = loaded(tmp_path, config={"bos_token": "<s>"}, generation={"eos_token_id": [8, 7]})
    assert (without.stop_ids, without.card().eos_id) == ({7, 8}, 7)


def test_an_id_beyond_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"generation_config\.json: its `eos_token_id` 320 is not one of"):
        loaded(tmp_path, generation={"eos_token_id": [2, VOCAB_SIZE]})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"post_processor": template("<s>", "</s>", "A")}, "puts 2 tokens before a text"),
        ({"post_processor": template("<s>", "A", ids=(VOCAB_SIZE, 2))}, "it puts the id 320 before a text"),
        (
            {"config": CONFIG | {"bos_token": "<none>"}},
            "the `bos_token` '<none>' of tokenizer_config.json is not in it",
        ),
        (
            {"config": CONFIG | {"eos_token": "<none>"}},
            "the `eos_token` '<none>' of tokenizer_config.json is not in it",
        ),
        ({"config": CONFIG | {"add_bos_token": "yes"}}, "its `add_bos_token` must be true or false"),
        ({"config": {"add_bos_token": True}}, "its `add_bos_token` is true, and it has no `bos_token`"),
        (
            {"config": CONFIG | {"added_tokens_decoder": {"2": {"content": "<s>"}}}},
            "its id of '<s>' is 1, and tokenizer_config.json says 2",
        ),
        (
            {"config": CONFIG | {"added_tokens_decoder": {"300": {"content": "<new>"}}}},
            "its id of '<new>' is 266, and tokenizer_config.json says 300",
        ),
        (
            {"config": CONFIG | {"added_tokens_decoder": {"x": {"content": "<s>"}}}},
            "must have an object with `content`",
        ),
        ({"config": CONFIG | {"added_tokens_decoder": {"1": "<s>"}}}, "must have an object with `content`"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        loaded(tmp_path, **files)
    assert words in str(caught.value)


def test_tokens_that_only_the_configuration_has_are_added_as_transformers_does(tmp_path: Path) -> None:
    more = {"266": {"content": "<new>", "special": True}, "267": {"content": "<think>", "special": False}}
    tokenizer = loaded(tmp_path, config=CONFIG | {"added_tokens_decoder": more})
    assert tokenizer.special_ids["<new>"] == 266
    assert (tokenizer.token_bytes(266), tokenizer.token_bytes(267)) == (None, b"<think>")
    assert tokenizer.encode("<think>").ids[-1] == 267


@pytest.mark.parametrize(
    "config",
    [
        {"pad_token": "▁th"},
        {"additional_special_tokens": ["▁th"]},
        {"extra_special_tokens": ["▁th"]},
        {"extra_special_tokens": {"image_token": "▁th"}},
        {"added_tokens_decoder": {"265": {"content": "▁th", "special": True}}},
    ],
)
def test_a_token_that_the_configuration_calls_special_is_no_text(tmp_path: Path, config: dict[str, Any]) -> None:
    tokenizer = loaded(tmp_path, config=CONFIG | config)
    assert tokenizer.special_ids["▁th"] == 265
    assert tokenizer.token_bytes(265) is None


def test_everything_that_changes_ids_is_in_the_digest(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"post_processor": BEGIN},
        {"config": CONFIG | {"add_bos_token": True}},
        {"config": CONFIG | {"pad_token": "▁th"}},
        {"generation": {"eos_token_id": 7}},
        {"model": {"eos_token_id": 8}, "generation": {}},
    ]
    digests = [tokenizer_digest(write(tmp_path / str(i), **files)) for i, files in enumerate(variants)]
    assert len(set(digests)) == len(variants)
    # How to sample is no part of it: a job has the values that it was accepted with.
    same = write(tmp_path / "0", generation={"temperature": 0.5})
    assert tokenizer_digest(same) == digests[0]


def test_a_folder_without_tokenizer_json_says_what_is_there(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer: tokenizer\.json is missing\. Copy it"):
        load_tokenizer(folder, VOCAB_SIZE)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is not read\. Write it with transformers"):
        load_tokenizer(folder, VOCAB_SIZE)
    # A pickle in such a folder is never read.
    (tmp_path / "tokenizer.pkl").write_bytes(b"")
    assert tokenizer_content(folder) == b""


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        folder = write(tmp_path / name, generation={})
        (folder.path / name).rename(tmp_path / f"outside-{name}")
        (folder.path / name).symlink_to(tmp_path / f"outside-{name}")
        with pytest.raises(CheckpointError, match="is a link that leads out of this folder"):
            load_tokenizer(folder, VOCAB_SIZE)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 400)
    | st.floats()
    | st.text("a<s>/\ud800", max_size=5)
    | st.sampled_from(["<s>", "</s>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "1", "name"]), inner),
    max_leaves=5,
)
TOKENIZER_FIELDS = ["bos_token", "eos_token", "pad_token", "add_bos_token", "added_tokens_decoder", "chat_template"]
TOKENIZER_FIELDS += ["extra_special_tokens", "additional_special_tokens"]
GENERATION_FIELDS = ["eos_token_id", "temperature", "top_k", "top_p"]


@without_deadline
@given(
    config=st.dictionaries(st.sampled_from(TOKENIZER_FIELDS), json_values),
    generation=st.dictionaries(st.sampled_from(GENERATION_FIELDS), json_values),
)
def test_files_with_anything_in_them_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], generation: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything"
    with suppress(TokenizerError):
        tokenizer = loaded(path, config=config, generation=generation)
        assert all(0 <= token_id < VOCAB_SIZE for token_id in tokenizer.stop_ids)
        tokenizer.encode("the")
        tokenizer_digest(write(path, config=config, generation=generation))
