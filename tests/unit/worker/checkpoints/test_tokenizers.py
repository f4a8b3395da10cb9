"""Tokenizers of all formats: where they are found, what they encode and decode, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from tasks.library_errors import library_errors
from tests.helpers.tokenizer_files import SPECIALS, TEXT_IDS, pickled
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import Tokenizer, TokenizerFailedError, UnknownCharacterError, load_tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer

VOCAB_SIZE = 320
#: Other processes share the machine, so the time of an example proves nothing.
without_deadline = settings(deadline=None)
GUIDE_CONFIG: dict[str, Any] = {"vocab_chars": list("0123456789+-="), "special_tokens": ["<|bos|>"], "vocab_size": 32}


@cache
def byte_level() -> str:
    """A byte-level tokenizer.json, as `tokenizers` trains it for nanochat."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"th": 256, "the": 257, "Ġt": 258}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e"), ("Ġ", "t")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer.to_str()


@cache
def metaspace() -> str:
    """A tokenizer.json in the style of SentencePiece: a space is U+2581, a byte is <0xNN>."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theé", "▁t", "▁th"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[("▁", "t"), ("▁t", "h")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str()


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "guide":
        return CharacterTokenizer.guide()
    if kind == "characters":
        return CharacterTokenizer.from_config(GUIDE_CONFIG | {"vocab_chars": "01é😀=\n"}, 32)
    if kind == "tiktoken":
        return BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE)
    return HuggingFaceTokenizer.from_json((byte_level() if kind == "byte-level" else metaspace()).encode(), VOCAB_SIZE)


#: Tokenizers that can spell every text.
OPEN = ["tiktoken", "byte-level", "metaspace"]
ALL = ["guide", "characters", *OPEN]


def decoded(words: Tokenizer, ids: tuple[int, ...] | list[int]) -> list[str]:
    decoder = words.decoder()
    return [decoder.push(token_id) for token_id in ids]


def folder_at(path: Path) -> CheckpointFolder:
    path.mkdir(parents=True, exist_ok=True)
    return CheckpointFolder(
        path=path, name=path.name, step=7, model_file=path / "model_000007.pt", meta_file=path / "meta_000007.json"
    )


# Encoding and decoding


@pytest.mark.parametrize("kind", OPEN)
@without_deadline
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n"), max_size=40))
def test_the_tokens_of_a_text_are_decoded_to_the_text(kind: str, text: str) -> None:
    words = tokenizer(kind)
    encoding = words.encode(text)
    assert encoding.skipped == ()
    # SentencePiece adds a space before every text.
    expected = " " + text if kind == "metaspace" and text else text
    assert "".join(decoded(words, encoding.ids)) == expected


@without_deadline
@given(text=st.text("01é😀=\n", max_size=20))
def test_a_text_of_characters_has_one_token_each(text: str) -> None:
    words = tokenizer("characters")
    assert len(words.encode(text).ids) == len(text)
    assert decoded(words, words.encode(text).ids) == list(text)


@pytest.mark.parametrize("kind", ALL)
@without_deadline
@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=60))
def test_decoding_token_by_token_gives_the_same_as_decoding_all(kind: str, ids: list[int]) -> None:
    """Random ids are mostly invalid UTF-8. The digit after them ends an incomplete character."""
    words = tokenizer(kind)
    ids = [*ids, *words.encode("1").ids[-1:]]
    whole = b"".join(words.token_bytes(token_id) or b"" for token_id in ids)
    assert "".join(decoded(words, ids)) == whole.decode("utf-8", errors="replace")


@pytest.mark.parametrize("kind", OPEN)
@without_deadline
@given(character=st.characters(exclude_categories=["Cs"]), data=st.data())
def test_a_character_of_several_tokens_appears_at_once(kind: str, character: str, data: st.DataObject) -> None:
    words = tokenizer(kind)
    single = {words.token_bytes(i): i for i in range(VOCAB_SIZE) if len(words.token_bytes(i) or b"") == 1}
    pieces = decoded(words, [single[bytes([byte])] for byte in character.encode()])
    assert pieces == [""] * (len(character.encode()) - 1) + [character]


@pytest.mark.parametrize("kind", OPEN)
@without_deadline
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n"), max_size=60))
def test_the_card_never_counts_more_tokens_than_a_text_has(kind: str, text: str) -> None:
    words = tokenizer(kind)
    card = words.card()
    assert card.least_prompt_tokens(text) <= len(words.encode(text).ids) + card.prepend_bos
    assert card.longest_token_bytes == {"tiktoken": 4, "byte-level": 3, "metaspace": None}[kind]


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "StripAccents"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Whitespace"}]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    ],
)
def test_a_tokenizer_that_may_shorten_a_text_has_no_bound(part: dict[str, Any]) -> None:
    content = json.loads(byte_level())
    assert HuggingFaceTokenizer.from_json(json.dumps(content).encode(), VOCAB_SIZE).card().longest_token_bytes == 3
    for divider in part.get("pre_tokenizer", {}).get("pretokenizers", []):
        if divider["type"] == "ByteLevel":
            divider |= content["pre_tokenizer"]
    changed = HuggingFaceTokenizer.from_json(json.dumps(content | part).encode(), VOCAB_SIZE)
    assert changed.card().longest_token_bytes is None
    assert changed.card().least_prompt_tokens("1" * 10_000_000) == 0


def test_an_added_token_that_takes_the_spaces_beside_it_leaves_no_bound() -> None:
    words = tokenizers.Tokenizer.from_str(byte_level())
    words.add_tokens([AddedToken("<sep>", lstrip=True)])
    assert HuggingFaceTokenizer.from_json(words.to_str().encode(), VOCAB_SIZE).card().longest_token_bytes is None


@pytest.mark.parametrize("kind", OPEN)
def test_two_sequences_are_decoded_independently(kind: str) -> None:
    words = tokenizer(kind)
    single = {words.token_bytes(i): i for i in range(VOCAB_SIZE)}
    first, second = words.decoder(), words.decoder()
    assert [first.push(single[b"\xc3"]), second.push(single[b"!"]), first.push(single[b"\xa9"])] == ["", "!", "é"]


@pytest.mark.parametrize("kind", ["tiktoken", "byte-level"])
def test_the_names_of_special_tokens_in_a_prompt_are_ordinary_text(kind: str) -> None:
    words = tokenizer(kind)
    text = "a<|bos|>b<|assistant_end|>"
    ids = words.encode(text).ids
    assert all(words.token_bytes(token_id) is not None for token_id in ids)
    assert "".join(decoded(words, ids)) == text


def test_the_names_of_special_tokens_are_ordinary_text_in_sentencepiece_too() -> None:
    words = tokenizer("metaspace")
    ids = words.encode("</s>t<s>").ids
    assert not words.stop_ids & set(ids)
    assert "".join(decoded(words, ids)).endswith("t<s>")


@pytest.mark.parametrize("kind", ALL)
def test_special_and_padding_ids_have_no_text(kind: str) -> None:
    words = tokenizer(kind)
    specials = {*words.stop_ids, words.bos_id}
    assert all(token_id is not None and words.token_bytes(token_id) is None for token_id in specials)
    assert words.token_bytes(VOCAB_SIZE - 1) is None
    assert words.token_bytes(-1) is None
    with_text = [token_id for token_id in range(VOCAB_SIZE) if words.token_bytes(token_id) is not None]
    assert len(with_text) == words.card().text_ids


@pytest.mark.parametrize("kind", ["characters", *OPEN])
@pytest.mark.parametrize(("text", "index"), [("\ud83d", 0), ("0=\udc00", 2), ("=\ude00\ud83d", 1)])
def test_a_lone_surrogate_is_refused_with_its_index(kind: str, text: str, index: int) -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer(kind).encode(text)
    assert (caught.value.index, caught.value.character) == (index, text[index])
    str(caught.value).encode()


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_text_has_no_tokens(kind: str) -> None:
    assert tokenizer(kind).encode("").ids == ()


@pytest.mark.parametrize("kind", OPEN)
def test_a_million_spaces_can_be_encoded(kind: str) -> None:
    text = " " * 1_000_000
    words = tokenizer(kind)
    assert sum(len(words.token_bytes(i) or b"") for i in words.encode(text).ids) >= len(text)


# Characters


def test_a_prompt_on_which_the_library_panics_is_an_ordinary_error() -> None:
    # The regular expression engine backtracks for ever and gives up, which is a panic in tiktoken.
    panicking = BpeTokenizer.from_pickle(pickled(pat_str=r"(a|aa)+\1$"), VOCAB_SIZE)
    assert panicking.encode("b").ids == ()
    for _ in range(2):
        with pytest.raises(TokenizerFailedError, match=r"tokenizer failed on the prompt \(.*BacktrackLimit"):
            panicking.encode("a" * 40 + "c")


def test_a_prompt_that_the_hugging_face_library_cannot_encode_is_an_ordinary_error() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    failing = HuggingFaceTokenizer.from_json(tokenizer.to_str().encode(), 8)
    with pytest.raises(TokenizerFailedError, match="UNK"):
        failing.encode("b")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_failure_of_the_library_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), library_errors():
        raise error


def test_the_guides_vocabulary_is_that_of_its_code() -> None:
    words = CharacterTokenizer.guide()
    assert words.encode("0123456789+-HBL.\n").ids == tuple(range(17))
    assert (words.bos_id, words.prepend_bos, words.stop_ids) == (17, True, frozenset({17}))
    card = words.card()
    assert (card.kind, card.characters, card.unknown) == ("characters", "0123456789+-HBL.\n", "skip")


def test_the_guides_vocabulary_skips_unknown_characters_with_a_warning() -> None:
    encoding = CharacterTokenizer.guide().encode("12=x=3\ud800")
    assert encoding.ids == (1, 2, 3)
    assert encoding.skipped == ("=", "x", "\ud800")
    (warning,) = encoding.warnings
    assert "'=', 'x', '\\ud800'" in warning
    warning.encode()
    assert CharacterTokenizer.guide().encode("123").warnings == ()


def test_a_warning_of_many_characters_stays_short() -> None:
    (warning,) = CharacterTokenizer.guide().encode("".join(map(chr, range(0x4E00, 0x5000)))).warnings
    assert len(warning) < 300
    assert "and 502 more" in warning


def test_a_vocabulary_file_refuses_an_unknown_character_with_its_index() -> None:
    words = CharacterTokenizer.from_config(GUIDE_CONFIG, 32)
    assert words.encode("12=").ids == (1, 2, 12)
    with pytest.raises(UnknownCharacterError) as caught:
        words.encode("12*3")
    assert (caught.value.index, caught.value.character) == (2, "*")
    assert "'*' at index 2" in str(caught.value)
    assert words.card().unknown == "refuse"


def test_a_character_outside_the_basic_plane_counts_as_one() -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer("characters").encode("😀😀x")
    assert caught.value.index == 2


def test_special_tokens_come_after_the_characters_and_may_be_absent() -> None:
    words = CharacterTokenizer.from_config({"vocab_chars": "ab", "special_tokens": ["<|x|>", "<|bos|>"]}, 8)
    assert (words.bos_id, words.stop_ids) == (3, frozenset({3}))
    assert [words.token_bytes(i) for i in range(5)] == [b"a", b"b", None, None, None]
    bare = CharacterTokenizer.from_config({"vocab_chars": "ab"}, 2)
    assert (bare.bos_id, bare.prepend_bos, bare.stop_ids) == (None, False, frozenset())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_chars": []}, "`vocab_chars` must be"),
        ({"vocab_chars": 7}, "`vocab_chars` must be"),
        ({"vocab_chars": {"a": 0}}, "`vocab_chars` must be"),
        ({"vocab_chars": ["a", "bc"]}, "single characters; 'bc' is not one"),
        ({"vocab_chars": ["a", 3]}, "single characters; 3 is not one"),
        ({"vocab_chars": ["a", ""]}, "single characters"),
        ({"vocab_chars": "aba"}, "`vocab_chars` has 'a' twice"),
        ({"vocab_chars": ["a", "\ud83d"]}, "half of a surrogate pair"),
        ({"special_tokens": "<|bos|>"}, "`special_tokens` must be"),
        ({"special_tokens": ["<|bos|>", "<|bos|>"]}, "`special_tokens` has '<|bos|>' twice"),
        ({"special_tokens": [3]}, "`special_tokens` must be"),
        ({"vocab_size": 33}, "`vocab_size` is 33 and the model's is 32"),
        ({"vocab_chars": [chr(65 + i) for i in range(32)]}, "more than the model's 32 ids"),
    ],
)
def test_an_invalid_vocabulary_file_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = folder_at(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(GUIDE_CONFIG | changes))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, 32)
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)


# nanochat's pickle


def test_the_ids_are_those_of_the_pickled_encoding() -> None:
    words = tokenizer("tiktoken")
    encoding: tiktoken.Encoding = pickle.loads(pickled())
    assert pickle.loads(pickle.dumps(encoding)).special_tokens_set == encoding.special_tokens_set == set(SPECIALS)
    assert BpeTokenizer.from_pickle(pickle.dumps(encoding), VOCAB_SIZE).card() == words.card()
    text = "the 1234 thé 😀\n\n  x"
    assert list(words.encode(text).ids) == encoding.encode_ordinary(text)
    assert words.bos_id == TEXT_IDS
    assert words.stop_ids == {TEXT_IDS, TEXT_IDS + SPECIALS.index("<|assistant_end|>")}
    assert words.card().text_ids == TEXT_IDS


class _Evil:
    def __init__(self, call: Callable[..., object], *arguments: str) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return self._reduced


@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, inside: bool) -> None:
    folder, marker = folder_at(tmp_path / "run"), tmp_path / "was_here"
    evil = _Evil(os.mkdir, str(marker))
    file = folder.path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps({"encoding": evil} if inside else evil))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, VOCAB_SIZE)
    assert str(caught.value).startswith(f"{file}: ")
    assert ".mkdir, which could run code" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [_Evil(eval, "1"), _Evil(__import__, "antigravity"), _Evil(tiktoken.get_encoding, "gpt2"), tiktoken.Encoding],
)
def test_only_an_encoding_is_built(call: object) -> None:
    with pytest.raises(ValueError, match=r"could run code|holds no tiktoken\.Encoding"):
        BpeTokenizer.from_pickle(pickle.dumps(call), VOCAB_SIZE)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mergeable_ranks": None}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {"a": 1}}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {b"a": True}}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {bytes([byte]): byte for byte in range(255)}}, "no token for the single byte 0xff"),
        ({"special_tokens": {b"<|bos|>": 300}}, "lacks mergeable_ranks or special_tokens"),
        ({"special_tokens": {"<|bos|>": 5}}, "two of its tokens have the same id"),
        ({"special_tokens": {"<|bos|>": -1}}, "negative"),
        ({"special_tokens": {"<|bos|>": VOCAB_SIZE}}, "it has 321 ids and the model has 320: it belongs to another"),
        ({"special_tokens": {"<|bos|>": 2**70}}, "it belongs to another model"),
        ({"pat_str": None}, "lacks pat_str"),
        ({"pat_str": "("}, "its split pattern cannot be used"),
    ],
)
def test_an_encoding_that_cannot_be_used_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BpeTokenizer.from_pickle(pickled(**changes), VOCAB_SIZE)


@pytest.mark.parametrize("kept", range(0, len(pickled()), 37))
def test_a_pickle_that_was_cut_off_is_refused(kept: int) -> None:
    with pytest.raises(ValueError, match=r"damaged|could run code|holds no"):
        BpeTokenizer.from_pickle(pickled()[:kept], VOCAB_SIZE)


@without_deadline
@given(offset=st.integers(0, len(pickled()) - 1), byte=st.integers(0, 255))
def test_a_damaged_pickle_is_either_refused_or_read(offset: int, byte: int) -> None:
    data = bytearray(pickled())
    data[offset] = byte
    try:
        card = BpeTokenizer.from_pickle(bytes(data), VOCAB_SIZE).card()
    except ValueError:
        return
    assert card.text_ids >= 256


# Hugging Face


def test_byte_level_ids_are_the_librarys() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    text = "the 1234 thé 😀\n\n  x"
    ids = tokenizer("byte-level").encode(text).ids
    assert list(ids) == library.encode(text).ids
    assert "".join(decoded(tokenizer("byte-level"), ids)) == library.decode(ids) == text
    assert tokenizer("byte-level").bos_id == library.token_to_id("<|bos|>")


def test_an_answer_keeps_the_space_before_its_first_word() -> None:
    words = tokenizer("metaspace")
    library = tokenizers.Tokenizer.from_str(metaspace())
    names = library.get_vocab()
    assert decoded(words, [names["▁th"], names["e"]]) == [" th", "e"]
    assert words.bos_id == names["<s>"]
    assert words.stop_ids == {names["<s>"], names["</s>"]}


def test_the_id_for_unknown_text_has_no_text() -> None:
    assert tokenizer("metaspace").token_bytes(0) is None


def test_truncation_padding_and_dropout_are_turned_off() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.enable_truncation(2)
    library.enable_padding(length=50)
    content = json.loads(library.to_str())
    content["model"]["dropout"] = 0.9
    words = HuggingFaceTokenizer.from_json(json.dumps(content).encode(), VOCAB_SIZE)
    assert words.encode("the the the").ids == tokenizer("byte-level").encode("the the the").ids


def test_added_tokens_that_are_not_special_have_text() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.add_tokens([AddedToken("very long word", normalized=False)])
    words = HuggingFaceTokenizer.from_json(library.to_str().encode(), VOCAB_SIZE)
    ids = words.encode("a very long word").ids
    assert len(ids) == 3
    assert "".join(decoded(words, ids)) == "a very long word"


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_vocabulary_without_all_bytes_refuses_what_it_cannot_spell(unknown: str | None) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<unk>": 2}, merges=[], unk_token=unknown))
    library.decoder = decoders.Fuse()
    words = HuggingFaceTokenizer.from_json(library.to_str().encode(), 8)
    assert words.encode("abba").ids == (0, 1, 1, 0)
    with pytest.raises(UnknownCharacterError) as caught:
        words.encode("abxby")
    assert (caught.value.index, caught.value.character) == (2, "x")


def changed_json(**fields: Any) -> bytes:
    return json.dumps(json.loads(byte_level()) | fields).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the tokenizers library cannot read it"),
        (b"{}", "the tokenizers library cannot read it"),
        (b"\xff", "the tokenizers library cannot read it"),
        (b'{"version": "1.0"}', "the tokenizers library cannot read it"),
        (changed_json(decoder=None), "its decoder is of type None"),
        (changed_json(decoder=json.loads(decoders.WordPiece().__getstate__())), "its decoder is of type WordPiece"),
        (
            changed_json(decoder={"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}),
            "regular expression, which is not supported",
        ),
    ],
)
def test_a_tokenizer_json_that_cannot_be_used_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, VOCAB_SIZE)
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert reason in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="it has 268 ids and the model has 267: it belongs to another model"):
        HuggingFaceTokenizer.from_json(byte_level().encode(), 267)
    assert HuggingFaceTokenizer.from_json(byte_level().encode(), 268).card().text_ids == 259


@pytest.mark.parametrize("spelled", ['"<unk>"', '{"content": "<unk>", "special": true}'])
def test_the_tokenizer_config_may_name_the_token_that_ends_a_text(tmp_path: Path, spelled: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_text(metaspace())
    without = load_tokenizer(folder, VOCAB_SIZE)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": {spelled}}}')
    assert load_tokenizer(folder, VOCAB_SIZE).stop_ids - without.stop_ids == {
        tokenizers.Tokenizer.from_str(metaspace()).token_to_id("<unk>")
    }


def test_an_eos_token_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_text(metaspace())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|none|>"}')
    with pytest.raises(TokenizerError, match="is not in it"):
        load_tokenizer(folder, VOCAB_SIZE)


# Where the file is found


FILES = {
    "tokenizer_config.json": (json.dumps(GUIDE_CONFIG | {"vocab_size": VOCAB_SIZE}).encode(), "characters"),
    "tokenizer.pkl": (pickled(), "tiktoken"),
    "tokenizer.json": (byte_level().encode(), "huggingface"),
}


@pytest.mark.parametrize("place", [".", "tokenizer", "../../tokenizer"])
@pytest.mark.parametrize("name", FILES)
def test_a_tokenizer_is_found_in_each_of_the_three_folders(tmp_path: Path, name: str, place: str) -> None:
    folder = folder_at(tmp_path / "base_checkpoints" / "d24")
    (folder.path / place).mkdir(parents=True, exist_ok=True)
    data, kind = FILES[name]
    (folder.path / place / name).write_bytes(data)
    assert load_tokenizer(folder, VOCAB_SIZE).kind == kind


def test_a_tokenizer_beside_the_weights_is_preferred(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "base_checkpoints" / "d24")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(b"broken, but far away")
    (folder.path / "tokenizer.json").write_bytes(byte_level().encode())
    assert load_tokenizer(folder, VOCAB_SIZE).kind == "huggingface"


def test_a_hugging_face_tokenizer_config_is_not_a_vocabulary(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_bytes(byte_level().encode())
    assert load_tokenizer(folder, VOCAB_SIZE).kind == "huggingface"


def test_a_vocabulary_file_with_a_misspelt_key_is_refused_and_the_guides_vocabulary_is_not_used(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"vocab_char": "0123"}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: has no `vocab_chars`"):
        load_tokenizer(folder, 32)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_vocabulary_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError, match=f"tokenizer_config.json: {reason}"):
        load_tokenizer(folder, 32)


def test_without_a_file_only_a_model_of_32_ids_has_the_guides_vocabulary(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "runs" / "d24")
    assert load_tokenizer(folder, 32).encode("1+1").ids == (1, 10, 1)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, 33)
    assert str(folder.path) in str(caught.value)
    assert all(name in str(caught.value) for name in FILES)


def test_tokenizers_do_not_import_torch() -> None:
    program = "import sys, worker.checkpoints.tokenizers, worker.checkpoints.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
